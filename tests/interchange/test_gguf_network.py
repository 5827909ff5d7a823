"""What a network has follows from its file's tensors and metadata; what contradicts itself is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from stablelm.config import InputError, preset
from stablelm.interchange.gguf import describe_gguf, load_gguf, save_gguf
from stablelm.interchange.gguf_header import Header
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer, train_tokenizer

SMALL = dict(
    vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    bos_token_id=0, eos_token_id=0,
)  # fmt: skip
FAMILY = {
    "stablelm-3b-4e1t": {},
    "stablelm-2-1_6b": {},
    "stablelm-2-12b": {"num_key_value_heads": 2},
    "stablelm-2-12b with norm biases": {"num_key_value_heads": 1, "use_norm_bias": True},
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


def changed(source: Path, target: Path, entries=None, tensors=None, architecture="stablelm") -> Path:
    """What another tool might have written: a copy with other metadata (`stablelm.` in front) and tensors;
    None drops one."""
    reader, writer = GGUFReader(source), GGUFWriter(target, architecture)
    entries, tensors = dict(entries or {}), dict(tensors or {})
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            value = entries.pop(field.name.removeprefix("stablelm."), field.contents())
            if value is not None:
                kind = GGUFValueType.ARRAY if isinstance(value, list) else field.types[0]
                writer.add_key_value(field.name, value, kind)
    for key, value in entries.items():
        name = key if key.startswith(("general.", "split.")) else f"stablelm.{key}"
        writer.add_key_value(name, value, GGUFValueType.get_type(value))
    for found in reader.tensors:
        value = tensors.pop(found.name, found.data)
        if value is not None:
            writer.add_tensor(found.name, value, raw_dtype=found.tensor_type if value is found.data else None)
    for name, value in tensors.items():
        kind = None if value.dtype != np.uint8 else GGMLQuantizationType.Q5_K
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("name", ["stablelm-3b-4e1t", "stablelm-2-1_6b", "stablelm-2-12b with norm biases"])
@pytest.mark.parametrize("stated", [True, False, None])
def test_what_a_network_has_follows_from_its_tensors(tmp_path, words, name, stated) -> None:
    """Converters wrote use_parallel_residual = true for every model whose config lacked the key."""
    model = member(name)
    save_gguf(model, words, tmp_path / "x.gguf")
    ours = {"use_parallel_residual": stated, "use_norm_bias": None, "initializer_range": None}
    again, _ = load_gguf(changed(tmp_path / "x.gguf", tmp_path / "y.gguf", ours))
    config = model.config.model_copy(update={"initializer_range": 0.02})
    assert again.config == config
    assert again.config.use_qkv_bias == (name == "stablelm-2-1_6b")
    assert torch.equal(again(torch.arange(9)[None]), model(torch.arange(9)[None]))


def test_biases_that_only_the_loader_wants_and_biases_that_are_meant(tmp_path) -> None:
    save_gguf(member("stablelm-2-12b"), None, tmp_path / "x.gguf")
    assert not load_gguf(tmp_path / "x.gguf")[0].config.use_norm_bias
    unsaid, _ = load_gguf(changed(tmp_path / "x.gguf", tmp_path / "y.gguf", {"use_norm_bias": None}))
    assert unsaid.config.use_norm_bias and not unsaid.model.norm.bias.any()
    one = np.zeros(64, np.float32)
    one[3] = 1
    edited, _ = load_gguf(
        changed(tmp_path / "x.gguf", tmp_path / "z.gguf", tensors={"output_norm.bias": one})
    )
    assert edited.config.use_norm_bias and edited.model.norm.bias[3] == 1
    none = {name: None for name in Header(tmp_path / "x.gguf").tensors if name.endswith("_norm.bias")}
    assert len(none) == 3
    assert not load_gguf(changed(tmp_path / "x.gguf", tmp_path / "n.gguf", tensors=none))[
        0
    ].config.use_norm_bias


def test_what_older_files_leave_out(tmp_path) -> None:
    """llama.cpp's defaults: rotary base 10,000, all dimensions rotated, as many key heads as query heads."""
    model = member("stablelm-3b-4e1t", partial_rotary_factor=1.0)
    save_gguf(model, None, tmp_path / "x.gguf")
    absent = dict.fromkeys(("rope.freq_base", "rope.dimension_count", "attention.head_count_kv"))
    assert_same(model, load_gguf(changed(tmp_path / "x.gguf", tmp_path / "y.gguf", absent))[0])
    lists = {"feed_forward_length": [96, 96], "attention.head_count": [4, 4], "rope.scaling.type": "none"}
    assert_same(model, load_gguf(changed(tmp_path / "x.gguf", tmp_path / "z.gguf", lists))[0])


ZEROS = np.zeros((4, 64), np.float32)


@pytest.mark.parametrize(
    ("entries", "tensors", "message"),
    [
        ({"embedding_length": None}, {}, "'stablelm.embedding_length' is missing"),
        ({"embedding_length": 128}, {}, r"'token_embd.weight' has shape \[320, 64\], .* want \[320, 128\]"),
        ({"embedding_length": 2**31}, {}, "its metadata describe .* parameters, it holds"),
        ({"feed_forward_length": [96, 64]}, {}, "'stablelm.feed_forward_length' differs from layer to layer"),
        ({"block_count": 3}, {}, "its metadata say 3 layers, its tensors are of 2"),
        ({"attention.head_count": 5}, {}, "does not divide into 5 heads"),
        ({"attention.head_count": 0}, {}, "num_attention_heads"),
        ({"attention.head_count_kv": 3}, {}, "cannot share 3"),
        ({"attention.key_length": 32}, {}, "attention.key_length is not embedding_length / head_count, 16"),
        ({"attention.layer_norm_epsilon": float("nan")}, {}, "layer_norm_epsilon' is nan"),
        ({"rope.dimension_count": 32}, {}, "rotates 32 dimensions"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}, "rotary positions are scaled .yarn"),
        ({"rope.scale_linear": 2.0}, {}, "rotary positions are scaled"),
        ({"split.count": 4}, {}, "one of 4 files; join them with `llama-gguf-split --merge`"),
        ({}, {"token_embd.weight": None}, "tensor 'token_embd.weight' is missing"),
        ({}, {"output.weight": None}, "tensor 'output.weight' is missing .*a matrix of its own"),
        ({}, {"blk.1.ffn_up.weight": None}, "tensor 'blk.1.ffn_up.weight' is missing"),
        ({}, {"blk.1.attn_q.bias": np.zeros(64, np.float32)}, "tensor 'blk.1.attn_q.bias' has no place"),
        ({}, {"rope_freqs.weight": np.zeros(8, np.float32)}, "tensor 'rope_freqs.weight'"),
        ({}, {"blk.0.attn_k.weight": ZEROS}, r"attn_k.weight' has shape \[4, 64\], .* want \[64, 64\]"),
        ({}, {"output_norm.weight": np.zeros(32, np.float32)}, "'output_norm.weight' has shape"),
        ({}, {"blk.0.attn_norm.bias": None}, "tensor 'blk.0.attn_norm.bias' is missing"),
    ],
)  # fmt: skip
def test_files_that_contradict_themselves_are_refused(tmp_path, entries, tensors, message) -> None:
    save_gguf(member("stablelm-3b-4e1t"), None, tmp_path / "x.gguf")
    path = changed(tmp_path / "x.gguf", tmp_path / "y.gguf", entries, tensors)
    for use in (load_gguf, describe_gguf):
        with pytest.raises(InputError, match=message) as caught:
            use(path)
        assert str(path) in str(caught.value)


def test_another_architecture_and_another_type(tmp_path) -> None:
    save_gguf(member("stablelm-3b-4e1t", hidden_size=256), None, tmp_path / "x.gguf")
    other = changed(tmp_path / "x.gguf", tmp_path / "l.gguf", architecture="llama")
    with pytest.raises(InputError, match="its architecture is 'llama'; 'stablelm' is wanted"):
        load_gguf(other)
    values = np.zeros((256, 176), np.uint8)  # rows of one block: 256 values in 5 bits
    without = changed(tmp_path / "x.gguf", tmp_path / "w.gguf", tensors={"blk.0.attn_k.weight": None})
    five = changed(without, tmp_path / "5.gguf", tensors={"blk.0.attn_k.weight": values})
    with pytest.raises(
        InputError, match=r"'blk.0.attn_k.weight' is Q5_K; read are F32, F16, BF16, Q8_0, Q4_0, Q4_K"
    ):
        load_gguf(five)
    assert describe_gguf(five)["weights"]["stored_as"]["Q5_K"] == 1  # what it is can be said
    with pytest.raises(InputError, match="is Q5_K"):
        describe_gguf(five, verify=True)
