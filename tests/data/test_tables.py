"""Arrow files and streams, nested columns, addresses and labels in tables; Parquet's own tests are with the
sources."""

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from stablelm.config import InputError

TEXTS = [f"row {n} of a table" for n in range(40)]


def arrow(path, columns, rows=10, kind="stream"):
    table = pa.table(columns)
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def texts(result):
    return [document.text for document in result[0]]


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow(read, tmp_path, kind):
    path = arrow(
        tmp_path / "x.arrow", {"id": [*range(40)], "text": TEXTS, "url": [f"u{n}" for n in range(40)]}
    )
    documents, account = read(path)
    assert texts((documents, account)) == TEXTS
    assert (documents[7].id, documents[7].url, documents[7].number) == ("7", "u7", 8)
    assert account["read_bytes"] == account["kept_bytes"] == len("".join(TEXTS))
    assert len(account["inputs"][0]["sha256"]) == 64


@pytest.mark.parametrize("compression", ["lz4", "zstd", "uncompressed"])
def test_feather(read, tmp_path, compression):
    path = tmp_path / "x.feather"
    pyarrow.feather.write_feather(pa.table({"text": TEXTS}), path, compression=compression, chunksize=7)
    assert texts(read(path)) == TEXTS


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_an_arrow_file_cut_at_any_place(read, tmp_path, kind):
    path = arrow(tmp_path / "x.arrow", {"text": TEXTS}, kind=kind)
    whole = path.read_bytes()
    for length in [*range(1, len(whole), 8), len(whole) - 8, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(
            InputError, match=r"x\.arrow(, row \d+)?: .*(not an Arrow file|cannot be read|cut off)"
        ):
            read(path)
        documents, account = read(path, on_error="skip")
        assert account["errors"] == {"unreadable": 1}
        assert [document.text for document in documents] == TEXTS[: len(documents)]


def test_a_stream_that_ends_between_two_batches_is_noticed(read, tmp_path):
    path = arrow(tmp_path / "x.arrow", {"text": TEXTS})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"x\.arrow, row 41: the stream ends here, without its end mark"):
        read(path)
    assert texts(read(path, on_error="skip")) == TEXTS


def test_arrow_that_is_none(read, tmp_path):
    for content in (b"x", b"not arrow at all" * 10, b"FEA1" + bytes(50) + b"FEA1", b"ARROW1" + bytes(20)):
        (tmp_path / "x.arrow").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.arrow: not an Arrow file"):
            read(tmp_path)
    (tmp_path / "x.arrow").write_bytes(b"")
    assert read(tmp_path)[1]["empty_files"] == [f"{tmp_path}/x.arrow"]
    arrow(tmp_path / "x.arrow", {"text": pa.array([], pa.string())})
    assert read(tmp_path)[1]["empty_files"] == [f"{tmp_path}/x.arrow"]


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "binary", "large_binary", "binary_view"]
)
def test_types_of_text_and_their_bytes(read, tmp_path, kind):
    column = pa.array(["one", None, "zwölf", ""], pa.string()).cast(getattr(pa, kind)())
    path = arrow(tmp_path / "x.arrow", {"text": column})
    documents, account = read(path, on_error="skip")
    assert texts((documents, account)) == ["one", "zwölf"]
    assert [document.size for document in documents] == [3, 6]
    assert (account["read"], account["read_bytes"], account["kept_bytes"]) == (4, 9, 9)
    assert (account["errors"], account["error_bytes"]) == ({"wrong type": 1}, {"wrong type": 0})


@pytest.mark.parametrize("column", [[1, 2], [["a"], ["b"]], [True, False], [{"a": 1}, None], [1.5, None]])
def test_columns_of_other_types(read, tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet, row 1: 'text' is .*, not a string"):
        read(tmp_path)
    assert read(tmp_path, on_error="skip")[1]["errors"] == {"wrong type": 2}


def test_bytes_that_are_not_utf8_in_any_column(read, tmp_path):
    bad = pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary())
    arrow(tmp_path / "a.arrow", {"text": pa.array(["a", "bb", "c"]), "id": bad})
    arrow(tmp_path / "b.arrow", {"text": bad})
    forced = pa.Array.from_buffers(pa.string(), 3, bad.buffers())
    arrow(tmp_path / "c.arrow", {"text": pa.array(["a", "bb", "c"]), "url": forced})
    arrow(tmp_path / "d.arrow", {"text": forced})
    documents, account = read(tmp_path, on_error="skip")
    assert texts((documents, account)) == ["a", "c", "ok", "fine", "a", "c", "ok", "fine"]
    assert account["errors"] == {"invalid UTF-8": 4}
    assert account["error_bytes"] == {"invalid UTF-8": 8}
    assert account["examples"]["invalid UTF-8"] == [f"{tmp_path}/{name}.arrow:2" for name in "abcd"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_dotted_paths_into_structures(read, tmp_path, kind):
    sets = ["Web", "Web", "Books3", "Web"]
    rows = [
        {"body": f"text {n}", "about": {"id": f"k{n}", "url": f"u{n}", "set": name}}
        for n, name in enumerate(sets)
    ]
    rows.append(None)
    table = pa.table({"n": [*range(5)], "doc": rows})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    else:
        arrow(tmp_path / "x.arrow", {name: table[name] for name in table.column_names}, rows=2)
    documents, account = read(
        tmp_path, on_error="skip", text_key="doc.body", id_key="doc.about.id", url_key="doc.about.url",
        label_key="doc.about.set", exclude=["books_3"],
    )  # fmt: skip
    assert [(d.text, d.id, d.url, d.label) for d in documents] == [
        (f"text {n}", f"k{n}", f"u{n}", "Web") for n in (0, 1, 3)
    ]
    assert account["dropped"] == {"excluded: books_3": 1}
    assert account["errors"] == {"wrong type": 1}
    assert account["read_bytes"] == 24
    with pytest.raises(InputError, match=r"the key 'doc\.nothing' is missing"):
        read(tmp_path, text_key="doc.nothing")
    with pytest.raises(InputError, match=r"the key 'doc\.body\.deep' is missing"):
        read(tmp_path, text_key="doc.body.deep")


def test_a_column_whose_name_has_a_dot(read, tmp_path):
    pq.write_table(pa.table({"a.b": ["dotted"], "a": ["plain"]}), tmp_path / "x.parquet")
    assert texts(read(tmp_path, text_key="a.b")) == ["dotted"]


def test_large_rows_come_in_small_batches(read, tmp_path):
    long = ["x" * 300_000 + str(n) for n in range(40)]
    pq.write_table(pa.table({"text": long, "id": [*range(40)]}), tmp_path / "x.parquet")
    arrow(tmp_path / "x.arrow", {"text": long})
    assert texts(read(tmp_path)) == long * 2


@pytest.mark.parametrize("name", ["x.parquet.gz", "x.arrow.zst"])
def test_tables_are_not_read_packed(read, tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "y.txt").write_text("y")
    assert read(tmp_path)[1]["ignored"] == {"." + name.rsplit(".", 1)[1]: 1}
    with pytest.raises(InputError, match="is not read from .* Unpack it first"):
        read(tmp_path / name)
