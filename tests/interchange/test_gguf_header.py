"""The front of a GGUF file: what it says is read, what it lies about is refused, before memory is spent."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError, preset
from stablelm.interchange.gguf import describe_gguf, is_gguf, load_gguf, save_gguf
from stablelm.interchange.gguf_header import Header
from stablelm.model import StableLM
from stablelm.tokenizer import train_tokenizer

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims=(4,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    path: Path, entries=(), tensors=(), data=b"", version=3, counts=None, magic=b"GGUF", align=32
) -> Path:
    counts = counts or (len(tensors), len(entries))
    front = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    path.write_bytes(front + bytes(-len(front) % align) + data)
    return path


def test_every_type_of_value(tmp_path: Path) -> None:
    plain = {
        U8: ("B", 200), I8: ("b", -3), U16: ("H", 65_000), I16: ("h", -300), U32: ("I", 4_000_000_000),
        I32: ("i", -70_000), U64: ("Q", 2**63), I64: ("q", -(2**40)),
    }  # fmt: skip
    entries = [
        entry(f"k{kind}", kind, struct.pack(f"<{code}", value)) for kind, (code, value) in plain.items()
    ]
    entries += [
        entry("f", F32, struct.pack("<f", 1e-5)),
        entry("d", F64, struct.pack("<d", 0.1)),
        entry("yes", BOOL, b"\1"),
        entry("word", STRING, text("naïve ▁")),
        entry("none", ARRAY, struct.pack("<IQ", STRING, 0)),
        entry("words", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("") + text("ü")),
        entry("ids", ARRAY, struct.pack("<IQ3i", I32, 3, 1, -2, 3)),
        entry("same", ARRAY, struct.pack("<IQ2I", U32, 2, 8, 8)),
    ]
    header = Header(gguf(tmp_path / "x", entries, [tensor("t", (4, 2))], bytes(range(32))))
    for kind, (_, value) in plain.items():
        assert header.integer(f"k{kind}") == value
    assert header.number("f") == 1e-5
    assert header.number("d") == 0.1
    assert header.number("k1") == -3.0
    assert header.flag("yes") and header.flag("absent", True)
    assert header.text("word") == "naïve ▁"
    assert header.texts("words") == ["a", "", "ü"]
    assert header.texts("none") == []
    assert header.numbers("ids").tolist() == [1, -2, 3]
    assert header.integer("same") == 8
    assert (header.version, header.alignment) == (3, 32)
    found = header.tensors["t"]
    assert (found.shape, found.type, found.nbytes) == ((2, 4), "F32", 32)
    assert bytes(header.data[found.offset : found.offset + 32]) == bytes(range(32))
    for wrong in (
        lambda: header.integer("word"), lambda: header.integer("ids"), lambda: header.number("yes"),
        lambda: header.flag("k0"), lambda: header.text("f"), lambda: header.texts("ids"),
        lambda: header.numbers("words"), lambda: header.integer("absent"), lambda: header.integer("words"),
        lambda: header.integer("none"), lambda: header.integer("yes"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="x: "):
            wrong()


def test_another_alignment_and_version_2(tmp_path: Path) -> None:
    entries = [entry("general.alignment", U32, struct.pack("<I", 64))]
    tensors = [tensor("a", (1,)), tensor("b", (1,), offset=64)]
    header = Header(gguf(tmp_path / "x", entries, tensors, bytes(68), version=2, align=64))
    assert [t.offset % 64 for t in header.tensors.values()] == [0, 0]


HUGE = 2**63
PAIR = [tensor("a"), tensor("b", offset=32)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(magic=b"GGML"), "not a GGUF file"),
        (dict(version=1), "GGUF version 1; versions 2 and 3"),
        (dict(version=4), "GGUF version 4"),
        (dict(version=3 << 24), "big-endian"),
        (dict(version=0), "GGUF version 0"),
        (dict(counts=(HUGE, 0)), "promises 9,223,372,036,854,775,808 tensors"),
        (dict(counts=(0, 70_000)), "promises 70,000 metadata entries"),
        (dict(counts=(0, 60_000), data=b""), "truncated or damaged: .* wants 4 bytes from byte 32 on"),
        (dict(counts=(3, 0), data=b""), "truncated or damaged: tensor '' wants 4 bytes from byte 32 on"),
        (dict(entries=[entry("k", STRING, struct.pack("<Q", HUGE))]), "truncated or damaged: k wants 9,223"),
        (dict(entries=[struct.pack("<Q", 2**64 - 1)]), "metadata key 0 wants"),
        (dict(entries=[entry("k", ARRAY, struct.pack("<IQ", U32, 2**62))]), "truncated or damaged: k wants"),
        (dict(entries=[entry("k", ARRAY, struct.pack("<IQ", STRING, 2**62))]), "damaged: k wants"),
        (dict(entries=[entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "the array 'k' holds values"),
        (dict(entries=[entry("k", ARRAY, struct.pack("<IQ", 99, 1))]), "unreadable type 99"),
        (dict(entries=[entry("k", 13, b"")]), "the value of 'k' has the unknown type 13"),
        (dict(entries=[entry("k", BOOL, b"\2")]), "neither true nor false"),
        (dict(entries=[entry(b"\xff", U8, b"\0")]), "metadata key 0 at byte 32 is not UTF-8"),
        (dict(entries=[entry("k", U8, b"\0")] * 2), "the metadata key 'k' occurs twice"),
        (dict(entries=[entry("general.alignment", U32, struct.pack("<I", 0))]), "general.alignment is 0"),
        (dict(entries=[entry("general.alignment", U32, struct.pack("<I", 24))]), "general.alignment is 24"),
        (dict(entries=[entry("general.alignment", U32, struct.pack("<I", 4))]), "general.alignment is 4"),
        (dict(entries=[entry("general.alignment", STRING, text("32"))]), "alignment' is not a whole"),
        (dict(tensors=[tensor("a")] * 2), "tensor 'a' occurs twice"),
        (dict(tensors=[tensor("a", ())]), "tensor 'a' has 0 dimensions"),
        (dict(tensors=[tensor("a", (1,) * 5)]), "tensor 'a' has 5 dimensions"),
        (dict(tensors=[tensor("a", (4, 0))]), r"tensor 'a' of shape \[4, 0\] cannot be F32"),
        (dict(tensors=[tensor("a", (48,), 2)]), r"tensor 'a' of shape \[48\] cannot be Q4_0"),
        (dict(tensors=[tensor("a", (4,), 999)]), "tensor 'a' has the unknown type 999"),
        (dict(tensors=[tensor("a", offset=8)]), "tensor 'a' starts at 8, not a multiple of 32"),
        (dict(tensors=[tensor("a", (2**40, 2**40))]), "truncated: tensor 'a' ends at byte"),
        (dict(tensors=[tensor("a", offset=HUGE)]), "truncated: tensor 'a' ends at byte 9,223"),
        (dict(tensors=PAIR, data=bytes(47)), "truncated: tensor 'b' ends at byte"),
        (dict(tensors=[tensor("a", (9,)), tensor("b", offset=32)]), "tensors 'a' and 'b' overlap"),
        (dict(tensors=[tensor("a"), tensor("b")]), "overlap"),
    ],
)  # fmt: skip
def test_a_lie_is_refused_by_name(tmp_path: Path, changes, message: str) -> None:
    path = gguf(tmp_path / "model.gguf", **{"data": bytes(64), **changes})
    with pytest.raises(InputError, match=message) as caught:
        Header(path)
    assert str(path) in str(caught.value)


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    for size in (0, 3, 4, 23):
        (tmp_path / "x").write_bytes(b"GGUF"[:size] + bytes(max(0, size - 4)))
        assert is_gguf(tmp_path / "x") is (size >= 4)
        with pytest.raises(InputError, match="too few for a GGUF file"):
            Header(tmp_path / "x")
    for other in (tmp_path, tmp_path / "absent"):
        assert not is_gguf(other)
        with pytest.raises(InputError, match="no such file, or not a file"):
            Header(other)
    (tmp_path / "model.gguf").write_text("GGML is another thing, with the name of this one")
    assert not is_gguf(tmp_path / "model.gguf")


def test_without_the_extra_the_install_line_is_printed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match=r'pip install "stablelm\[gguf\]"'):
        Header(gguf(tmp_path / "x"))
    assert is_gguf(tmp_path / "x")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[bytes, int, Path]:
    """A small model's file, the length of its front, and a folder to damage it in."""
    folder = tmp_path_factory.mktemp("fuzz")
    tokenizer = train_tokenizer(["the cat sat on the mat, and the other cat sat there too " * 2], 290)
    config = preset("stablelm-1m", num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=300)
    save_gguf(StableLM(config, seed=3), tokenizer, folder / "x.gguf", dtype="q8_0")
    header = Header(folder / "x.gguf")
    return header.data.tobytes(), min(t.offset for t in header.tensors.values()), folder


NUMBERS = st.one_of(
    st.integers(0, 70), st.sampled_from([2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
)


@settings(max_examples=150)
@given(data=st.data())
def test_any_damage_is_our_error_or_a_sound_model(sound, data) -> None:
    """Never a crash, never memory beyond what a file of this size may cost (arrays and numbers of a lie)."""
    content, front, folder = sound
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(0, front - 1))] = data.draw(st.integers(0, 255))
    # lengths, counts and types are 8 or 4 bytes long, and small: find one and write another over it
    zeros = [at for at in range(4, front - 8) if content[at] and content[at + 2 : at + 8] == bytes(6)]
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.sampled_from(zeros))
        broken[at : at + 8] = struct.pack("<Q", data.draw(NUMBERS))
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(0, len(broken))) :]
    (folder / "y.gguf").write_bytes(broken)
    tracemalloc.start()
    try:
        model, _ = load_gguf(folder / "y.gguf")
        describe_gguf(folder / "y.gguf")
    except InputError as error:
        if str(folder / "y.gguf") not in str(error):
            raise
    else:
        assert sum(p.numel() for p in model.parameters()) <= 2 * len(broken)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < (1 << 20) + 20 * len(content), f"{peak:,} bytes for a file of {len(broken):,}"


def test_a_private_mapping(tmp_path: Path) -> None:
    """Training what was loaded changes memory, not the file."""
    config = preset("stablelm-1m", num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=64)
    save_gguf(StableLM(config, seed=3), None, tmp_path / "x.gguf")
    before = (tmp_path / "x.gguf").read_bytes()
    model, _ = load_gguf(tmp_path / "x.gguf")
    first = model.lm_head.weight.detach().numpy().copy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert np.array_equal(model.lm_head.weight.detach().numpy(), first + 1)
    assert (tmp_path / "x.gguf").read_bytes() == before
