"""Damaged headers: always our error or a sound file, never a crash, never memory beyond the file's size."""

import json
import struct
import tracemalloc
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from stablelm.config import InputError
from stablelm.data.token_files import TokenFile, TokenFileWriter
from stablelm.interchange.weights import read_header

SLACK = 1 << 20
"""Bytes that opening any file may cost whatever its size: buffers, messages, a parser's tables."""
NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]),
)


def opened_soundly(open_it, size):
    """Opens; returns the result or None for an `InputError`. Anything else, or memory beyond, fails."""
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = open_it()
    except InputError:
        found = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < SLACK + 20 * size, f"{peak:,} bytes for a file of {size:,}"
    return found


def damaged(data, content: bytes, header: int) -> bytes:
    """`content` with some bytes of its header changed, a number written over, its end cut or extended."""
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, header - 8))
        broken[at : at + 8] = struct.pack("<Q", data.draw(NUMBERS) % 2**64)
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(0, len(broken))) :]
    return bytes(broken) + data.draw(st.binary(max_size=20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=400)
@given(data=st.data())
def test_safetensors_bytes(folder, data):
    content = save({"a": torch.zeros(3, 4), "b.c": torch.ones(7, dtype=torch.bfloat16)})
    broken = damaged(data, content, 8 + int.from_bytes(content[:8], "little"))
    (folder / "x.safetensors").write_bytes(broken)
    found = opened_soundly(lambda: read_header(folder / "x.safetensors"), len(broken))
    if found is not None:  # whatever it is called now, all of it lies inside the file
        held = sum(t.dtype.itemsize * int(torch.tensor(t.shape).prod()) for t in found.values())
        assert held <= len(broken)


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.sampled_from(["F32", "BF16", "I64"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=400)
@given(
    header=st.dictionaries(st.sampled_from(["__metadata__", "a", "b"]), VALUES, max_size=3), tail=st.binary()
)
def test_safetensors_headers_of_another_shape(folder, header, tail):
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + tail
    (folder / "y.safetensors").write_bytes(content)
    opened_soundly(lambda: read_header(folder / "y.safetensors"), len(content))


@settings(max_examples=400)
@given(data=st.data())
def test_token_indexes(folder, data):
    with TokenFileWriter(folder / "t", vocab_size=50_277) as writer:
        for document in ([1, 2, 3], [4], [], [5, 6]):
            writer.add(document)
    content = (folder / "t.idx").read_bytes()
    broken = damaged(data, content, len(content))
    (folder / "t.idx").write_bytes(broken)
    found = opened_soundly(lambda: TokenFile(folder / "t"), len(broken))
    if found is not None:
        assert found.num_tokens * found.dtype.itemsize == (folder / "t.bin").stat().st_size
        for number in range(found.num_documents):
            found.document(number)
