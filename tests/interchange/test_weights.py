"""safetensors headers that lie, and weights that do not fit: refused by name, before anything is
allocated."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from stablelm.config import InputError, preset
from stablelm.interchange.weights import DTYPES, build_model, read_header, read_headers, read_tensor
from stablelm.model import StableLM

CONFIG = preset("stablelm-1m", num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=64)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return dict(StableLM(CONFIG, seed=3).state_dict())


def with_header(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_header_says_what_the_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(
        {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.zeros(())},
        file,
        {"k": "v"},
    )
    header = read_header(file)
    assert {name: (t.dtype, t.shape, t.file) for name, t in header.items()} == {
        "a": (torch.float32, (2, 3), file), "b": (torch.bfloat16, (4,), file), "c": (torch.float32, (), file),
    }  # fmt: skip
    with_header(file, {"a": entry()}, bytes(8))
    assert read_header(file)["a"].shape == (2,)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, bytes(7), r"truncated: tensor 'a' ends at byte \d+, the file has \d+"),
        ({"a": entry()}, bytes(9), "1 bytes after its last tensor"),
        ({"a": entry(shape=(3,))}, bytes(8), r"tensor 'a' of shape \[3\] does not fill its bytes"),
        (
            {"a": entry(dtype="I64", offsets=(0, 16))},
            bytes(16),
            "tensor 'a' is I64; weights are one of F64, F32",
        ),
        ({"a": entry(dtype="F8_E4M3", offsets=(0, 2))}, bytes(2), "F8_E4M3"),
        ({"a": entry(dtype=["F32"])}, bytes(8), "entry for 'a' is broken"),
        ({"a": entry(shape=(-2, -1))}, bytes(8), "entry for 'a' is broken"),
        ({"a": entry(shape=(2.0,))}, bytes(8), "entry for 'a' is broken"),
        ({"a": entry(shape=(True, 2))}, bytes(8), "entry for 'a' is broken"),
        ({"a": entry(offsets=(8, 0))}, bytes(8), "does not fill"),
        ({"a": entry(offsets=(0, 4, 8))}, bytes(8), "entry for 'a' is broken"),
        ({"a": entry(offsets="ab")}, bytes(8), "entry for 'a' is broken"),
        ({"a": {"dtype": "F32"}}, b"", "entry for 'a' is broken"),
        ({"a": 5}, b"", "entry for 'a' is broken"),
        ({"a": entry(shape=(1 << 40, 1 << 40), offsets=(0, 1 << 82))}, b"", "truncated: tensor 'a'"),
        ([1, 2], b"", "header is not a table"),
        (b"{'a': 1}", b"", "header is not JSON"),
        (b"\xff\xfe\xff", b"", "header is not JSON"),
        (b"[" * 100_000, b"", "header is not JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", b"", "not JSON|broken"),
    ],
)
def test_a_lying_header_is_refused_by_name(tmp_path: Path, header, data: bytes, message: str) -> None:
    file = with_header(tmp_path / "model.safetensors", header, data)
    with pytest.raises(InputError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**9, 100, 3])
def test_a_header_length_is_checked_before_it_is_read(tmp_path: Path, length: int) -> None:
    file = with_header(tmp_path / "x", {"a": entry()}, bytes(8), length)
    with pytest.raises(InputError, match="truncated, or not a safetensors file|not JSON"):
        read_header(file)
    for size in (0, 5, 8):
        file.write_bytes(bytes([9]) * size)
        with pytest.raises(InputError, match="truncated, or not a safetensors file"):
            read_header(file)


def test_missing_files_and_double_tensors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: cannot be read"):
        read_header(tmp_path / "gone")
    for name in ("one", "two"):
        with_header(tmp_path / name, {"a": entry()}, bytes(8))
    with pytest.raises(InputError, match="two: tensor 'a' is also in one"):
        read_headers([tmp_path / "one", tmp_path / "two"])


def built(folder: Path, tensors: dict, dtype=None, config=CONFIG) -> StableLM:
    save_file(tensors, folder / "x.safetensors")
    return build_model(config, read_header(folder / "x.safetensors"), folder, dtype, "cpu", StableLM)


@pytest.mark.parametrize("dtype", [None, *DTYPES.values()])
def test_weights_are_those_of_the_file_in_the_precision_asked_for(tmp_path: Path, tensors, dtype) -> None:
    model = built(tmp_path, tensors, dtype)
    for name, value in model.state_dict().items():
        assert value.dtype == (dtype or torch.float32)
        assert torch.equal(value, tensors[name].to(value.dtype)), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_can_be_trained_without_touching_the_file(tmp_path: Path, tensors) -> None:
    model = built(tmp_path, tensors)
    before = (tmp_path / "x.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (tmp_path / "x.safetensors").read_bytes() == before
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"] + 1)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, tensors) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    short = {n: t for n, t in tensors.items() if n != name}
    with pytest.raises(InputError, match=f"tensor '{name}' is missing"):
        built(tmp_path, short)
    with pytest.raises(
        InputError, match=r"tensor 'model.layers.0.input_layernorm.bias' \(and 4 more\) is missing"
    ):
        built(tmp_path, {n: t for n, t in tensors.items() if "layernorm" not in n and n != "model.norm.bias"})
    with pytest.raises(InputError, match=f"tensor '{name}.scales' has no place"):
        built(tmp_path, tensors | {f"{name}.scales": torch.zeros(3)})
    with pytest.raises(InputError, match=rf"'{name}' has shape \[256, 31\], config.json wants \[256, 32\]"):
        built(tmp_path, tensors | {name: tensors[name][:, 1:].contiguous()})
    built(tmp_path, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})


def test_an_absurd_config_is_refused_at_once(tmp_path: Path, tensors) -> None:
    for changes in (dict(num_hidden_layers=10**12), dict(hidden_size=2**40), dict(vocab_size=2**50)):
        with pytest.raises(InputError, match="belongs to another model"):
            built(tmp_path, tensors, config=CONFIG.model_copy(update=changes))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_our_error_or_the_same_model(tmp_path_factory, tensors, data) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(save(tensors))
    size = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    (folder / "x.safetensors").write_bytes(content)
    try:
        found = read_header(folder / "x.safetensors")
        model = build_model(CONFIG, found, folder, None, "cpu", StableLM)
    except InputError:
        return
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in tensors.items()}


def in_pieces(folder: Path, pieces: dict[str, tuple[tuple[int, ...], torch.Tensor]]) -> list[Path]:
    """One file a piece, named, with its offset, as PyTorch's distributed writer notes it."""
    for name, (offset, piece) in pieces.items():
        notes = {"DCP_SHARDING_INFO": json.dumps({"a": {"saved_offsets": list(offset)}})}
        save_file({"a": piece.contiguous()}, folder / name, notes)
    return [folder / name for name in pieces]


def test_pieces_are_put_together_from_any_grid(tmp_path: Path) -> None:
    whole = torch.arange(35.0).reshape(5, 7)
    cuts = {"0": ((0, 0), whole[:2, :4]), "1": ((0, 4), whole[:2, 4:]),
            "2": ((2, 0), whole[2:, :4]), "3": ((2, 4), whole[2:, 4:])}  # fmt: skip
    tensors = read_headers(in_pieces(tmp_path, {**cuts, "none": ((5, 0), whole[5:])}))
    assert tensors["a"].shape == (5, 7)
    assert sorted(file.name for file in tensors["a"].files) == ["0", "1", "2", "3"]
    assert torch.equal(read_tensor("a", tensors["a"]), whole)


@pytest.mark.parametrize(
    "pieces",
    [
        {"0": ((0,), 3), "2": ((6,), 3)},
        {"1": ((3,), 3), "2": ((6,), 3)},
        {"0": ((0,), 3), "1": ((3,), 3), "2": ((3,), 3)},
        {"0": ((0,), 4), "1": ((3,), 3)},
        {"1": ((3,), 3)},
    ],
)
def test_pieces_that_do_not_fill_the_whole_are_refused(tmp_path: Path, pieces: dict) -> None:
    files = in_pieces(tmp_path, {name: (at, torch.zeros(n)) for name, (at, n) in pieces.items()})
    with pytest.raises(InputError, match="pieces of tensor 'a' do not fill it"):
        read_headers(files)


@pytest.mark.parametrize(
    "notes",
    ["[", "[]", *(json.dumps({"a": v}) for v in (3, *({"saved_offsets": o} for o in ([-1], [0, 0], ["0"]))))],
)
def test_broken_notes_on_pieces_are_refused(tmp_path: Path, notes: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x", {"DCP_SHARDING_INFO": notes})
    with pytest.raises(InputError, match=r"x: the header's (notes|entry for 'a')"):
        read_headers([tmp_path / "x"])
