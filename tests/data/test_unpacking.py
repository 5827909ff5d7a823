"""Compressed files: whatever is cut, damaged or padded, every whole line arrives and the rest is named."""

import gzip
import itertools
import json
import tracemalloc
import zlib

import pytest
import zstandard

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig
from stablelm.data.sources import read_documents


def texts(result):
    return [document.text for document in result[0]]


RECORDS = [{"text": f"document number {i} " * 40} for i in range(200)]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def packed(kind, data):
    return gzip.compress(data) if kind == "gz" else zstandard.compress(data)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_cut_at_any_byte_nothing_is_lost_in_silence(read, tmp_path, kind):
    whole = packed(kind, LINES)
    path = tmp_path / f"x.jsonl.{kind}"
    for length in [*range(1, 40), *range(40, len(whole), 97), len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="ends here, inside a"):
            read(path)
        documents, account = read(path, on_error="skip")
        assert account["errors"] == {"truncated": 1}
        assert [document.text for document in documents] == [r["text"] for r in RECORDS[: len(documents)]]
    path.write_bytes(whole)
    assert read(path)[1]["kept"] == 200


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_all_whole_lines_before_a_cut_are_kept(read, tmp_path, kind):
    path = tmp_path / f"x.jsonl.{kind}"
    first = packed(kind, LINES)
    path.write_bytes(first + packed(kind, LINES)[:11])  # the second frame is cut in its beginning
    documents, account = read(path, on_error="skip")
    assert len(documents) == 200
    assert (account["read"], account["errors"]) == (201, {"truncated": 1})


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_several_frames_and_lines_across_them(read, tmp_path, kind):
    cuts = [0, 1, 1000, 1001, len(LINES) - 1, len(LINES)]
    frames = [packed(kind, LINES[a:b]) for a, b in itertools.pairwise(cuts)]
    (tmp_path / f"x.jsonl.{kind}").write_bytes(b"".join(frames))
    assert texts(read(tmp_path / f"x.jsonl.{kind}")) == [record["text"] for record in RECORDS]


def test_padding_after_a_gzip_member_and_skippable_zstd_frames(read, tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(LINES) + bytes(1000))
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    (tmp_path / "x.jsonl.zst").write_bytes(skippable + zstandard.compress(LINES) + skippable)
    assert read(tmp_path)[1]["kept"] == 400


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_damaged_or_wrong_file_is_corrupt(read, tmp_path, kind):
    path = tmp_path / f"x.jsonl.{kind}"
    for content in (b"plain text\n" * 10, packed(kind, LINES) + b"trailing rubbish that is no frame"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.jsonl\.\w+, line \d+: the .* cannot be unpacked"):
            read(path)
        assert read(path, on_error="skip")[1]["errors"] == {"corrupt": 1}
    damaged = bytearray(gzip.compress(LINES))
    damaged[-6] ^= 1  # in the checksum: every line is read before it is noticed
    (tmp_path / "y.jsonl.gz").write_bytes(damaged)
    documents, account = read(tmp_path / "y.jsonl.gz", on_error="skip")
    assert account["errors"] == {"corrupt": 1}
    assert len(documents) <= 200


def test_compressed_text_and_upper_case_suffixes(read, tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\r\ntwo"))
    (tmp_path / "b.MD.ZST").write_bytes(zstandard.compress(b"three"))
    (tmp_path / "c.PY").write_bytes(b"four")
    assert texts(read(tmp_path)) == ["one\ntwo", "three", "four"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\r\ntwo" * 100)[:-3])
    documents, account = read(tmp_path, on_error="skip")
    assert (len(documents), account["errors"]) == (2, {"truncated": 1})


def test_memory_is_that_of_a_document_not_of_the_file(tmp_path):
    compressor = zlib.compressobj(wbits=31)
    record = json.dumps({"text": "x" * 100_000}).encode() + b"\n"
    (tmp_path / "x.jsonl.gz").write_bytes(
        b"".join(compressor.compress(record) for _ in range(600)) + compressor.flush()
    )
    tracemalloc.start()
    count = sum(1 for _ in read_documents(SourceConfig(name="s", paths=[str(tmp_path)])))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 600
    assert peak < 10e6, "60 MB of text were held at once"
