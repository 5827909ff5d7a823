"""What the tests of the data room share: readers whose account is checked, and prepared directories."""

import json

import pytest

from stablelm.config.recipe import DataRecipe, SourceConfig
from stablelm.config.schema import validate
from stablelm.data.accounts import SourceAccount
from stablelm.data.manifest import FORMAT, Dataset, seal
from stablelm.data.preparation import prepare
from stablelm.data.sources import read_documents
from stablelm.data.token_files import TokenFileWriter
from stablelm.storage import sha256_file, write_manifest
from stablelm.tokenizer import train_tokenizer


@pytest.fixture
def read():
    """`read(path, …, on_error=…, format=…)` → documents and account, the sums checked file by file."""

    def documents_and_account(*paths, on_error="stop", **keys):
        account = SourceAccount()
        source = SourceConfig(name="s", paths=[str(path) for path in paths], **keys)
        documents = list(read_documents(source, ".", on_error, account))
        for file in account.files:
            assert file.read == file.kept + sum(file.dropped.values()) + sum(file.errors.values()), file
        assert sum(file.kept for file in account.files) == len(documents)
        return documents, account.as_dict()

    return documents_and_account


@pytest.fixture
def json_lines():
    """`json_lines(path, record, …)` writes one record a line (bytes as they are) and returns the path."""

    def write(path, *records):
        lines = (r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records)
        path.write_bytes(b"".join(lines))
        return path

    return write


@pytest.fixture
def make_dataset(tmp_path):
    """`make_dataset(name=[document, …], held_out={name: …})` → Dataset; documents are lists of ids.

    Written without reader and tokenizer, so that every token's place is known."""

    def make(*, folder="prepared", held_out=None, vocabulary=100_000, **sources):
        path = tmp_path / folder
        path.mkdir()
        (path / "tokenizer.json").write_text('{"stands": "for a tokenizer"}')
        records = {}
        for name, documents in sources.items():
            (path / name).mkdir()
            record = {"licence": "CC0-1.0", "url": "", "dropped": {}, "errors": {}, "empty_files": [],
                      "read": len(documents), "kept": len(documents)}  # fmt: skip
            for side, texts in (("train", documents), ("held_out", (held_out or {}).get(name, []))):
                record[side] = {
                    "documents": len(texts),
                    "tokens": sum(map(len, texts)),
                    "bytes": 10 * len(texts),
                }
                if texts or side == "train":
                    with TokenFileWriter(path / name / side, vocab_size=vocabulary) as writer:
                        for text in texts:
                            writer.add(text)
                    names = "".join(f'"{name}-{side}-{number}"\n' for number in range(len(texts)))
                    (path / name / f"{side}.ids").write_text(names)
            records[name] = record
        tokenizer = {"sha256": sha256_file(path / "tokenizer.json"), "size": vocabulary, "eod_id": 0}
        about = {"format": FORMAT, "version": 1, "append_eod": True, "tokenizer": tokenizer}
        write_manifest(path, seal({**about, "sources": records}))
        return Dataset(path)

    return make


@pytest.fixture
def split():
    """`split(first, lengths)` → documents of consecutive ids."""

    def documents(first, lengths):
        result = []
        for length in lengths:
            result.append(list(range(first, first + length)))
            first += length
        return result

    return documents


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory):
    """A real tokenizer of 290 ids."""
    path = tmp_path_factory.mktemp("tokenizer") / "small"
    train_tokenizer(["the cat sat on the mat with a hat"] * 50, 290, path)
    return path


@pytest.fixture
def run(tmp_path, small_tokenizer):
    """`run(name=[paths] or {…}, …)` prepares tmp_path/out and opens it."""

    def prepared(*, out="out", tokenizer=None, progress=None, recipe=None, **sources):
        values = {
            "out": str(tmp_path / out), "tokenizer": str(tokenizer or small_tokenizer), **(recipe or {}),
            "sources": [
                {"name": name, **(about if isinstance(about, dict) else {"paths": list(map(str, about))})}
                for name, about in sources.items()
            ],
        }  # fmt: skip
        return Dataset(prepare(validate(DataRecipe, values, "recipe"), progress=progress))

    return prepared
