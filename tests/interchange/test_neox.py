"""GPT-NeoX checkpoints: each layout read from an independent writer, ours read by an independent reader, and
round trips that change no bit."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from stablelm.config import InputError, ModelConfig, preset
from stablelm.interchange import load_pretrained, save_pretrained
from stablelm.interchange.neox import is_neox, load_neox, open_neox
from stablelm.interchange.neox_writing import save_neox
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer, train_tokenizer
from tests.interchange import neox_fixture as fixture

SMALL = dict(
    num_hidden_layers=2, hidden_size=64, intermediate_size=96, vocab_size=512, max_position_embeddings=64,
    num_attention_heads=4, num_key_value_heads=4,
)  # fmt: skip
MHA = preset("stablelm-3b-4e1t", **SMALL)
GROUPED = preset("stablelm-3b-4e1t", **{**SMALL, "num_attention_heads": 8, "num_key_value_heads": 4})
ONE_BOTH_WAYS = ModelConfig(**SMALL, partial_rotary_factor=0.5, use_qkv_bias=True, use_norm_bias=False)
PARALLEL = "stablelm-2-12b without its QK-norm"
FAMILY = {
    "stablelm-3b-4e1t": MHA,
    "stablelm-zephyr-3b": preset("stablelm-zephyr-3b", **SMALL),
    "stable-code-3b": preset("stable-code-3b", **SMALL),
    "stablelm-2-1_6b": preset("stablelm-2-1_6b", **SMALL, bos_token_id=7, eos_token_id=7),
    # NeoX cannot hold its norm for each head; everything else of it.
    PARALLEL: preset(
        "stablelm-2-12b", **{**SMALL, "num_attention_heads": 8}, bos_token_id=7, eos_token_id=7,
        qk_layernorm=False,
    ),
    "grouped queries": GROUPED,
}  # fmt: skip


def random_model(config: ModelConfig, dtype=torch.float32) -> StableLM:
    """No two values alike, biases and norms included, so that nothing can be mixed up unseen."""
    model = StableLM(config, seed=5)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.to(dtype).eval()


def assert_holds(model: StableLM, weights: fixture.Weights) -> None:
    found = model.state_dict()
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat, and the other cat sat there too " * 2], 300)


@pytest.mark.parametrize(
    ("sequential", "width", "mlp"),
    [
        (False, 1, "new"), (False, 2, "legacy"), (False, 4, "new"),
        (True, 1, "legacy"), (True, 2, "new"), (True, 4, "legacy"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("config", "layout", "asked"),
    [
        (MHA, "interleaved", None), (MHA, "concatenated", "concatenated"), (MHA, "interleaved", "grouped"),
        (GROUPED, "concatenated", None), (GROUPED, "grouped", "grouped"),
        (FAMILY["stablelm-2-1_6b"], "interleaved", None),
        (FAMILY[PARALLEL], "grouped", "grouped"),
    ],
)  # fmt: skip
def test_every_layout_is_read(tmp_path: Path, sequential, width, mlp, config, layout, asked) -> None:
    weights = dict(random_model(config, torch.bfloat16).state_dict())
    fixture.write(tmp_path, weights, config, sequential=sequential, width=width, mlp=mlp, layout=layout)
    model, tokenizer = load_neox(tmp_path, qkv_layout=asked)
    assert_holds(model, weights)
    assert tokenizer is None
    assert not model.training
    ids = dict(bos_token_id=0, eos_token_id=0)  # what YAML without a known tokenizer says
    assert model.config == config.model_copy(update=ids)


def test_the_tag_or_the_directory_above(tmp_path: Path) -> None:
    model = random_model(MHA)
    weights = dict(model.state_dict())
    tag = fixture.write(tmp_path / "save", weights, MHA, step=1000)
    other = {name: value + 1 for name, value in weights.items()}
    fixture.write(tmp_path / "save", other, MHA, step=2000, latest=False)
    for path in (tag, tmp_path / "save", str(tag)):
        assert is_neox(path)
        assert_holds(load_neox(path)[0], weights)
    assert open_neox(tag).step == 1000
    (tmp_path / "save" / "latest").write_text("global_step2000\n")
    assert_holds(load_neox(tmp_path / "save")[0], other)
    (tmp_path / "save" / "latest").unlink()
    assert is_neox(tmp_path / "save")
    with pytest.raises(InputError, match="no file `latest`; give one of global_step1000, global_step2000"):
        load_neox(tmp_path / "save")
    for name in ("../elsewhere", "/etc", "", "global_step1000\nx"):
        (tmp_path / "save" / "latest").write_text(name)
        with pytest.raises(InputError, match="leads outside|no name of a tag"):
            load_neox(tmp_path / "save")
    (tmp_path / "save" / "latest").write_text("global_step3")
    with pytest.raises(InputError, match="global_step3: no such directory, although .*latest names it"):
        load_neox(tmp_path / "save")


def test_what_is_no_neox_checkpoint(tmp_path: Path) -> None:
    save_pretrained(random_model(MHA), None, tmp_path / "hf")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for path in ("hf", "empty", "file", "gone"):
        assert not is_neox(tmp_path / path)
        with pytest.raises(InputError, match="no such directory|no GPT-NeoX checkpoint"):
            load_neox(tmp_path / path)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.filterwarnings("error")
def test_round_trips_are_bit_equal(tmp_path: Path, tokenizer: Tokenizer, name: str, width: int) -> None:
    config = FAMILY[name]
    words = tokenizer if config.eos_token_id == tokenizer.eos_id else None
    dtype = {1: torch.float32, 2: torch.bfloat16, 4: torch.float16}[width]
    save_pretrained(random_model(config, dtype), words, tmp_path / "a")
    model, read = load_pretrained(tmp_path / "a")
    save_neox(
        model, read, tmp_path / "neox", width=width, step=7, mlp_names="legacy" if width == 2 else "new"
    )
    again, found = load_neox(tmp_path / "neox")
    assert again.config == config
    save_pretrained(again, found, tmp_path / "b")
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.parametrize(("width", "mlp"), [(1, "legacy"), (2, "new"), (4, "legacy"), (4, "new")])
@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (MHA, "interleaved"), (MHA, "concatenated"), (GROUPED, "concatenated"), (GROUPED, "grouped"),
        (FAMILY["stablelm-2-1_6b"], "interleaved"), (FAMILY[PARALLEL], "concatenated"),
        (ONE_BOTH_WAYS, "interleaved"),
    ],
)  # fmt: skip
def test_what_is_written_is_what_neox_reads(tmp_path: Path, config, layout, width, mlp) -> None:
    model = random_model(config)
    out = tmp_path / "out"
    save_neox(model, None, out, width=width, mlp_names=mlp, qkv_layout=layout, step=12)
    weights, idle = fixture.read(out, config, mlp=mlp, layout=layout)
    assert weights.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value), name
    # Parameters that upstream's modules have whatever its settings say.
    wanted = {"attention.dense.bias"} if config.use_qkv_bias else set()
    if config.use_parallel_residual:
        wanted |= {"post_attention_layernorm.weight", "post_attention_layernorm.bias"}
    if not config.use_norm_bias:
        wanted |= {"input_layernorm.bias", "post_attention_layernorm.bias", "norm.bias"}
    assert idle == wanted
    sizes = {file.name: file.stat().st_size for file in (out / "global_step12").glob("layer_*")}
    assert len(sizes) == width * 5
    stored = sum(value.nbytes for value in model.state_dict().values()) / width
    assert sum(sizes.values()) < stored * width * 1.5 + 2500 * len(sizes)  # no rank saves the whole tensor


def test_the_state_and_the_yaml_that_neox_reads(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_neox(random_model(MHA), tokenizer, tmp_path / "out", width=2, step=12)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "global_step12", "latest", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (tmp_path / "out" / "latest").read_text() == "global_step12"
    tag = tmp_path / "out" / "global_step12"
    for rank in range(2):
        state = torch.load(tag / f"mp_rank_{rank:02d}_model_states.pt", weights_only=True)
        # DeepSpeed indexes these; GPT-NeoX asserts that args are its own settings.
        for key in ("module", "lr_scheduler", "global_steps", "skipped_steps", "dp_world_size"):
            assert key in state
        assert state["module"] is None
        assert state["mp_world_size"] == 2
        assert state["iteration"] == 12
        assert state["args"] == {
            "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64,
            "make_vocab_size_divisible_by": 128, "padded_vocab_size": 512, "tokenizer_type": "HFTokenizer",
            "model_parallel_size": 2,
        }  # fmt: skip
    settings = yaml.safe_load((tag / "configs" / "stablelm.yml").read_text())
    # Upstream pads the tokenizer's 300 ids to a multiple of this times the ranks.
    assert settings["make_vocab_size_divisible_by"] == 128
    assert settings["intermediate_size"] == 3 * 96
    assert int(settings["intermediate_size"] * 2 / 3) // 2 == 96  # upstream's ParallelMLP
    assert settings["activation"] == "swiglu"
    assert settings["rotary_pct"] == 0.25
    assert settings["pipe-parallel-size"] == 1
    assert settings["use_bias_in_attn_linear"] is False
    words = load_neox(tmp_path / "out")[1]
    assert words is not None
    assert words.sha256 == tokenizer.sha256


def test_sizes_that_do_not_divide_are_named(tmp_path: Path) -> None:
    model = random_model(GROUPED)
    for width, name in ((3, "num_attention_heads 8"), (8, "num_key_value_heads 4"), (0, "width 0")):
        with pytest.raises(InputError, match=name):
            save_neox(model, None, tmp_path / "out", width=width)
    odd = random_model(preset("stablelm-3b-4e1t", **{**SMALL, "vocab_size": 511}))
    with pytest.raises(InputError, match="vocab_size 511 does not divide over 2"):
        save_neox(odd, None, tmp_path / "out", width=2)
    odd = random_model(preset("stablelm-3b-4e1t", **{**SMALL, "intermediate_size": 33}))
    with pytest.raises(InputError, match="intermediate_size 33 does not divide over 2"):
        save_neox(odd, None, tmp_path / "out", width=2)
    with pytest.raises(InputError, match="qk_layernorm: GPT-NeoX has no LayerNorm for each head"):
        save_neox(random_model(ModelConfig(**SMALL, qk_layernorm=True)), None, tmp_path / "out")
    for changes, message in (
        (dict(mlp_names="old"), "mlp_names 'old' is not known"),
        (dict(qkv_layout="interleaved"), "interleaved is for multi-head attention"),
        (dict(qkv_layout="mixed"), "qkv_layout 'mixed' is not known"),
        (dict(step=-1), "step -1"),
    ):
        with pytest.raises(InputError, match=message):
            save_neox(model, None, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_nothing_partly_written_is_left(tmp_path: Path, monkeypatch) -> None:
    model = random_model(MHA)
    saved = torch.save
    calls = []

    def full(content, file):
        calls.append(file)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        saved(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="out: the disk is full; nothing incomplete was kept"):
        save_neox(model, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        save_neox(model, None, tmp_path / "out")


@pytest.mark.parametrize("sequential", [False, True])
def test_padding_dtype_and_device(tmp_path: Path, sequential: bool) -> None:
    weights = dict(random_model(MHA, torch.float16).state_dict())
    fixture.write(tmp_path, weights, MHA, sequential=sequential, width=2)
    model = load_neox(tmp_path, torch.float32)[0]
    assert_holds(model, {name: value.float() for name, value in weights.items()})
    assert model.config.vocab_size == 512  # rows as stored, though the tokenizer has fewer
    assert load_neox(tmp_path)[0].dtype == torch.float16
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.pt")}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(file.read_bytes() == content for file, content in before.items())

    class Mine(StableLM):
        pass

    assert isinstance(load_neox(tmp_path, build=Mine)[0], Mine)


def test_norms_that_drifted_apart_are_averaged(tmp_path: Path) -> None:
    weights = dict(random_model(MHA).state_dict())
    tag = fixture.write(tmp_path, weights, MHA, width=2)
    file = tag / "layer_03-model_01-model_states.pt"
    tensors = torch.load(file, weights_only=True)
    scale = tensors["input_layernorm.weight"].abs().max()
    tensors["input_layernorm.weight"] += scale / 128
    torch.save(tensors, file)
    with pytest.warns(UserWarning, match="copies of LayerNorms differ .* mean is used"):
        model = load_neox(tmp_path)[0]
    name = "model.layers.1.input_layernorm.weight"
    assert torch.allclose(model.state_dict()[name], weights[name] + scale / 256, atol=1e-7, rtol=0)
    tensors["input_layernorm.weight"] += scale
    torch.save(tensors, file)
    with pytest.raises(
        InputError, match="'input_layernorm.weight' differs between the ranks .* different checkp"
    ):
        load_neox(tmp_path)


def test_old_and_idle_tensors(tmp_path: Path) -> None:
    config = FAMILY[PARALLEL]
    weights = dict(random_model(config).state_dict())
    zeros = torch.zeros(64)
    idle = {
        "attention.rotary_emb.inv_freq": torch.ones(7),
        "post_attention_layernorm.weight": torch.ones(64), "post_attention_layernorm.bias": zeros + 3,
        "attention.dense.bias": zeros, "mlp.linear2.bias": zeros, "input_layernorm.bias": zeros,
    }  # fmt: skip
    extra = {2: idle, 3: idle, 5: {"norm.bias": zeros}}
    fixture.write(tmp_path / "a", weights, config, layout="concatenated", extra=extra)
    assert_holds(load_neox(tmp_path / "a")[0], weights)
    # StableLM 2 1.6B: YAML denies the biases of the norms, the file has them, and they count.
    biased = {"input_layernorm.bias": zeros + 1}
    extra = {2: idle | biased, 3: idle, 5: {"norm.bias": zeros}}
    fixture.write(tmp_path / "b", weights, config, layout="concatenated", extra=extra)
    model = load_neox(tmp_path / "b")[0]
    assert model.config.use_norm_bias
    assert torch.equal(model.state_dict()["model.layers.0.input_layernorm.bias"], zeros + 1)
    for key in ("attention.dense.bias", "mlp.linear2.bias"):
        extra = {2: idle | {key: zeros + 1}, 3: idle, 5: {"norm.bias": zeros}}
        fixture.write(tmp_path / key, weights, config, layout="concatenated", extra=extra)
        with pytest.raises(
            InputError, match=f"'{key}' is a bias that this network does not have, and it is not z"
        ):
            load_neox(tmp_path / key)


def test_without_yaml(tmp_path: Path) -> None:
    weights = dict(random_model(GROUPED).state_dict())
    tag = fixture.write(tmp_path, weights, GROUPED, layout="concatenated", width=2, settings={})
    with pytest.warns(UserWarning, match="no YAML .* rotary_pct 0.25, rotary_emb_base 10000.*assumed"):
        model = load_neox(tmp_path)[0]
    assert_holds(model, weights)
    assert model.config == GROUPED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed = GROUPED.model_copy(update={"rope_theta": 5e5})
        assert load_neox(tmp_path, config=changed)[0].config == changed
        save_pretrained(model, None, tmp_path / "hf")
        for config in (tmp_path / "hf", tmp_path / "hf" / "config.json"):
            assert load_neox(tmp_path, config=config)[0].config == GROUPED
        settings = fixture.yaml_of(GROUPED, rotary_pct=0.5)
        (tmp_path / "run.yml").write_text(yaml.safe_dump(settings))
        assert load_neox(tmp_path, config=tmp_path / "run.yml")[0].config.partial_rotary_factor == 0.5
        with pytest.raises(InputError, match="num_layers 32, but .* holds 2 blocks"):
            load_neox(tmp_path, config="stablelm-3b-4e1t")
        with pytest.raises(InputError, match="config='nothing.known': give a config.json, a preset"):
            load_neox(tmp_path, config="nothing.known")
        (tag / "mp_rank_00_model_states.pt").unlink()
        with pytest.raises(InputError, match="the architecture is not known. Give config="):
            load_neox(tmp_path)


MEMORY = """
import sys
from stablelm.interchange.neox import load_neox, open_neox
open_neox(sys.argv[1])
def said(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1]) * 1024
before = said("VmRSS")
model = load_neox(sys.argv[1])[0]
print(said("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("sequential", [False, True])
def test_memory_is_the_model_and_a_layer(tmp_path: Path, sequential: bool) -> None:
    config = preset("stablelm-1m", hidden_size=512, num_hidden_layers=4, vocab_size=512)
    weights = dict(StableLM(config).state_dict())
    fixture.write(tmp_path, weights, config, sequential=sequential, width=2)
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    grown, model = map(int, out.split())
    assert model > 55e6
    assert grown < model + 35e6
