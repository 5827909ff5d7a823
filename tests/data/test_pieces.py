"""Pieces: whatever the target, they are the whole reading: documents, ids, numbers, faults and accounts."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig
from stablelm.data.accounts import SourceAccount
from stablelm.data.discovery import find_files
from stablelm.data.pieces import Piece, pieces, read_piece
from stablelm.data.sources import read_documents


def source(*paths, **keys):
    return SourceConfig(name="s", paths=[str(path) for path in paths], **keys)


def seen(document):
    return (
        document.text, document.id, document.origin, document.number, document.url, document.label,
        document.date, document.size, document.file.path,
    )  # fmt: skip


def whole(config):
    account = SourceAccount()
    return [seen(d) for d in read_documents(config, ".", "skip", account)], account.as_dict()


def in_pieces(config, target, on_error="skip"):
    """All pieces in order, each read as another process would: from JSON, with an account of its own."""
    total, documents = SourceAccount(), []
    for piece in pieces(find_files(config, ".", total.ignored), target):
        told = Piece.from_dict(json.loads(json.dumps(piece.as_dict())))
        assert told == piece
        account = SourceAccount()
        documents += [seen(document) for document in read_piece(told, config, on_error, account)]
        for file in account.files:
            file.balance()
        total.merge(SourceAccount.from_dict(json.loads(json.dumps(account.as_dict()))))
    return documents, total.as_dict()


LINE = st.one_of(
    st.text(max_size=40).map(lambda text: json.dumps({"text": text}).encode()),
    st.text(max_size=40).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode()),
    st.builds(lambda i: json.dumps({"text": "x", "id": i}).encode(), st.integers(0, 9)),
    st.sampled_from([b"", b" ", b"\r", b"{", b"null", b'{"text": 1}', b'{"no": 1}', b"\xff\xfe"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=12), ended=st.booleans(), target=st.integers(1, 120), mark=st.booleans())
def test_json_lines_in_pieces_of_any_size(tmp_path, lines, ended, target, mark):
    data = b"\xef\xbb\xbf" * mark + b"\n".join(lines) + b"\n" * ended
    (tmp_path / "x.jsonl").write_bytes(data)
    (tmp_path / "y.txt").write_bytes(b"a text of its own")
    expected = whole(source(tmp_path))
    assert in_pieces(source(tmp_path), target) == expected


def test_long_lines_and_reading_blocks(tmp_path):
    """Lines around the planner's and the reader's block sizes, and one longer than any target."""
    sizes = [1, (1 << 16) - 30, 1 << 16, 1 << 20, (1 << 20) + 7, 3, 3, 3_000_000, 2]
    text = b"".join(json.dumps({"text": "é" * n}, ensure_ascii=False).encode() + b"\n" for n in sizes)
    (tmp_path / "x.jsonl").write_bytes(text)
    expected = whole(source(tmp_path))
    assert len(expected[0]) == len(sizes)
    for target in (1, 1 << 16, 1 << 20, 2_000_000, 10_000_000):
        assert in_pieces(source(tmp_path), target) == expected


def test_pieces_are_of_about_the_target(tmp_path):
    line = json.dumps({"text": "x" * 87}).encode() + b"\n"
    (tmp_path / "x.jsonl").write_bytes(line * 1000)
    made = pieces(find_files(source(tmp_path), ".", Counter()), 10 * len(line))
    assert [piece.size for piece in made] == [10 * len(line)] * 100
    assert [piece.spans[0].first for piece in made] == [*range(0, 1000, 10)]


def test_small_files_share_a_piece_and_large_ones_do_not(tmp_path):
    for number, size in enumerate((10, 10, 10, 100, 10, 250, 10)):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * size)
    made = pieces(find_files(source(tmp_path), ".", Counter()), 100)
    assert [[span.file.id for span in piece.spans] for piece in made] == [
        ["0.txt", "1.txt", "2.txt"], ["3.txt"], ["4.txt"], ["5.txt"], ["6.txt"],
    ]  # fmt: skip
    assert in_pieces(source(tmp_path), 100) == whole(source(tmp_path))


def test_no_files_no_pieces():
    assert pieces([], 100) == []


def test_a_fault_in_a_later_piece_names_its_line(tmp_path, json_lines):
    records = [{"text": f"text {n}"} for n in range(100)]
    path = json_lines(tmp_path / "x.jsonl", *records, b'{"text": "half\n', *records)
    for target in (1, 50, 1000, 10**6):
        documents = []
        with pytest.raises(InputError, match=r"x\.jsonl, line 101: not valid JSON"):
            documents += in_pieces(source(path), target, on_error="stop")[0]
    documents, account = in_pieces(source(path), 500)
    assert documents[-1][1] == "x.jsonl:201"
    assert account["examples"] == {"broken JSON": [f"{path}:101"]}


def test_the_byte_position_in_a_later_piece(tmp_path, json_lines):
    path = json_lines(tmp_path / "x.jsonl", *[{"text": "é"}] * 50, b'{"text": "\xff"}\n')
    at = path.read_bytes().index(b"\xff")
    for target in (20, 10**6):
        with pytest.raises(InputError, match=rf"line 51: not UTF-8: byte 11 of the line, offset {at:,} in"):
            in_pieces(source(path), target, on_error="stop")


ROWS = [f"row {n} " * (n % 7 + 1) for n in range(60)]


def table_file(folder, kind, columns, rows=9):
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, folder / "x.parquet", row_group_size=rows)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, folder / "x.feather", chunksize=rows, compression="lz4")
    else:
        make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with make(folder / "x.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)


@pytest.mark.parametrize("kind", ["parquet", "file", "stream", "feather"])
@pytest.mark.parametrize("target", [1, 300, 1000, 10**6])
def test_tables_in_pieces(tmp_path, kind, target):
    texts = [*ROWS[:20], None, "", *ROWS[20:]]
    table_file(tmp_path, kind, {"n": [*range(62)], "text": texts})
    expected = whole(source(tmp_path))
    assert len(expected[0]) == 60
    assert (expected[1]["errors"], expected[1]["dropped"]) == ({"wrong type": 1}, {"empty": 1})
    assert in_pieces(source(tmp_path), target) == expected
    if target == 1:
        assert len(pieces(find_files(source(tmp_path), ".", Counter()), 1)) == 7


@pytest.mark.parametrize("target", [1, 30_000, 10**7])
def test_the_hard_files_in_pieces(shared, target):
    raw = shared / "data/corpus/raw"
    names = (
        "broken_line.jsonl", "docs.jsonl.gz", "docs.parquet", "empty.jsonl", "invalid_utf8.jsonl",
        "missing_text.jsonl", "special_token.jsonl", "truncated.jsonl.zst", "tree",
    )  # fmt: skip
    paths = [raw / name for name in names]
    config = source(*paths)
    expected = whole(config)
    assert expected[1]["kept"] == 19 + 200 + 50 + 9 + 9 + 7 + 110 + 3
    assert in_pieces(config, target) == expected


def test_a_file_that_changed_after_the_cut(tmp_path, json_lines):
    path = json_lines(tmp_path / "x.jsonl", *[{"text": "x" * 50}] * 40)
    made = pieces(find_files(source(path), ".", Counter()), 500)
    account = SourceAccount()
    assert len(list(read_piece(made[0], source(path), "skip", account))) == 8
    path.write_bytes(path.read_bytes() + b'{"text": "more"}\n')
    with pytest.raises(
        InputError, match=r"x\.jsonl: changed since it was found \(2,\d+ bytes then, 2,\d+ now\)"
    ):
        list(read_piece(made[1], source(path), "skip", account))


def test_a_file_that_changes_while_it_is_read(tmp_path, json_lines):
    path = json_lines(tmp_path / "x.jsonl", *[{"text": "x" * 50}] * 4000)
    reading = read_documents(source(path))
    next(reading)
    with open(path, "r+b") as file:
        file.write(b"{")
    __import__("os").utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="changed since it was found .its time stamp differs"):
        list(reading)
