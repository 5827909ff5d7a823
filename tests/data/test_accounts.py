"""Accounts: exact in documents and bytes, the same through JSON, and an error rate that stops."""

import gzip
import json

import pytest
import zstandard

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig
from stablelm.data.accounts import FileAccount, SourceAccount, refuse_errors
from stablelm.data.sources import read_documents


def unpacked_size(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return len(data)


LINES = [
    "broken_line.jsonl", "docs.jsonl.gz", "invalid_utf8.jsonl", "missing_text.jsonl", "long_line.jsonl",
    "special_token.jsonl", "truncated.jsonl.zst", "empty.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_the_bytes_are_those_of_the_unpacked_file(read, shared, name):
    path = shared / "data/corpus/raw" / name
    documents, account = read(path, on_error="skip")
    [file] = account["inputs"]
    assert file["read_bytes"] == unpacked_size(path)
    parts = file["kept_bytes"] + sum(file["dropped_bytes"].values()) + sum(file["error_bytes"].values())
    assert file["read_bytes"] == parts
    assert file["kept_bytes"] == sum(document.size for document in documents)
    assert file["bytes"] == path.stat().st_size


def test_the_bytes_of_a_table_are_those_of_its_texts(read, shared):
    documents, account = read(shared / "data/corpus/raw/docs.parquet")
    assert account["read_bytes"] == sum(len(document.text.encode()) for document in documents)


def test_through_json(shared):
    account = SourceAccount()
    config = SourceConfig(name="s", paths=[str(shared / "data/corpus/raw")])
    list(read_documents(config, ".", "skip", account))
    told = json.loads(json.dumps(account.as_dict()))
    assert SourceAccount.from_dict(told).as_dict() == told
    assert SourceAccount.from_dict(told) == account


def test_an_unbalanced_account_is_our_fault():
    file = FileAccount("x", 10, read=2, kept=1, read_bytes=5, kept_bytes=5)
    with pytest.raises(AssertionError, match="read 2 documents, accounted for 1"):
        file.balance()
    file.kept = 2
    file.balance()
    file.read_bytes = 6
    with pytest.raises(AssertionError, match="read 6 bytes, accounted for 5"):
        file.balance()


def test_a_filter_s_decision_moves_a_document():
    account = SourceAccount()
    file = account.open("x", 10, "line")
    file.read, file.read_bytes = 2, 30
    file.keep(10)
    file.keep(20)
    account.reject(file, 2, "gopher quality: too few words", 20)
    file.balance()
    assert (file.kept, file.kept_bytes) == (1, 10)
    assert file.dropped_bytes == {"gopher quality: too few words": 20}
    assert account.examples == {"gopher quality: too few words": ["x:2"]}


def test_merging_leaves_the_parts_alone():
    one, two = SourceAccount(), SourceAccount()
    for account in (one, two):
        file = account.open("x", 10, "line")
        file.read = file.kept = 1
    total = SourceAccount()
    total.merge(one)
    total.merge(two)
    assert (total.files[0].read, one.files[0].read, two.files[0].read) == (2, 1, 1)


def accounts(**errors):
    made = {}
    for name, (read, count) in errors.items():
        made[name] = SourceAccount()
        file = made[name].open(f"{name}.jsonl", 1, "line")
        file.read, file.kept = read, read - count
        for number in range(count):
            made[name].fault("skip", file, number + 1, "broken JSON", "", "")
    return made


def test_the_error_rate():
    refuse_errors(accounts(a=(1000, 1), b=(5, 0), c=(0, 0)), 0.001)
    with pytest.raises(
        InputError, match=r"'a': 2 of 1,000 documents \(0\.20%\) could not be read, more than"
    ) as error:
        refuse_errors(accounts(a=(1000, 2), b=(100_000, 1)), 0.001)
    assert "0.10% allows: 2 × broken JSON (first at a.jsonl:1)" in str(error.value)
    assert "'b'" not in str(error.value)
    with pytest.raises(InputError, match="'small': 1 of 10 documents"):
        refuse_errors(accounts(large=(10**6, 0), small=(10, 1)), 0.001)
    refuse_errors(accounts(a=(10, 10)), 1.0)
    with pytest.raises(InputError):
        refuse_errors(accounts(a=(10**9, 1)), 0.0)
