"""Token files: the bytes GPT-NeoX reads, checked with nothing but `struct`, and every way to be broken."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.data.token_files import TokenFile, TokenFileWriter, token_dtype

FORMATS = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}


def write(prefix, documents, **kind):
    with TokenFileWriter(prefix, **(kind or {"vocab_size": 50_277})) as writer:
        for document in documents:
            writer.add(document)
    return prefix


def independent_read(prefix):
    """Documents and document index by the byte table of the format alone."""
    index, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"\x4d\x4d\x49\x44\x49\x44\x58\x00\x00"
    assert struct.unpack_from("<Q", index, 9) == (1,)
    letter = FORMATS[index[17]]
    (n,), (d,) = struct.unpack_from("<Q", index, 18), struct.unpack_from("<Q", index, 26)
    assert len(index) == 34 + 12 * n + 8 * d
    sizes = struct.unpack_from(f"<{n}i", index, 34)
    offsets = struct.unpack_from(f"<{n}q", index, 34 + 4 * n)
    starts = struct.unpack_from(f"<{d}q", index, 34 + 12 * n)
    documents = [
        list(struct.unpack_from(f"<{size}{letter}", data, at))
        for size, at in zip(sizes, offsets, strict=True)
    ]
    assert sum(sizes) * struct.calcsize(letter) == len(data)
    return documents, starts, letter


def forged(
    prefix,
    sizes,
    *,
    code=8,
    item=2,
    offsets=None,
    starts=None,
    n=None,
    d=None,
    tail=b"",
    version=1,
    data=None,
):
    """A pair written by hand, so that any part of it can be wrong."""
    starts = range(len(sizes) + 1) if starts is None else starts
    if offsets is None:
        offsets = [sum(sizes[:i]) * item for i in range(len(sizes))]
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, *(
        len(v) if given is None else given for v, given in ((sizes, n), (starts, d))
    ))  # fmt: skip
    arrays = struct.pack(f"<{len(sizes)}i", *sizes) + struct.pack(f"<{len(offsets)}q", *offsets)
    Path(f"{prefix}.idx").write_bytes(header + arrays + struct.pack(f"<{len(starts)}q", *starts) + tail)
    Path(f"{prefix}.bin").write_bytes(bytes(max(0, sum(sizes)) * item) if data is None else data)
    return prefix


def test_the_bytes_of_a_small_file(tmp_path):
    write(tmp_path / "x", [[5, 0], [50_276]])
    assert (tmp_path / "x.bin").read_bytes() == bytes.fromhex("0500 0000 64c4")
    assert (tmp_path / "x.idx").read_bytes() == bytes.fromhex(
        "4d4d494449445800 00 0100000000000000 08 0200000000000000 0300000000000000"  # the header
        "02000000 01000000 0000000000000000 0400000000000000"  # lengths, offsets
        "0000000000000000 0100000000000000 0200000000000000"  # the document index
    )  # fmt: skip


@given(
    st.lists(st.lists(st.integers(0, 99_999), max_size=30), max_size=20),
    st.sampled_from([65_499, 65_500, 100_000]),
)
def test_round_trip(tmp_path_factory, documents, vocab_size):
    documents = [[token % vocab_size for token in document] for document in documents]
    prefix = write(tmp_path_factory.mktemp("files") / "x.y", documents, vocab_size=vocab_size)
    read, starts, letter = independent_read(prefix)
    assert read == documents
    assert starts == tuple(range(len(documents) + 1))
    assert letter == ("H" if vocab_size < 65_500 else "i")
    file = TokenFile(prefix)
    stream = [token for document in documents for token in document]
    assert (file.num_documents, file.num_tokens) == (len(documents), len(stream))
    assert [file.document(i).tolist() for i in range(file.num_documents)] == documents
    assert file.tokens(0, len(stream)).tolist() == stream
    assert file.sizes.tolist() == [len(document) for document in documents]
    owners = [i for i, document in enumerate(documents) for _ in document]
    assert [file.document_at(position) for position in range(len(stream))] == owners


@pytest.mark.parametrize(("code", "letter"), FORMATS.items())
def test_every_integer_type_is_read(tmp_path, code, letter):
    values = [1, 2, 100, 0, 7]
    data = struct.pack(f"<5{letter}", *values)
    forged(tmp_path / "x", [2, 3], code=code, item=struct.calcsize(letter), data=data)
    file = TokenFile(tmp_path / "x")
    assert file.tokens(0, 5).tolist() == values
    assert file.document(1).tolist() == [100, 0, 7]


@pytest.mark.parametrize(
    ("vocab_size", "name"), [(1, "uint16"), (65_499, "uint16"), (65_500, "int32"), (100_352, "int32")]
)
def test_the_type_goes_by_the_vocabulary(vocab_size, name):
    assert token_dtype(vocab_size).name == name


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_either_name_opens_the_pair(tmp_path, suffix):
    write(tmp_path / "a.b", [[1, 2, 3]])
    assert TokenFile(f"{tmp_path}/a.b{suffix}").num_tokens == 3


def test_no_documents_at_all(tmp_path):
    file = TokenFile(write(tmp_path / "x", []))
    assert (file.num_tokens, file.num_documents, file.tokens(0, 0).tolist()) == (0, 0, [])
    assert (tmp_path / "x.idx").stat().st_size == 42


def test_what_is_asked_for_is_never_cut_short(tmp_path):
    file = TokenFile(write(tmp_path / "x", [[1, 2], [3]]))
    for start, count in ((0, 4), (3, 1), (-1, 1), (1, -1), (4, 0)):
        with pytest.raises(IndexError, match="of 3"):
            file.tokens(start, count)
    for number in (-1, 2):
        with pytest.raises(IndexError, match="of 2"):
            file.document(number)
    for position in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            file.document_at(position)


def test_the_mapped_tokens_cannot_be_changed(tmp_path):
    tokens = TokenFile(write(tmp_path / "x", [[1, 2, 3]])).tokens(0, 3)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 9


@pytest.mark.parametrize("wrong", [-1, 50_277, 70_000, 2**40])
def test_ids_outside_the_vocabulary_are_refused_not_wrapped(tmp_path, wrong):
    with (
        pytest.raises(InputError, match=f"x: document 1 has the id {wrong}; ids go from 0 to 50,276"),
        TokenFileWriter(tmp_path / "x", vocab_size=50_277) as writer,
    ):
        writer.add([50_276])
        writer.add([1, wrong, 2])
    assert list(tmp_path.iterdir()) == []


def test_types_that_a_token_file_cannot_hold(tmp_path):
    with pytest.raises(InputError, match="cannot hold float32"):
        TokenFileWriter(tmp_path / "x", dtype="float32")
    assert not list(tmp_path.iterdir())


def test_an_unfinished_writer_leaves_no_token_file(tmp_path):
    write(tmp_path / "x", [[1, 2, 3]])
    writer = TokenFileWriter(tmp_path / "x", vocab_size=10)
    writer.add([1])
    with pytest.raises(InputError, match=r"x\.idx: no such file"):
        TokenFile(tmp_path / "x")
    writer.close()
    assert TokenFile(tmp_path / "x").num_tokens == 1


# --- broken files ------------------------------------------------------------------------------------------

BROKEN_INDEX = {
    "another magic": (lambda b: b"MMIDIDY" + b[7:], "does not begin with MMIDIDX"),
    "text": (lambda b: b"hello world", "does not begin with MMIDIDX"),
    "old format": (lambda b: b"TNTIDX\0\0" + b[8:], "old 'cached' format"),
    "empty": (lambda b: b"", "truncated: the header takes 34 bytes, the file has 0"),
    "cut in the magic": (lambda b: b[:5], "truncated: the header takes 34 bytes, the file has 5"),
    "cut in the header": (lambda b: b[:33], "truncated: the header takes 34 bytes, the file has 33"),
    "header only": (lambda b: b[:34], "promises 102 bytes, the file has 34"),
    "cut by one byte": (lambda b: b[:-1], "truncated: .*promises 102 bytes, the file has 101"),
    "one byte more": (lambda b: b + b"x", "promises 102 bytes, the file has 103"),
    "version 2": (lambda b: b[:9] + b"\2" + b[10:], "format version 2"),
    "float 6": (lambda b: b[:17] + b"\6" + b[18:], "dtype code 6 is a floating-point type"),
    "float 7": (lambda b: b[:17] + b"\7" + b[18:], "dtype code 7 is a floating-point type"),
    "dtype 9": (lambda b: b[:17] + b"\x09" + b[18:], "unknown dtype code 9"),
    "dtype 0": (lambda b: b[:17] + b"\0" + b[18:], "unknown dtype code 0"),
    "2**63 sequences": (lambda b: b[:18] + struct.pack("<Q", 2**63) + b[26:], "truncated"),
    "2**64 - 1 entries": (lambda b: b[:26] + struct.pack("<Q", 2**64 - 1) + b[34:], "truncated"),
    "negative length": (lambda b: b[:34] + struct.pack("<i", -2) + b[38:], "document 0 has the length -2"),
    "a longer length": (lambda b: b[:34] + struct.pack("<i", 5) + b[38:], "document 1 is to begin at byte 4"),
    "a wild offset": (
        lambda b: b[:54] + struct.pack("<q", 2**40) + b[62:],
        "document 1 is to begin at byte 1,099,",
    ),
    "first offset": (lambda b: b[:46] + struct.pack("<q", 2) + b[54:], "document 0 is to begin at byte 2"),
    "index from 1": (lambda b: b[:70] + struct.pack("<q", 1) + b[78:], "does not rise from 0"),
    "index falls": (lambda b: b[:78] + struct.pack("<qqq", 2, 1, 3), "does not rise from 0"),
    "index too far": (lambda b: b[:94] + struct.pack("<q", 4), "ends at 4, there are 3"),
}


@pytest.mark.parametrize("name", BROKEN_INDEX)
def test_a_broken_index(tmp_path, name):
    change, message = BROKEN_INDEX[name]
    good = tmp_path / "x.idx"
    write(tmp_path / "x", [[1, 2], [3], [4, 5]])
    assert TokenFile(tmp_path / "x").num_tokens == 5
    assert good.stat().st_size == 34 + 12 * 3 + 8 * 4 == 102
    good.write_bytes(change(good.read_bytes()))
    with pytest.raises(InputError, match=message) as error:
        TokenFile(tmp_path / "x")
    assert str(good) in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated: the index promises 10 bytes, the file has 0"),
        (bytes(9), "truncated: the index promises 10 bytes, the file has 9"),
        (bytes(12), "longer than its index: the index promises 10 bytes, the file has 12"),
    ],
)
def test_a_bin_that_is_not_its_index_s(tmp_path, data, message):
    write(tmp_path / "x", [[1, 2], [3], [4, 5]])
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(InputError, match=rf"x\.bin: {message}"):
        TokenFile(tmp_path / "x")


def test_a_bin_beside_another_index(tmp_path):
    write(tmp_path / "x", [[1, 2], [3], [4, 5]])
    write(tmp_path / "y", [[1, 2], [3], [4, 5]], vocab_size=100_000)
    (tmp_path / "y.bin").rename(tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"x\.bin: longer than its index: the index promises 10 .* has 20"):
        TokenFile(tmp_path / "x")


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_half_a_pair(tmp_path, suffix):
    write(tmp_path / "x", [[1]])
    (tmp_path / f"x.{suffix}").unlink()
    with pytest.raises(InputError, match=rf"x\.{suffix}: no such file"):
        TokenFile(tmp_path / "x")


def test_any_single_changed_byte_of_an_index_is_refused_or_harmless(tmp_path):
    """No flip may crash, or give documents of other lengths than the file was written with."""
    write(tmp_path / "x", [[1, 2], [3], [4, 5]])
    index = tmp_path / "x.idx"
    good = index.read_bytes()
    refused = 0
    for at in range(len(good)):
        for flip in (1, 0x80):
            index.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    file = TokenFile(tmp_path / "x")
            except InputError:
                refused += 1
            else:
                assert file.sizes.tolist() == [2, 1, 2]
                assert file.num_tokens == 5
    assert refused > 1.8 * len(good)


# --- files of others ---------------------------------------------------------------------------------------


def test_a_merged_file_is_read_with_a_warning(tmp_path):
    forged(tmp_path / "x", [2, 1, 3], starts=[0])
    with pytest.warns(UserWarning, match=r"x\.idx: the document index covers 0 of 3 sequences"):
        file = TokenFile(tmp_path / "x")
    assert (file.num_documents, file.num_tokens) == (3, 6)


def test_several_sequences_a_document(tmp_path):
    forged(tmp_path / "x", [2, 1, 3], starts=[0, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = TokenFile(tmp_path / "x")
    assert file.num_documents == 3


def test_modes_of_multimodal_files_are_ignored(tmp_path):
    forged(tmp_path / "x", [2, 1, 3], tail=bytes(3))
    assert TokenFile(tmp_path / "x").num_tokens == 6
    forged(tmp_path / "x", [2, 1, 3], tail=bytes(2))
    with pytest.raises(InputError, match="promises 102 bytes, the file has 104"):
        TokenFile(tmp_path / "x")


def test_a_file_without_even_a_document_index(tmp_path):
    forged(tmp_path / "x", [2], starts=[])
    with pytest.raises(InputError, match="document index ends at 0"):
        TokenFile(tmp_path / "x")


def test_empty_documents_own_no_token(tmp_path):
    file = TokenFile(forged(tmp_path / "x", [0, 2, 0, 0, 1, 0]))
    assert [file.document_at(position) for position in range(3)] == [1, 1, 4]
    assert file.document(2).tolist() == []


def test_more_documents_than_one_check_takes_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("stablelm.data.token_files._CHUNK", 7)
    documents = [list(range(i % 5)) for i in range(100)]
    write(tmp_path / "x", documents)
    file = TokenFile(tmp_path / "x")
    assert [file.document(i).tolist() for i in range(100)] == documents
    index = tmp_path / "x.idx"
    content = bytearray(index.read_bytes())
    content[34 + 4 * 100 + 8 * 50] ^= 1
    index.write_bytes(content)
    with pytest.raises(InputError, match="document 50 is to begin at"):
        TokenFile(tmp_path / "x")
    assert np.array_equal(file.sizes, [len(d) for d in documents])
