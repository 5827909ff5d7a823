"""The architecture from GPT-NeoX's YAML: every released one, each key that must be refused, sizes against
tensors."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from stablelm.config import InputError, preset
from stablelm.interchange.neox import load_neox
from stablelm.interchange.neox_config import Stored, from_neox, read_copies, read_settings, to_neox, token_ids
from stablelm.model import StableLM
from tests.interchange import neox_fixture as fixture

IDS = {"bos_token_id": 0, "eos_token_id": 0}
THREE = Stored(
    blocks=32, vocab_size=50304, hidden_size=2560, intermediate_size=6912, qkv_rows=7680, mlp="legacy",
    norm_bias=True, qkv_bias=False, post_attention_norm=True, head=True,
)  # fmt: skip
SMALL = preset(
    "stablelm-3b-4e1t", num_hidden_layers=2, hidden_size=32, intermediate_size=48, vocab_size=64,
    max_position_embeddings=32, num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip


def stored_of(config, **changes) -> Stored:
    return Stored(
        blocks=config.num_hidden_layers, vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size, mlp="new",
        qkv_rows=config.hidden_size + 2 * config.num_key_value_heads * config.head_dim,
        norm_bias=config.use_norm_bias, qkv_bias=config.use_qkv_bias,
        post_attention_norm=not config.use_parallel_residual, head=True, **changes,
    )  # fmt: skip


def test_the_released_yaml_is_the_preset(shared: Path) -> None:
    values = read_settings(shared / "seed" / "configs" / "stablelm-3b-4e1t.yml")
    assert from_neox(values, "x", THREE, IDS) == preset("stablelm-3b-4e1t")
    assert token_ids({}, values, 50304) == IDS

    values = read_settings(shared / "seed" / "configs" / "stablelm-2-1_6b.yml")
    two = preset("stablelm-2-1_6b")
    ids = token_ids({}, values, 100352)
    assert ids == {"bos_token_id": 100257, "eos_token_id": 100257}
    assert from_neox(values, "x", stored_of(two), ids) == two  # YAML denies the biases that are stored

    values = read_settings(shared / "seed" / "configs" / "stablelm-2-12b.yml")
    with pytest.raises(InputError, match="qk_norm = True is not supported"):
        from_neox(values, "x", stored_of(preset("stablelm-2-12b")), ids)
    del values["qk_norm"]
    twelve = preset("stablelm-2-12b", qk_layernorm=False)
    assert from_neox(values, "x", stored_of(twelve), ids) == twelve


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_the_older_relatives(shared: Path, size: str) -> None:
    folder = shared / "seed" / "configs"
    values = read_settings(folder / f"stablelm-base-alpha-{size}-v2-4k-extension.yml")
    hidden = {"3b": 2560, "7b": 4096}[size]
    stored = replace(
        THREE, hidden_size=hidden, intermediate_size={"3b": 6912, "7b": 11008}[size], vocab_size=50432
    )
    config = from_neox(values, "x", stored, IDS)
    assert config.use_parallel_residual
    assert (config.hidden_size, config.vocab_size, config.max_position_embeddings) == (hidden, 50432, 4096)
    values = read_settings(folder / f"stablelm-base-alpha-{size}.yml")
    with pytest.raises(InputError, match="activation = 'gelu' is not supported; this network has silu"):
        from_neox(values, "x", stored, IDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rmsnorm"}, "norm = 'rmsnorm' is not supported"),
        ({"pos-emb": "alibi"}, "pos_emb = 'alibi'"),
        ({"rotary_interleaved": True}, "rotary_interleaved = True"),
        ({"rotary_scaling_factor": 2}, "rotary_scaling_factor = 2"),
        ({"activation": "geglu"}, "activation = 'geglu'"),
        ({"activation": None}, r"activation = 'gelu' \(GPT-NeoX's default, as the key is not given\)"),
        ({"mlp_type": "regular"}, "mlp_type = 'regular'"),
        ({"output_layer_parallelism": "row"}, "output_layer_parallelism = 'row'"),
        ({"use_qk_layernorm": True}, "use_qk_layernorm = True"),
        ({"attention-config": [[["flash", "local"], 1]]}, "attention_config = .*flash or global"),
        ({"sliding_window_width": 128}, "sliding_window_width = 128"),
        ({"use-mup": True}, "use_mup = True"),
        ({"moe_num_experts": 8}, "moe_num_experts = 8"),
        ({"num-unique-layers": 1}, "num_unique_layers = 1"),
        ({"train_impl": "rm"}, "train_impl = 'rm'"),
        ({"gpt_j_residual": True}, "gpt_j_residual without gpt_j_tied has two LayerNorms"),
        ({"num-layers": None}, "the key 'num_layers' is missing"),
        ({"hidden-size": None}, "the key 'hidden_size' is missing"),
        ({"num-attention-heads": "four"}, "num_attention_heads = 'four': a number is wanted"),
        ({"num-attention-heads": 3}, "does not divide into 3 heads"),
        ({"rotary_pct": 0.2}, "rotates 1 dimensions"),
        ({"rotary_pct": float("nan")}, "rotary_pct = nan: a number is wanted"),
        ({"num_kv_heads": 4}, r"query_key_value.weight' has shape \[64, 32\], .* wants \[96, 32\]"),
        ({"num-layers": 10**12}, "num_layers 1,000,000,000,000, but .* holds 2 blocks"),
        ({"hidden-size": 64}, "has shape"),
        ({"intermediate_size": 96}, "intermediate_size 96 makes an MLP 96 or .* 32 wide; the tensors are 48"),
        ({"intermediate_size": None, "mlp_multiple_of": 256}, "mlp_multiple_of 256 makes an MLP 256 or"),
        ({"intermediate_size": 10**20}, "no sensible size"),
        ({"model-parallel-size": 2}, "model_parallel_size 2, but .* holds files of 1 rank"),
        ({"num-kv-head": 2}, "unknown key 'num-kv-head'; did you mean 'num_kv_heads'"),
        ({"rotary-emb-bas": 2}, "did you mean 'rotary_emb_base'"),
        ({"hidden_size": 64}, "hidden.size is given twice, with - and with _"),
        ({"use_bias_in_attn_linear": True}, "tensor 'attention.query_key_value.bias' is missing"),
        ({"max-position-embeddings": 64}, "args say max_position_embeddings 32, .* has 64"),
    ],
)  # fmt: skip
def test_settings_that_are_not_this_model(tmp_path: Path, changes: dict, message: str) -> None:
    weights = dict(StableLM(SMALL).state_dict())
    settings = fixture.yaml_of(SMALL, **changes)
    tag = fixture.write(tmp_path, weights, SMALL, layout="concatenated", settings=settings)
    with pytest.raises(InputError, match=message) as caught:
        load_neox(tag)
    assert "model.yml" in str(caught.value) or "model_states.pt" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"intermediate_size": 48}, {"intermediate_size": 144}, {"intermediate_size": None},
        {"intermediate_size": None, "expansion_factor": 4.5},
        {"activation": "swiglu", "mlp_type": None}, {"activation": "swish"}, {"mlp_type": "llama"},
        {"pos-emb": None}, {"max-position-embeddings": None}, {"attention_head_type": None},
        {"no-weight-tying": None}, {"attention-config": ["global", "global"]}, {"num_unique_layers": 2},
        {"num_layers": 2, "num-layers": None}, {"num_layers": 2}, {"new_key_of_a_trainer": [1, {"x": 2}]},
        {"rotary_emb_base": 10_000, "rotary-pct": 0.25, "rotary_pct": None}, {"gpt_j_tied": True},
    ],
)  # fmt: skip
def test_spellings_of_this_model(tmp_path: Path, changes: dict) -> None:
    settings = fixture.yaml_of(SMALL, **changes)
    weights = dict(StableLM(SMALL).state_dict())
    fixture.write(tmp_path, weights, SMALL, layout="concatenated", settings=settings)
    assert load_neox(tmp_path)[0].config == SMALL


def test_defaults_are_upstreams(tmp_path: Path) -> None:
    settings = fixture.yaml_of(
        SMALL, rotary_pct=None, rotary_emb_base=None, layernorm_epsilon=None, init_method_std=None
    )
    fixture.write(
        tmp_path, dict(StableLM(SMALL).state_dict()), SMALL, layout="concatenated", settings=settings
    )
    config = load_neox(tmp_path)[0].config
    assert config.partial_rotary_factor == 1.0
    assert (config.rope_theta, config.layer_norm_eps, config.initializer_range) == (10_000, 1e-5, 0.02)


def test_several_files_are_one_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "a.yml").write_text('{"num-layers": 2, # a comment\n "lr": 1.0e-4,}')
    (folder / "b.yml").write_text('{"hidden_size": 3_2, "num_layers": 2}')
    (folder / "readme.txt").write_text("{")
    found = read_copies(tmp_path)
    assert found is not None
    assert found[0] == {"num_layers": 2, "lr": 1e-4, "hidden_size": 32}
    (folder / "c.yaml").write_text("num-layers: 3")
    with pytest.raises(InputError, match="c.yaml: num_layers is 3, another file beside it says 2"):
        read_copies(tmp_path)
    (folder / "c.yaml").write_text("num-layers: [")
    with pytest.raises(InputError, match="c.yaml, line 1: not valid YAML"):
        read_copies(tmp_path)
    assert read_copies(folder) is None


def test_token_ids() -> None:
    arcade = {"tokenizer_type": "TiktokenTokenizer", "vocab_file": "arcade100k.tiktoken"}
    ours = {"stablelm": {"bos_token_id": 3, "eos_token_id": 4}}
    for state, values, vocabulary, end in (
        ({}, {}, 64, (0, 0)),
        ({}, {"tokenizer_type": "HFTokenizer"}, 50304, (0, 0)),
        ({}, {"tokenizer_type": "GPT2BPETokenizer"}, 50304, (50256, 50256)),
        ({}, arcade, 100352, (100257, 100257)),
        ({}, arcade, 64, (0, 0)),
        (ours, arcade, 100352, (3, 4)),
        ({"stablelm": 3}, {}, 64, (0, 0)),
    ):
        found = token_ids(state, values, vocabulary)
        assert (found["bos_token_id"], found["eos_token_id"]) == end


@pytest.mark.parametrize(
    ("vocabulary", "width", "ids", "multiple"),
    [
        (50304, 1, 50277, 128),
        (50432, 2, 50277, 128),
        (50304, 2, 50277, 25152),
        (512, 1, 300, 512),
        (512, 1, None, 128),
    ],
)
def test_the_padding_that_neox_computes_arrives_at_what_is_stored(vocabulary, width, ids, multiple) -> None:
    config = preset("stablelm-3b-4e1t", vocab_size=vocabulary)
    values, args = to_neox(config, "new", width, "bfloat16", ids)
    assert values["make_vocab_size_divisible_by"] == args["make_vocab_size_divisible_by"] == multiple
    padded = ids or vocabulary
    while padded % (multiple * width):  # upstream's _vocab_size_with_padding
        padded += 1
    assert padded == vocabulary == args["padded_vocab_size"]


@pytest.mark.parametrize("mlp", ["new", "legacy"])
@pytest.mark.parametrize("name", ["stablelm-3b-4e1t", "stable-code-3b", "stablelm-2-1_6b", "stablelm-1m"])
def test_our_yaml_says_what_it_was_written_from(tmp_path: Path, name: str, mlp) -> None:
    config = preset(name)
    values, _ = to_neox(config, mlp, 1, "bfloat16", None)
    (tmp_path / "x.yml").write_text(yaml.safe_dump(values))
    ids = {key: getattr(config, key) for key in IDS}
    read = from_neox(read_settings(tmp_path / "x.yml"), "x", stored_of(config), ids)
    assert read == config
