"""Data sets read through the `datasets` library: saved ones, local folders, and names on the Hub.

A folder written by `save_to_disk` is one file whose rows can be cut. A folder of data files and a name on the
Hub are streamed, a shard at a time, each shard a file of its own; a name is pinned to the commit that was
found, so no later push changes what is read. Code that comes with a data set is never run."""

import contextlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig
from stablelm.data.documents import AGAIN, Document, Intake, first_line
from stablelm.data.inputs import InputFile, Span
from stablelm.data.tables import row_documents
from stablelm.storage import fingerprint

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_ROWS = 64


class _BrokenDataError(Exception):
    """Data that cannot be read to the end."""


def find_dataset(entry: str, root: Path, source: SourceConfig) -> list[InputFile]:
    """The shards of one entry of `paths`: one for a saved data set, else those of its split."""
    library = _library(entry)
    folder = root / os.path.expanduser(entry)
    name = "/".join(part for part in (entry.rstrip("/").split("/")[-1], source.subset, source.split) if part)
    if saved := _saved_folder(folder, entry, source):
        return [InputFile(str(saved), entry, name, "datasets", *_state(saved))]
    location = str(folder) if folder.is_dir() else entry
    stamp = _state(folder)[1] if folder.is_dir() else f"commit {_commit(entry, source)}"
    with _explained(entry, source):
        stream = _stream(library, location, stamp, source)
    shown = f"{entry}, {name}, shard"
    return [
        InputFile(location, f"{shown} {shard + 1}", f"{name}/{shard}", "datasets", 0, stamp, shard)
        for shard in range(stream.num_shards)
    ]


def cut_dataset(file: InputFile, target: int) -> list[Span]:
    """Spans of about `target` bytes of a saved data set."""
    try:
        with _explained(file.shown, None, saved=True):
            rows = len(_library(file.shown).load_from_disk(file.location))
    except _BrokenDataError:
        return [Span(file, size=file.size)]  # reading it will say why
    count = max(1, min(rows, -(-file.size // max(1, target))))
    cuts = [rows * number // count for number in range(count + 1)]
    if count == 1:
        return [Span(file, size=file.size)]
    return [Span(file, a, b, a, file.size // count) for a, b in pairwise(cuts)]


def read_dataset(span: Span, intake: Intake) -> Iterator[Document]:
    """The documents of a shard, or of rows of a saved data set."""
    library, file, source, number = _library(span.file.shown), span.file, intake.source, span.first
    folder = Path(file.location)
    if not file.stamp.startswith("commit") and _state(folder)[1] != file.stamp:
        raise InputError(f"{file.shown}: changed since it was found. Let it rest, and begin again.")
    batches: Iterator[Any] | None = None
    while True:
        try:
            with _explained(file.shown, source, (folder / _SAVED).is_file()):
                batches = batches or _batches(library, span, source)
                batch = next(batches, None)
        except _BrokenDataError as error:
            intake.entry.read += 1
            what = f"the rows from here on cannot be read ({first_line(error)})"
            intake.fault(number + 1, "unreadable", what, AGAIN)
            return
        if batch is None:
            break
        before, number = number, number + batch.num_rows
        yield from row_documents(batch, before, batch.schema.names, intake)
    intake.entry.empty = span.whole and number == 0


def dataset_rows(entry: str, source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and fields of every row of a data set, all columns; `InputError` where it cannot be read."""
    library = _library(entry)
    for file in find_dataset(entry, Path(), source):
        number, batches = 0, _batches(library, Span(file), source)
        while True:
            try:
                with _explained(file.shown, source, (Path(file.location) / _SAVED).is_file()):
                    rows = batch.to_pylist() if (batch := next(batches, None)) is not None else None
            except _BrokenDataError as error:
                what = f"the rows after {number:,} cannot be read ({first_line(error)})"
                raise InputError(f"{file.shown}: {what}. {AGAIN}") from None
            if rows is None:
                break
            for number, row in enumerate(rows, number + 1):  # noqa: B020 (goes on counting)
                yield f"{file.shown}, row {number:,}", row


def _batches(library: Any, span: Span, source: SourceConfig) -> Iterator[Any]:
    """The rows of a span as Arrow tables."""
    file = span.file
    if (Path(file.location) / _SAVED).is_file():
        rows = library.load_from_disk(file.location)
        rows = rows.select(range(span.start, span.end if span.end >= 0 else len(rows)))
    else:
        whole = _stream(library, file.location, file.stamp, source)
        rows = whole.shard(num_shards=whole.num_shards, index=file.shard)
    yield from rows.with_format("arrow").iter(_ROWS)


def _state(folder: Path) -> tuple[int, str]:
    """Size of a folder's files, and a stamp that differs when one of them does."""
    found = sorted(
        (str(path.relative_to(folder)), path.stat()) for path in folder.rglob("*") if path.is_file()
    )
    listed = [(name, info.st_size, info.st_mtime_ns) for name, info in found]
    return sum(size for _, size, _ in listed), f"files {fingerprint(listed)}"


def _saved_folder(folder: Path, entry: str, source: SourceConfig) -> Path | None:
    """Where `save_to_disk` put the split; None if the folder is no such thing."""
    if (folder / _SAVED_SPLITS).is_file():
        if not (folder / source.split / _SAVED).is_file():
            there = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{_SAVED}"))) or "none"
            raise InputError(f"{entry}: no split {source.split!r} (there: {there}). Correct `split`.")
        return folder / source.split
    return folder if (folder / _SAVED).is_file() else None


def _stream(library: Any, location: str, stamp: str, source: SourceConfig) -> Any:
    kind, _, commit = stamp.partition(" ")
    revision = commit if kind == "commit" else None
    return library.load_dataset(
        location, source.subset or None, split=source.split, streaming=True, revision=revision
    )


def _commit(entry: str, source: SourceConfig) -> str:
    """The commit that a name on the Hub stands for now."""
    from huggingface_hub import HfApi

    if len(parts := entry.split("/")) > 2 or not all(parts):
        raise InputError(f"{entry}: no such folder, and not a name on the Hub (owner/name). Correct `paths`.")
    with _explained(entry, source):
        return str(HfApi().dataset_info(entry, revision=source.revision or None).sha)


def _library(shown: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(f'{shown}: reading data sets needs `pip install "stablelm[datasets]"`.') from None
    datasets.disable_progress_bars()
    return datasets


@contextlib.contextmanager
def _explained(shown: str, source: SourceConfig | None, saved: bool = False) -> Iterator[None]:
    """One error for whatever the library or the network raises, another for faults of the data."""
    import pyarrow

    try:
        yield
    except InputError:
        raise
    except Exception as error:
        arrow = isinstance(error, pyarrow.ArrowException) or type(error).__name__ == "DatasetGenerationError"
        if arrow or (saved and isinstance(error, OSError) and error.errno is None):  # Arrow raises these too
            raise _BrokenDataError(first_line(error)) from None
        subset = f" (subset {source.subset!r}, split {source.split!r})" if source else ""
        detail = first_line(error)
        if "script" in detail:
            remedy = "It brings code, which is never run; name its data files in `paths` instead."
        else:
            remedy = "Check name, subset, split and, for the Hub, network and `huggingface-cli login`."
        raise InputError(f"{shown}: the data set{subset} cannot be opened ({detail}). {remedy}") from None
