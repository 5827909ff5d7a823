"""GGUF files: bit-equal there and back for the family, what llama.cpp asks for, nothing half-written."""

import errno
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants

from stablelm.config import InputError, preset
from stablelm.interchange.gguf import _stored_as, describe_gguf, load_gguf, save_gguf
from stablelm.interchange.gguf_header import Header
from stablelm.interchange.gguf_network import layout_of
from stablelm.interchange.gguf_types import stored_bytes
from stablelm.model import StableLM
from stablelm.storage import DiskFullError
from stablelm.tokenizer import Tokenizer, train_tokenizer

SMALL = dict(
    vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    bos_token_id=0, eos_token_id=0,
)  # fmt: skip
FAMILY = {
    "stablelm-3b-4e1t": {},
    "stablelm-zephyr-3b": {"layer_norm_eps": 1e-6, "initializer_range": 0.013},
    "stable-code-3b": {},
    "stablelm-2-1_6b": {},
    "stablelm-2-12b": {"num_key_value_heads": 2},
    "stablelm-2-12b with norm biases": {"num_key_value_heads": 1, "use_norm_bias": True},
    "stablelm-3b-4e1t without norm biases": {"use_norm_bias": False, "partial_rotary_factor": 0.5},
}


def member(name: str, **changes) -> StableLM:
    model = StableLM(preset(name.split(" ")[0], **{**SMALL, **FAMILY[name], **changes}), seed=4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat, and the other cat sat there too " * 2], 300)


def assert_same(ours: StableLM, theirs: StableLM) -> None:
    assert ours.config == theirs.config
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILY)
def test_there_and_back_is_bit_equal(tmp_path, words, name, dtype) -> None:
    model = member(name).to(dtype)
    stored = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    save_gguf(model, words, tmp_path / "x.gguf", dtype=stored)
    again, tokenizer = load_gguf(tmp_path / "x.gguf")
    assert_same(model, again)
    assert tokenizer.sha256 == words.sha256
    assert not again.training and all(p.requires_grad for p in again.parameters())
    if dtype != torch.float32:  # float32 holds it all
        save_gguf(model, words, tmp_path / "f32.gguf")
        assert_same(model, load_gguf(tmp_path / "f32.gguf", dtype)[0])
    save_gguf(again, tokenizer, tmp_path / "y.gguf", dtype=stored)
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


def test_another_reader_sees_what_llama_cpp_asks_for(tmp_path, words) -> None:
    model = member("stablelm-2-12b")
    save_gguf(model, words, tmp_path / "x.gguf", name="Small", license="cc-by-sa-4.0")
    reader = GGUFReader(tmp_path / "x.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "stablelm", "general.name": "Small", "general.license": "cc-by-sa-4.0",
        "general.file_type": 0, "general.quantization_version": 2, "stablelm.context_length": 4096,
        "stablelm.embedding_length": 64, "stablelm.block_count": 2, "stablelm.feed_forward_length": 96,
        "stablelm.attention.head_count": 4, "stablelm.attention.head_count_kv": 2,
        "stablelm.rope.dimension_count": 4, "stablelm.rope.freq_base": 10_000.0,
        "stablelm.use_parallel_residual": True, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "olmo",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected
    assert values["stablelm.attention.layer_norm_epsilon"] == np.float32(1e-5)
    assert len(values["tokenizer.ggml.tokens"]) == len(values["tokenizer.ggml.token_type"]) == 320
    stored, state = {tensor.name: tensor for tensor in reader.tensors}, model.state_dict()
    norms = "model.layers.1.self_attn.k_layernorm.norms.{}.weight".format
    merged = torch.stack([state[norms(0)], state[norms(1)]]).numpy()
    assert np.array_equal(stored["blk.1.attn_k_norm.weight"].data, merged)
    assert stored["blk.1.attn_k_norm.weight"].shape.tolist() == [16, 2]
    assert stored["blk.0.attn_q_norm.weight"].shape.tolist() == [16, 4]
    assert np.array_equal(stored["blk.1.ffn_down.weight"].data, state["model.layers.1.mlp.down_proj.weight"])
    assert not stored["blk.0.attn_norm.bias"].data.any() and not stored["output_norm.bias"].data.any()
    assert "blk.0.ffn_norm.weight" not in stored  # by its absence llama.cpp knows the parallel residual
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)


@pytest.mark.parametrize(
    ("dtype", "hidden", "matrices", "output"),
    [
        ("f16", 64, "F16", "F16"), ("bf16", 64, "BF16", "BF16"), ("q8_0", 64, "Q8_0", "Q8_0"),
        ("q4_0", 64, "Q4_0", "Q8_0"), ("q4_0", 256, "Q4_0", "Q6_K"), ("q8_0", 256, "Q8_0", "Q8_0"),
        ("q4_0", 48, "F16", "F16"), ("q8_0", 48, "F16", "F16"),
    ],
)  # fmt: skip
def test_what_each_tensor_is_stored_as(tmp_path, words, dtype, hidden, matrices, output) -> None:
    model = member("stablelm-2-1_6b", hidden_size=hidden, partial_rotary_factor=0.5)
    save_gguf(model, words, tmp_path / "x.gguf", dtype=dtype)
    kinds = {name: tensor.type for name, tensor in Header(tmp_path / "x.gguf").tensors.items()}
    assert kinds.pop("output.weight") == output
    for name, kind in kinds.items():
        plain = "norm" in name or name.endswith("bias")
        down = name.endswith("ffn_down.weight")  # 96 columns
        assert kind == (
            "F32" if plain else {"q8_0": "Q8_0", "q4_0": "Q4_0"}.get(dtype, matrices) if down else matrices
        )


@pytest.mark.parametrize(("kind", "gigabytes"), [("Q4_0", 1.61), ("Q8_0", 2.97)])
def test_a_3b_file_has_the_size_of_the_published_ones(kind, gigabytes) -> None:
    """Those of zephyr-3b as its card lists them, vocabulary and header (2 MB) aside."""
    config = preset("stablelm-zephyr-3b")
    with torch.device("meta"):
        tensors = StableLM(config).state_dict()
    size = sum(stored_bytes(shape, _stored_as(n, shape, kind)) for n, _, shape in layout_of(tensors, config))
    assert round(size / 1e9, 2) == gigabytes


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_quantised_weights_are_what_the_file_means(tmp_path, words, dtype) -> None:
    model = member("stablelm-2-1_6b")
    save_gguf(model, words, tmp_path / "x.gguf", dtype=dtype)
    again, _ = load_gguf(tmp_path / "x.gguf")
    assert again.dtype == torch.float32
    for found in GGUFReader(tmp_path / "x.gguf").tensors:
        if found.name == "blk.1.attn_k.weight":
            meant = quants.dequantize(found.data, found.tensor_type)
    assert np.array_equal(again.model.layers[1].self_attn.k_proj.weight.detach().numpy(), meant)
    for name, value in again.state_dict().items():
        original = model.state_dict()[name]
        assert torch.equal(value, original) is (value.dim() == 1), name
        assert (value - original).norm() < {"q8_0": 0.01, "q4_0": 0.12}[dtype] * original.norm()
    small, _ = load_gguf(tmp_path / "x.gguf", torch.bfloat16)
    assert torch.equal(small.lm_head.weight, again.lm_head.weight.bfloat16())
    save_gguf(again, words, tmp_path / "y.gguf", dtype=dtype)
    twice, _ = load_gguf(tmp_path / "y.gguf")
    drift = (twice.lm_head.weight - again.lm_head.weight).norm() / again.lm_head.weight.norm()
    assert drift < 1e-3  # what was on the grid stays on it


def test_a_subclass_and_its_device(tmp_path) -> None:
    class Mine(StableLM):
        pass

    save_gguf(member("stable-code-3b"), None, tmp_path / "x.gguf")
    model, tokenizer = load_gguf(tmp_path / "x.gguf", build=Mine, device=torch.device("cpu"))
    assert type(model) is Mine and tokenizer is None
    assert model.config.rope_theta == 1_000_000 and model.config.max_position_embeddings == 16_384


def test_facts(tmp_path, words) -> None:
    model = member("stablelm-2-1_6b", hidden_size=256)
    save_gguf(model, words, tmp_path / "x.gguf", dtype="q4_0", name="Small")
    facts = describe_gguf(tmp_path / "x.gguf", verify=True)
    assert facts["kind"] == "model" and facts["format"] == "GGUF version 3" and facts["name"] == "Small"
    assert facts["parameters"] == model.num_parameters()
    assert facts["architecture"]["context"] == 4096 and facts["architecture"]["rotary_base"] == 10_000
    size = (tmp_path / "x.gguf").stat().st_size
    kinds = {"F32": 16, "Q4_0": 15, "Q6_K": 1}
    assert facts["weights"] == {"tensors": 32, "stored_as": kinds, "files": 1, "bytes": size}
    assert facts["tokenizer"] == {"ids": 300, "end_of_text": 0, "padding": 1, "sha256": words.sha256}
    assert facts["verified"] == "32 tensors: all there, of the right shape, finite"
    assert "verified" not in describe_gguf(tmp_path / "x.gguf")
    save_gguf(model, None, tmp_path / "y.gguf")
    assert describe_gguf(tmp_path / "y.gguf")["tokenizer"] == "none"


def test_verify_finds_what_is_not_finite(tmp_path) -> None:
    save_gguf(member("stablelm-3b-4e1t"), None, tmp_path / "x.gguf", dtype="q8_0")
    found = Header(tmp_path / "x.gguf").tensors["blk.1.ffn_up.weight"]
    content = bytearray((tmp_path / "x.gguf").read_bytes())
    content[found.offset : found.offset + 2] = b"\x00\x7e"  # the first block's scale: NaN
    (tmp_path / "x.gguf").write_bytes(content)
    describe_gguf(tmp_path / "x.gguf")
    with pytest.raises(InputError, match="tensor 'blk.1.ffn_up.weight' holds values that are not finite"):
        describe_gguf(tmp_path / "x.gguf", verify=True)


# What is not written.


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "f32", "tensor 'model.layers.1.mlp.up_proj.weight' holds values that are not finite"),
        (float("-inf"), "q8_0", "not finite"),
        (-70_000.0, "f16", r"holds 7e\+04, beyond what F16 can \(6.55e\+04\). Choose bf16 or f32"),
        (1e30, "q4_0", "beyond what Q4_0 can"),
    ],
)  # fmt: skip
def test_values_that_a_type_does_not_hold(tmp_path, value, dtype, message) -> None:
    model = member("stablelm-3b-4e1t")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(InputError, match=message):
        save_gguf(model, None, tmp_path / "x.gguf", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_refused(tmp_path, words) -> None:
    model = member("stablelm-3b-4e1t", vocab_size=299)
    with pytest.raises(InputError, match="dtype 'q5_0' is not written to GGUF; choose one of f32, f16, q4_0"):
        save_gguf(model, None, tmp_path / "x.gguf", dtype="q5_0")
    with pytest.raises(InputError, match="a directory; name a file, such as .*model.gguf"):
        save_gguf(model, None, tmp_path)
    with pytest.raises(InputError, match="300 ids are more than the model's vocab_size 299"):
        save_gguf(model, words, tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        save_gguf(model, None, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_text() == "precious"
    model.lm_head.register_parameter("lora_a", torch.nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(InputError, match="tensor 'lm_head.lora_a' has no place in a GGUF file. Merge"):
        save_gguf(model, None, tmp_path / "y.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("room", [100, 5_000, 100_000])
def test_a_full_disk_leaves_nothing(tmp_path, words, monkeypatch, room) -> None:
    """In the front, which the gguf package writes, and among the tensors, which we do."""
    left = [room]

    class Limited(io.FileIO):
        def write(self, data):
            left[0] -= memoryview(data).nbytes
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def limited(path, mode="r", **keywords):
        return Limited(path, mode) if mode == "wb" else io.open(path, mode, **keywords)  # noqa: UP020

    model = member("stablelm-3b-4e1t")
    monkeypatch.setattr("builtins.open", limited)
    with pytest.raises(DiskFullError, match="x.gguf: the disk is full; nothing incomplete was kept"):
        save_gguf(model, words, tmp_path / "x.gguf")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_told_before_work_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskFullError, match="the model needs .* bytes, the disk has 1,000 free"):
        save_gguf(member("stablelm-3b-4e1t"), None, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_saving_takes_a_tensor_of_memory_and_loading_none(tmp_path) -> None:
    """192 MB of bfloat16, its largest tensor 2 MB as float32."""
    code = """
    import resource, sys, torch
    from stablelm.config import preset
    from stablelm.interchange.gguf import load_gguf, save_gguf
    from stablelm.model import StableLM
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sizes = dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=36, vocab_size=512)
    config = preset("stablelm-1m", **sizes)
    with torch.device("meta"):
        model = StableLM(config)
    weights = {n: torch.full(t.shape, 0.5, dtype=torch.bfloat16) for n, t in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    before = peak()
    save_gguf(model, None, sys.argv[1], dtype="q8_0")
    saved = peak()
    save_gguf(model, None, sys.argv[2], dtype="bf16")
    opened = peak()
    load_gguf(sys.argv[2])
    print(saved - before, peak() - opened)
    """
    lines = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    command = [sys.executable, "-c", lines, str(tmp_path / "q.gguf"), str(tmp_path / "b.gguf")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    saving, loading = map(int, done.stdout.split())
    assert saving < 60 and loading < 20, done.stdout
