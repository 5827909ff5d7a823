"""Addresses: files that fsspec opens are read as local ones are, and what cannot be opened is one message."""

import gzip
import json
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig
from stablelm.data.accounts import SourceAccount
from stablelm.data.discovery import find_files
from stablelm.data.pieces import pieces, read_piece
from stablelm.data.sources import read_documents


@pytest.fixture
def store():
    """`store(name=bytes, …)` puts files under a fresh address and returns it."""
    system, folder = fsspec.filesystem("memory"), f"/test-{uuid.uuid4().hex}"

    def put(files):
        for name, data in files.items():
            system.pipe_file(f"{folder}/{name}", data)
        return f"memory:/{folder}"

    yield put
    system.rm(folder, recursive=True)


def lines(*values):
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


@pytest.fixture
def everything(tmp_path):
    """Files of every kind, by name."""
    table = pa.table({"text": ["p1", "p2", "p3"]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1)
    for name, make in (("f.arrow", pa.ipc.new_file), ("s.arrow", pa.ipc.new_stream)):
        with make(tmp_path / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.jsonl").write_bytes(lines(*(f"line {n}" for n in range(50))))
    (tmp_path / "b/y.jsonl.gz").write_bytes(gzip.compress(lines("packed")))
    (tmp_path / "b.txt").write_bytes(b"text")
    (tmp_path / "b/.hidden.txt").write_bytes(b"hidden")
    (tmp_path / "b/picture.png").write_bytes(b"png")
    return {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def in_pieces(path, target):
    config, total, documents = SourceConfig(name="s", paths=[path]), SourceAccount(), []
    for piece in pieces(find_files(config, ".", total.ignored), target):
        account = SourceAccount()
        documents += read_piece(piece, config, "stop", account)
        total.merge(account)
    return [(d.text, d.id, d.number, d.size) for d in documents], total.as_dict()


def test_a_store_is_read_as_a_folder_is(store, everything, tmp_path):
    here, there = in_pieces(str(tmp_path), 10**9), in_pieces(store(everything), 10**9)
    assert here[0] == there[0]
    assert here[1]["ignored"] == there[1]["ignored"] == {"hidden": 1, ".png": 1}
    for key in ("sha256", "bytes", "read", "kept", "read_bytes"):
        assert [f[key] for f in here[1]["inputs"]] == [f[key] for f in there[1]["inputs"]]


@pytest.mark.parametrize("target", [1, 100, 300])
def test_a_store_in_pieces(store, everything, target):
    address = store(everything)
    assert in_pieces(address, target) == in_pieces(address, 10**9)


def test_patterns_and_single_files(read, store, everything):
    address = store(everything)
    assert [d.id for d in read(f"{address}/b/x.jsonl")[0]][:2] == ["x.jsonl:1", "x.jsonl:2"]
    assert {d.id.split(":")[0] for d in read(f"{address}/*/*.jsonl*")[0]} == {"b/x.jsonl", "b/y.jsonl.gz"}
    assert [d.id for d in read(f"{address}/**/*.txt")[0]] == ["b.txt"]
    documents, account = read(f"{address}/b/", f"{address}/b/x.jsonl")
    assert len(documents) == 51
    assert account["ignored"]["named before"] == 1
    with pytest.raises(InputError, match="no file to read"):
        read(f"{address}/*.zip")
    with pytest.raises(InputError, match="the suffix does not tell its format"):
        read(f"{address}/b/picture.png")
    with pytest.raises(InputError, match="nothing-here: no such file or folder"):
        read(f"{address}/nothing-here")


def test_a_fault_names_the_address_and_the_line(read, store):
    address = store({"x.jsonl": lines("a") + b"{\n"})
    with pytest.raises(InputError, match=rf"{address.split('/')[-1]}/x\.jsonl, line 2: not valid JSON"):
        read(address)


def test_a_stored_file_that_changed(store):
    address = store({"x.jsonl": lines(*"abcdefgh")})
    config = SourceConfig(name="s", paths=[address])
    made = pieces(find_files(config, ".", SourceAccount().ignored), 30)
    assert len(made) > 1
    store({"x.jsonl": lines(*"abcdefgX")})
    with pytest.raises(InputError, match=r"x\.jsonl: changed since it was found .its time stamp differs"):
        list(read_piece(made[1], config, "stop", SourceAccount()))


def test_file_addresses_are_local_paths(read, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines("one"))
    for path in (f"file://{tmp_path}", f"file://{tmp_path}/a.jsonl", f"file://{tmp_path}/*.jsonl"):
        documents, account = read(path, tmp_path / "a.jsonl")
        assert [document.text for document in documents] == ["one"]
        assert account["ignored"] == {"named before": 1}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("foo://bucket/x.jsonl", "foo://bucket/x.jsonl: Protocol not known: foo"),
        ("simplecache::memory://x.jsonl", "chained addresses are not supported"),
        ("memory://no-such-folder/*.jsonl", "no file to read"),
    ],
)
def test_addresses_that_lead_nowhere(read, path, message):
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs")])
def test_a_missing_package_is_named(read, monkeypatch, protocol, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    for name, entry in list(fsspec.registry.items()):
        if entry.__module__.startswith(package):
            monkeypatch.delitem(fsspec.registry.target, name)
    with pytest.raises(InputError, match=rf"reading {protocol}:// needs `pip install {package}`"):
        read(f"{protocol}://bucket/x.jsonl")


@pytest.mark.parametrize("when", ["info", "open", "read"])
def test_a_store_that_fails_is_one_message(read, store, monkeypatch, when):
    class Failure(Exception):
        """Clients raise errors of their own, which are no OSErrors."""

    def fail(*_, **__):
        raise Failure("403 Forbidden\nRequestId: 17")

    address = store({"x.jsonl": lines("a")})
    target = fsspec.implementations.memory.MemoryFile if when == "read" else type(fsspec.filesystem("memory"))
    monkeypatch.setattr(target, {"read": "read", "open": "open", "info": "info"}[when], fail)
    with pytest.raises(InputError, match=r"x\.jsonl: cannot be read \(403 Forbidden\)\. Check the address"):
        read(f"{address}/x.jsonl")


@pytest.mark.parametrize("name", ["t.parquet", "f.arrow", "s.arrow", "b/x.jsonl", "b/y.jsonl.gz", "b.txt"])
def test_a_store_that_fails_half_way_is_no_fault_of_the_data(store, everything, monkeypatch, name):
    """Not counted in "skip": what could not be fetched is not broken."""
    real = fsspec.implementations.memory.MemoryFile.read
    for good in range(9):
        calls = iter(range(99))

        def read(self, *arguments, calls=calls, good=good):
            if next(calls) >= good:
                raise TimeoutError("timed out")
            return real(self, *arguments)

        config = SourceConfig(name="s", paths=[f"{store(everything)}/{name}"])
        account = SourceAccount()
        with monkeypatch.context() as patch:
            patch.setattr(fsspec.implementations.memory.MemoryFile, "read", read)
            try:
                list(read_documents(config, ".", "skip", account))
            except InputError as error:
                assert "cannot be read (timed out)" in str(error)  # noqa: PT017
        assert account.as_dict()["errors"] == {}


def test_a_consumer_s_own_error_is_not_called_a_reader_s(store):
    address = store({"x.jsonl": lines("a", "b")})
    with pytest.raises(ZeroDivisionError):
        for _ in read_documents(SourceConfig(name="s", paths=[address])):
            1 / 0  # noqa: B018
