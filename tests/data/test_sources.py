"""Readers: exact counts on the hard inputs, every fault named or counted, every file's account balanced."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig
from stablelm.data.accounts import EXAMPLES
from stablelm.data.sources import read_documents, read_texts


def source(*paths, **keys):
    return SourceConfig(name="s", paths=[str(path) for path in paths], **keys)


def parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


# --- the nine hard files -----------------------------------------------------------------------------------

SOUND = {"docs.jsonl.gz": 200, "tree": 3, "docs.parquet": 50, "empty.jsonl": 0, "long_line.jsonl": 1,
         "special_token.jsonl": 7, "near_duplicates.jsonl": 350}  # fmt: skip
BROKEN = {  # kept, reason, where, message
    "truncated.jsonl.zst": (110, "truncated", 111, "line 111: the file ends here, inside a zstd frame"),
    "broken_line.jsonl": (19, "broken JSON", 11, "line 11: not valid JSON"),
    "missing_text.jsonl": (9, "missing key", 4, "line 4: the key 'text' is missing"),
    "invalid_utf8.jsonl": (9, "invalid UTF-8", 6, "line 6: not UTF-8: byte "),
}


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_files(read, shared, name, on_error):
    documents, account = read(shared / "data/corpus/raw" / name, on_error=on_error)
    assert len(documents) == account["read"] == account["kept"] == SOUND[name]
    assert account["errors"] == account["dropped"] == {}
    assert account["empty_files"] == (
        [str(shared / "data/corpus/raw" / name)] if name == "empty.jsonl" else []
    )
    assert all(document.text.strip() for document in documents)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_stop_by_name_and_line(shared, name):
    path = shared / "data/corpus/raw" / name
    kept, _, line, message = BROKEN[name]
    documents = []
    with pytest.raises(InputError) as error:
        for document in read_documents(source(path)):
            documents.append(document)
    assert f"{path}, {message}" in str(error.value)
    assert "`on_error: skip`" in str(error.value)
    assert len(documents) == line - 1 <= kept


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_counted(read, shared, name):
    path = shared / "data/corpus/raw" / name
    kept, reason, line, _ = BROKEN[name]
    documents, account = read(path, on_error="skip")
    assert (len(documents), account["read"]) == (kept, kept + 1)
    assert account["errors"] == {reason: 1}
    assert account["examples"] == {reason: [f"{path}:{line}"]}
    assert line not in [document.number for document in documents]


def test_the_position_of_bytes_that_are_not_utf8(read, shared):
    path = shared / "data/corpus/raw/invalid_utf8.jsonl"
    content = path.read_bytes()
    offset = content.index(b"\xe9 \xff\xfe")
    byte = offset - content.rindex(b"\n", 0, offset)
    with pytest.raises(
        InputError, match=rf"byte {byte:,} of the line, offset {offset:,} in the unpacked file, is 0xe9"
    ):
        read(path)


def test_texts_are_those_of_a_plain_reading(read, shared):
    raw = shared / "data/corpus/raw"
    lines = gzip.decompress((raw / "docs.jsonl.gz").read_bytes()).split(b"\n")[:-1]
    expected = [json.loads(line)["text"] for line in lines]
    assert list(read_texts(source(raw / "docs.jsonl.gz"))) == expected
    table = pq.read_table(raw / "docs.parquet")
    documents, _ = read(raw / "docs.parquet")
    assert [document.text for document in documents] == table["text"].to_pylist()
    assert [document.id for document in documents] == table["id"].to_pylist()
    [long] = read_texts(source(raw / "long_line.jsonl"))
    assert len(long.encode()) == 4_999_997


def test_the_tree_s_order_ids_and_line_ends(read, shared):
    raw = shared / "data/corpus/raw/tree"
    documents, account = read(raw)
    names = ["bartleby.txt", "sub/deeper/goodman-brown.txt", "sub/modest-proposal.txt"]
    assert [document.id for document in documents] == [document.origin for document in documents] == names
    assert [file["path"] for file in account["inputs"]] == [f"{raw}/{name}" for name in names]
    assert not any("\r" in document.text or document.text.startswith("\ufeff") for document in documents)
    assert documents[2].text == (raw / names[2]).read_bytes().decode().replace("\r\n", "\n")
    assert len(documents[1].text.encode()) == (raw / names[1]).stat().st_size - 3


def test_books_and_their_chapters(read, shared):
    """A whole corpus file: documents and bytes as its provenance says, 15 of 34 books cut into chapters."""
    documents, _ = read(shared / "data/corpus/books.jsonl.zst")
    assert len(documents) == 592
    assert sum(len(document.text.encode()) for document in documents) == 12_192_729
    origins = {document.origin for document in documents}
    assert len(origins) == 34
    assert all(origin.endswith(".md") for origin in origins)
    assert sum("#" not in document.id for document in documents) == 19


# --- text files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\rc\nd\n\re\r", "a\nb\nc\nd\n\ne\n"),
        (b"\xef\xbb\xbfx", "x"),
        (b"\xef\xbb\xbf\xef\xbb\xbfx", "\ufeffx"),
        ("é\u2028\x85\x00\x1a".encode(), "é\u2028\x85\x00\x1a"),
        (b"  x\n\n", "  x\n\n"),
    ],
)
def test_only_line_ends_and_the_mark_change(tmp_path, data, text):
    (tmp_path / "x.txt").write_bytes(data)
    assert list(read_texts(source(tmp_path))) == [text]


def test_a_text_file_that_is_not_utf8(read, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine")
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\nna\xefve\n")
    (tmp_path / "c.txt").write_bytes("utf-16".encode("utf-16"))
    with pytest.raises(InputError, match=r"b\.txt, line 3: not UTF-8: offset 10 in the file, is 0xef"):
        read(tmp_path)
    documents, account = read(tmp_path, on_error="skip")
    assert (len(documents), account["errors"]) == (1, {"invalid UTF-8": 2})
    assert account["examples"]["invalid UTF-8"] == [f"{tmp_path}/b.txt:3", f"{tmp_path}/c.txt:1"]


def test_empty_and_blank_text_is_dropped_and_counted(read, json_lines, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "c.txt").write_bytes(b" \r\n\t\n")
    json_lines(
        tmp_path / "d.jsonl", {"text": ""}, {"text": " \n"}, {"text": "x"}, b"\n", b"  \r\n", {"text": "y"}
    )
    documents, account = read(tmp_path)
    assert [document.text for document in documents] == ["x", "y"]
    assert account["dropped"] == {"empty": 5, "blank line": 2}
    assert account["empty_files"] == [f"{tmp_path}/a.txt"]
    assert [file["read"] for file in account["inputs"]] == [1, 1, 1, 6]


# --- JSON lines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b'{"text": "a"', "broken JSON", "line 2: not valid JSON"),
        (b'{"text": "a"} {"text": "b"}', "broken JSON", "Extra data"),
        (b'{"text": "a\tb"}', "broken JSON", "control character"),
        (b"[" * 100_000, "broken JSON", "line 2: not valid JSON"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "broken JSON", "line 2: not valid JSON"),
        (b'["text"]', "wrong type", "line 2: a list, not a JSON object with the key 'text'"),
        (b'"text"', "wrong type", "line 2: a string, not a JSON object"),
        (b"null", "wrong type", "line 2: null, not a JSON object"),
        (b'{"text": null}', "wrong type", "line 2: 'text' is null, not a string"),
        (b'{"text": 5}', "wrong type", "line 2: 'text' is a number, not a string"),
        (b'{"text": true}', "wrong type", "line 2: 'text' is true, not a string"),
        (b'{"text": ["a"]}', "wrong type", "line 2: 'text' is a list, not a string"),
        (b'{"text": {"a": 1}}', "wrong type", "line 2: 'text' is an object, not a string"),
        (b'{"Text": "a"}', "missing key", "line 2: the key 'text' is missing \\(there: 'Text'\\)"),
        (b"{}", "missing key", "line 2: the key 'text' is missing \\(there: none\\)"),
        (b'{"text": "a\\ud83d"}', "lone surrogate", "line 2: character 2 of 'text' is half a surrogate pair"),
        (b'{"text": "\xc3"}', "invalid UTF-8", "line 2: not UTF-8: byte 11 of the line"),
        (b'{"text": "\xed\xa0\xbd"}', "invalid UTF-8", "line 2: not UTF-8: byte 11 of the line"),
    ],
)
def test_a_bad_line_between_good_ones(read, json_lines, tmp_path, line, reason, message):
    path = json_lines(tmp_path / "x.jsonl", {"text": "first"}, line + b"\n", {"text": "last"})
    with pytest.raises(InputError, match=message):
        read(path)
    documents, account = read(path, on_error="skip")
    assert [document.text for document in documents] == ["first", "last"]
    assert account["errors"] == {reason: 1}
    assert account["examples"] == {reason: [f"{path}:2"]}


def test_text_in_json_is_taken_as_it_is(tmp_path):
    text = "\ufeffa\r\nb\rc\x00\u2028😀"
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"text": text}).encode() + b"\r\n" + json.dumps({"text": text}).encode()
    )
    assert list(read_texts(source(path))) == [text, text]


def test_lines_of_any_length_without_a_last_line_end(read, json_lines, tmp_path):
    texts = ["x" * n for n in (1, 16_383, 16_384, 16_385, 1_000_000, 3)]
    path = json_lines(tmp_path / "x.jsonl", *({"text": text} for text in texts))
    path.write_bytes(path.read_bytes()[:-1])
    documents, _ = read(path)
    assert [document.text for document in documents] == texts
    assert [document.number for document in documents] == [1, 2, 3, 4, 5, 6]


def test_keys_and_suffixes_that_are_named(read, json_lines, tmp_path):
    path = json_lines(tmp_path / "x.data", {"body": "one", "key": "k1"}, {"body": "two", "key": "k2"})
    with pytest.raises(InputError, match=r"x\.data: the suffix does not tell its format"):
        read(path)
    documents, _ = read(path, format="jsonl", text_key="body", id_key="key")
    assert [(document.id, document.text) for document in documents] == [("k1", "one"), ("k2", "two")]
    with pytest.raises(InputError, match="the key 'text' is missing"):
        read(path, format="jsonl")


def test_ids_and_origins(read, json_lines, tmp_path):
    ids = [
        "book.md#3",
        "book.md#4",
        "book.md",
        "C#/x.cs#1",
        "a.md#2#1",
        "#1",
        "",
        None,
        17,
        True,
        ["x"],
        "r:dir/a#b/c",
    ]
    path = json_lines(tmp_path / "x.jsonl", *({"id": i, "text": "t"} for i in ids), {"text": "t"})
    documents, _ = read(path)
    assert [document.id for document in documents] == [
        "book.md#3", "book.md#4", "book.md", "C#/x.cs#1", "a.md#2#1", "#1", "x.jsonl:7", "x.jsonl:8", "17",
        "x.jsonl:10", "x.jsonl:11", "r:dir/a#b/c", "x.jsonl:13",
    ]  # fmt: skip
    assert [document.origin for document in documents] == [
        "book.md", "book.md", "book.md", "C#/x.cs", "a.md", "#1", "x.jsonl:7", "x.jsonl:8", "17",
        "x.jsonl:10", "x.jsonl:11", "r:dir/a#b/c", "x.jsonl:13",
    ]  # fmt: skip


def test_only_a_few_examples_are_kept(read, json_lines, tmp_path):
    path = json_lines(tmp_path / "x.jsonl", *([b"{\n"] * 1000))
    _, account = read(path, on_error="skip")
    assert account["errors"] == {"broken JSON": 1000}
    assert account["examples"]["broken JSON"] == [f"{path}:{i}" for i in range(1, EXAMPLES + 1)]


# --- Parquet -----------------------------------------------------------------------------------------------


def test_parquet_types_of_text(read, tmp_path):
    texts = ["one", "two", "three"]
    for number, kind in enumerate(
        [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
    ):
        parquet(
            tmp_path / f"{number}.parquet", {"text": pa.array(texts, pa.string()).cast(kind), "id": [1, 2, 3]}
        )
    documents, _ = read(tmp_path)
    assert [document.text for document in documents] == texts * 4
    assert [document.id for document in documents] == ["1", "2", "3"] * 4


def test_parquet_rows_that_are_broken(read, tmp_path):
    path = parquet(
        tmp_path / "x.parquet",
        {"text": pa.array([b"a", None, b"", b"\xff", b"b"], pa.binary())}, row_group_size=2,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"x\.parquet, row 2: 'text' is null"):
        read(path)
    documents, account = read(path, on_error="skip")
    assert [(document.id, document.text) for document in documents] == [
        ("x.parquet:1", "a"),
        ("x.parquet:5", "b"),
    ]
    assert account["errors"] == {"wrong type": 1, "invalid UTF-8": 1}
    assert account["dropped"] == {"empty": 1}
    assert account["examples"]["invalid UTF-8"] == [f"{path}:4"]


def test_parquet_without_the_column(read, tmp_path):
    path = parquet(tmp_path / "x.parquet", {"body": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"the key 'text' is missing \(there: 'body'\)"):
        read(path)
    assert read(path, on_error="skip")[1]["errors"] == {"missing key": 3}
    assert len(read(path, text_key="body")[0]) == 3


def test_parquet_that_is_none(read, tmp_path):
    whole = parquet(tmp_path / "x.parquet", {"text": ["a"] * 100}).read_bytes()
    for content in (b"not parquet at all", whole[:-1], whole[: len(whole) // 2], b"PAR1"):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.parquet: not a Parquet file"):
            read(tmp_path)
        _, account = read(tmp_path, on_error="skip")
        assert (account["read"], account["errors"]) == (1, {"unreadable": 1})


def test_parquet_with_a_damaged_row_group(read, tmp_path):
    texts = [f"text {i} " * 50 for i in range(90)]
    options = {"row_group_size": 30, "use_dictionary": False, "write_page_checksum": True}
    path = parquet(tmp_path / "x.parquet", {"text": texts}, **options)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet, row 31: the row cannot be read"):
        read(path)
    documents, account = read(path, on_error="skip")
    assert [document.text for document in documents] == texts[:30] + texts[60:]
    assert (account["read"], account["errors"]) == (90, {"unreadable": 30})
    assert documents[-1].number == 90


def test_parquet_with_nothing_in_it(read, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    parquet(tmp_path / "b.parquet", {"text": pa.array([], pa.string())})
    documents, account = read(tmp_path)
    assert documents == []
    assert account["empty_files"] == [f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet"]


# --- surroundings --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_file_that_may_not_be_read_stops_in_both_modes(read, tmp_path, monkeypatch, suffix, on_error):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / f"x.{suffix}").write_text("x")
    monkeypatch.setattr("stablelm.data.inputs.open", refuse, raising=False)
    with pytest.raises(InputError, match=rf"x\.{suffix}: cannot be read \(Permission denied\)"):
        read(tmp_path, on_error=on_error)


@pytest.mark.parametrize("module", ["zstandard", "pyarrow"])
def test_a_missing_extra_gives_the_install_line(read, tmp_path, monkeypatch, module):
    path = {"zstandard": "x.jsonl.zst", "pyarrow": "x.parquet"}[module]
    (tmp_path / path).write_bytes(b"anything")
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(InputError, match=r'pip install "stablelm\[data\]"'):
        read(tmp_path, on_error="skip")


def test_the_hash_of_every_input_is_in_the_account(read, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"abc")
    _, account = read(tmp_path)
    assert account["inputs"] == [{
        "path": f"{tmp_path}/x.txt", "bytes": 3, "empty": False,
        "unit": "file", "read": 1, "kept": 1, "dropped": {}, "errors": {},
        "read_bytes": 3, "kept_bytes": 3, "dropped_bytes": {}, "error_bytes": {}, "unlabelled": 0,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }]  # fmt: skip
