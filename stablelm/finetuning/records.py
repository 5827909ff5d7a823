"""Records of examples out of files: JSON lines, a JSON list, Parquet, plain text, or what `datasets` reads.

Each comes with its place, for messages. A file that cannot be read to its end stops the run, whatever the
policy for single records: nobody knows what is missing. One record in memory at a time, but for a JSON list
and a data set's batch of 64 rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.config.finetune import SOURCE, ExamplesConfig
from stablelm.config.recipe import SourceConfig
from stablelm.data.documents import AGAIN, first_line
from stablelm.data.hub import dataset_rows
from stablelm.data.unpacking import BrokenFile, Lines, unpacked
from stablelm.storage import refuse_dead_link
from stablelm.storage.json_lines import decoded, parsed_lines

_CHUNK = 1 << 20
_PACKED = (".gz", ".zst")
_LINES, _LIST, _TEXT = (".jsonl", ".ndjson"), (".json",), (".txt", ".md")
KINDS = ", ".join((*_LINES, *_LIST, ".parquet", *_TEXT))


def read_records(path: str, data: ExamplesConfig) -> Iterator[tuple[str, Any]]:
    """Place and value of each record of a file, folder or data set.

    `InputError` for what is not there, cannot be read or is of no known kind."""
    file = Path(path)
    refuse_dead_link(file)
    known = (*_PACKED, *_LINES, *_LIST, ".parquet", *_TEXT)
    if not file.exists() and file.suffix.lower() in known:
        raise InputError(f"{path}: no such file. Correct the path.")
    if not file.is_file():
        source = SourceConfig(
            name=SOURCE, paths=[path], format="datasets", split=data.split, subset=data.subset
        )
        yield from dataset_rows(path, source)
        return
    packing = file.suffix.lower() if file.suffix.lower() in _PACKED else ""
    kind = Path(file.stem).suffix.lower() if packing else file.suffix.lower()
    if kind == ".parquet" and not packing:
        yield from _parquet(file)
    elif kind in _LINES:
        yield from ((where, value) for _, where, value in parsed_lines(Lines(_bytes(file, packing)), path))
    elif kind in _LIST:
        yield from _json(b"".join(_bytes(file, packing)), path)
    elif kind in _TEXT:
        yield path, {"text": decoded(b"".join(_bytes(file, packing)), path)}
    else:
        raise InputError(
            f"{path}: of no kind that examples are read from: {KINDS} (each but Parquet also .gz or .zst), "
            "or a folder for `datasets`. Give the file the ending of its kind."
        )


def _bytes(file: Path, packing: str) -> Iterator[bytes]:
    with open(file, "rb") as handle:
        chunks = iter(lambda: handle.read(_CHUNK), b"")
        try:
            yield from unpacked(chunks, packing, str(file)) if packing else chunks
        except BrokenFile as error:
            raise InputError(f"{file}: {error.what}. {AGAIN}") from None


def _json(content: bytes, path: str) -> Iterator[tuple[str, Any]]:
    """A list of records or a single one; or, since some call it so, JSON lines."""
    text = decoded(content, path)
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if text.lstrip().startswith("["):
            raise InputError(f"{path}: not valid JSON ({error}). Was the file cut off?") from None
        yield from ((where, value) for _, where, value in parsed_lines(content.splitlines(True), path))
        return
    records = found if isinstance(found, list) else [found]
    yield from ((f"{path}, record {number:,}", record) for number, record in enumerate(records, 1))


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(f'{file}: reading tables needs `pip install "stablelm[data]"`.') from None
    number = 0
    with open(file, "rb") as handle:
        try:
            table = ParquetFile(handle, page_checksum_verification=True)
            for batch in table.iter_batches(256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number:,}", row
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            what = f"row {number + 1:,} cannot be read" if number else "not a Parquet file"
            raise InputError(f"{file}: {what} ({first_line(error)}). {AGAIN}") from None
