"""From files to documents: streamed in a stable order, nothing lost without a count.

Rules
* Text, code: UTF-8, one document a file, a byte order mark dropped, every line end (CRLF, CR) made LF. Text
  in JSON, tables and pages is taken as it is.
* JSON lines end at LF; a blank line is dropped as `blank line`; text of nothing but white space is dropped as
  `empty`.
* A document's id is its record's, else the file's path below the folder or pattern that was named, with
  `:line` where a file holds several. Its origin, which decides the split, is the id without a trailing
  `#piece`.
* Every fault is an `InputError` naming file, line and remedy, or is counted and stepped over. A compressed
  file that ends inside a frame is a fault: its whole lines are kept, the partial one counts as an error. A
  file that cannot be opened, or that changed since it was found, stops the reading in both modes.

Tables are read in tables.py, datasets in hub.py, pages in pages.py. Memory is one document and some kilobytes
(tables: a batch of rows). Rejected: a limit on the length of a line or a document."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from stablelm.config import InputError
from stablelm.config.recipe import OnError, SourceConfig
from stablelm.data.accounts import SourceAccount
from stablelm.data.discovery import PACKED, find_files
from stablelm.data.documents import AGAIN, Intake, kind_of
from stablelm.data.documents import Document as Document
from stablelm.data.inputs import InputFile, Span, Tap, hash_file, opened
from stablelm.data.unpacking import BrokenFile, Lines, unpacked

UNITS = {
    "text": "file", "code": "file", "html": "file", "jsonl": "line", "warc": "record",
    "parquet": "row", "arrow": "row", "datasets": "row",
}  # fmt: skip
_READ, _READ_PACKED = 1 << 16, 1 << 10  # a kilobyte may unpack to a megabyte


def read_documents(
    source: SourceConfig,
    root: str | Path = ".",
    on_error: OnError = "stop",
    account: SourceAccount | None = None,
) -> Iterator[Document]:
    """The documents of a source, in a stable order; `account` is filled while they are drawn.

    Relative paths start at `root`. `InputError` for paths that name nothing or cannot be read, and, with
    "stop", for every broken document."""
    account = SourceAccount() if account is None else account
    yield from read_files(find_files(source, root, account.ignored), source, on_error, account)


def read_texts(source: SourceConfig, root: str | Path = ".", on_error: OnError = "stop") -> Iterator[str]:
    """Only the texts of `read_documents`."""
    return (document.text for document in read_documents(source, root, on_error))


def read_files(
    files: Iterable[InputFile], source: SourceConfig, on_error: OnError, account: SourceAccount
) -> Iterator[Document]:
    """The documents of files that `find_files` found."""
    return read_spans((Span(file, size=file.size) for file in files), source, on_error, account)


def read_spans(
    spans: Iterable[Span], source: SourceConfig, on_error: OnError, account: SourceAccount
) -> Iterator[Document]:
    """The documents of parts of files, each with an account of its own."""
    for span in spans:
        file = span.file
        entry = account.open(file.shown, file.size, UNITS[file.format])
        try:
            yield from _reader(file.format)(span, Intake(file, source, on_error, account, entry))
            if span.start == 0 and not entry.sha256:
                entry.sha256 = hash_file(file)
        except OSError as error:
            raise InputError(
                f"{file.shown}: cannot be read ({error.strerror or error}). Make it so, or leave it out."
            ) from None
        entry.position = span.size
        entry.balance()


def _reader(kind: str) -> Callable[[Span, Intake], Iterator[Document]]:
    if kind in ("parquet", "arrow"):
        from stablelm.data.tables import read_table

        return read_table
    if kind == "datasets":
        from stablelm.data.hub import read_dataset

        return read_dataset
    return {"jsonl": _json_lines, "html": _html, "warc": _warc}.get(kind, _text)


def _text(span: Span, intake: Intake) -> Iterator[Document]:
    """The whole file as one document."""
    data = _whole(span, intake)
    if data is None:
        return
    try:
        text = data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        place = f"offset {error.start:,} in the file"
        intake.not_utf8(line, data, error.start, place, len(data))
        return
    if document := intake.page(text, span.file.id, 1, len(data)):
        yield document


def _html(span: Span, intake: Intake) -> Iterator[Document]:
    """The main content of the whole file as one document."""
    from stablelm.data.pages import main_text, require_html

    require_html(span.file.shown)
    data = _whole(span, intake)
    if data is not None and (document := main_text(data, "", span.file.id, 1, len(data), intake)):
        yield document


def _whole(span: Span, intake: Intake) -> bytes | None:
    """A file's bytes, read as one document; None, and counted, when they cannot be had."""
    intake.entry.read += 1
    parts: list[bytes] = []
    try:
        parts.extend(_chunks(span, intake))
    except BrokenFile as broken:
        size = intake.entry.read_bytes
        intake.fault(None, broken.reason, broken.what, AGAIN, size=size)
        return None
    intake.entry.empty = not any(parts)
    return b"".join(parts)


def _warc(span: Span, intake: Intake) -> Iterator[Document]:
    """The pages of a web archive."""
    from stablelm.data.pages import read_records

    yield from read_records(_chunks(span, intake), intake)


def _json_lines(span: Span, intake: Intake) -> Iterator[Document]:
    """A document a line."""
    entry, number, offset = intake.entry, span.first, span.start
    lines = Lines(_chunks(span, intake))
    try:
        for number, line in enumerate(lines, span.first + 1):
            entry.read += 1
            if document := _record(line, number, offset, intake):
                yield document
            offset += len(line)
    except BrokenFile as broken:
        entry.read += 1
        intake.fault(number + 1, broken.reason, broken.what, AGAIN, size=len(lines.partial()))
    entry.empty = span.whole and entry.read == 0


def _record(line: bytes, number: int, offset: int, intake: Intake) -> Document | None:
    size = len(line)
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        at = error.start
        place = f"byte {at + 1:,} of the line, offset {offset + at:,} in the unpacked file"
        return intake.not_utf8(number, line, at, place, size)
    text = text.removesuffix("\n").removeprefix("\ufeff" if number == 1 else "")
    if not text or text.isspace():
        return intake.drop(number, "blank line", size)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        detail = (
            f"{error.msg}, column {error.colno:,}" if isinstance(error, json.JSONDecodeError) else str(error)
        )
        what = f"not valid JSON ({detail})"
        return intake.fault(number, "broken JSON", what, "Repair or remove the line.", size=size)
    if not isinstance(record, dict):
        what = f"{kind_of(record)}, not a JSON object with the key {intake.source.text_key!r}"
        return intake.fault(number, "wrong type", what, "Repair or remove the line.", size=size)
    return intake.record(record, number, size)


def _chunks(span: Span, intake: Intake) -> Iterator[bytes]:
    """The bytes of a span, unpacked; counted as read, and the file hashed when it is read whole."""
    file, entry = span.file, intake.entry
    packed = file.suffix in PACKED
    with opened(file) as handle:
        handle.seek(span.start)
        tap = Tap(handle, file.shown)
        raw = tap.chunks(_READ_PACKED if packed else _READ, span.end - span.start if span.end >= 0 else -1)
        try:
            for chunk in unpacked(raw, file.suffix, file.shown) if packed else raw:
                entry.position, entry.read_bytes = tap.position, entry.read_bytes + len(chunk)
                yield chunk
        except BrokenFile:
            entry.sha256 = tap.sha256()
            raise
        entry.sha256 = tap.sha256() if span.whole else file.sha256
