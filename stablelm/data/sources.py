"""From files to documents: text files, JSON lines and Parquet, streamed in a stable order, nothing lost
without a count.

Rules
* Plain text: UTF-8, one document a file, a byte order mark dropped, every line end (CRLF, CR) made LF. Text
  in JSON or Parquet is taken as it is.
* JSON lines end at LF; a blank line is dropped as `blank line`; text of nothing but white space is dropped as
  `empty`.
* A document's id is its record's, else the file's path below the folder or pattern that was named, with
  `:line` where a file holds several. Its origin, which decides the split, is the id without a trailing
  `#piece`.
* Every fault is an `InputError` naming file, line and remedy, or is counted and stepped over. A compressed
  file that ends inside a frame is a fault: its whole lines are kept, the partial one counts as an error. A
  file that cannot be opened stops the reading in both modes.

Memory is one document and some kilobytes (Parquet: 16 rows). Rejected: a limit on the length of a line or a
document."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stablelm.config import InputError
from stablelm.config.recipe import OnError, SourceConfig
from stablelm.data.accounts import FileAccount, SourceAccount
from stablelm.data.discovery import PACKED, InputFile, find_files, printable
from stablelm.data.unpacking import BrokenFile, split_lines, unpacked
from stablelm.storage import sha256_file

UNITS = {"text": "file", "jsonl": "line", "parquet": "row"}
_READ, _READ_PACKED = 1 << 16, 1 << 10  # a kilobyte may unpack to a megabyte
_ROWS = 16
_AGAIN = "Copy or download it again."
_PIECE = re.compile(r"(#[^#/]*)+$")


@dataclass(frozen=True)
class Document:
    """One text and where it comes from."""

    text: str
    id: str
    origin: str
    """What is split as one: the file, for pieces of a file."""
    file: FileAccount
    number: int
    """Line or row, from 1; 1 for a text file."""


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
    files: list[InputFile], source: SourceConfig, on_error: OnError, account: SourceAccount
) -> Iterator[Document]:
    """The documents of files that `find_files` found."""
    for file in files:
        try:
            entry = account.open(file.shown, file.path.stat().st_size, UNITS[file.format])
            reader = _Reader(file, source, on_error, account, entry)
            read = {"text": reader.text, "jsonl": reader.json_lines, "parquet": reader.parquet}[file.format]
            yield from read()
            entry.sha256 = sha256_file(file.path)
        except OSError as error:
            raise InputError(
                f"{file.shown}: cannot be read ({error.strerror or error}). Make it so, or leave it out."
            ) from None
        entry.position = entry.size
        entry.balance()


class _Reader:
    """One file's documents, and its account."""

    def __init__(
        self,
        file: InputFile,
        source: SourceConfig,
        on_error: OnError,
        account: SourceAccount,
        entry: FileAccount,
    ) -> None:
        self.file, self.source, self.on_error = file, source, on_error
        self.account, self.entry = account, entry

    def text(self) -> Iterator[Document]:
        """The whole file as one document."""
        self.entry.read += 1
        try:
            data = b"".join(self._chunks())
        except BrokenFile as broken:
            return self._fault(None, broken.reason, broken.what, _AGAIN)
        self.entry.empty = not data
        try:
            text = data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            return self._not_utf8(line, data, error.start, f"offset {error.start:,} in the file")
        yield from self._document(text, self.file.id, self.file.id, 1)

    def json_lines(self) -> Iterator[Document]:
        """A document a line."""
        offset = number = 0
        try:
            for number, line in enumerate(split_lines(self._chunks()), 1):
                self.entry.read += 1
                yield from self._record(line, number, offset)
                offset += len(line) + 1
        except BrokenFile as broken:
            self.entry.read += 1
            self._fault(number + 1, broken.reason, broken.what, _AGAIN)
        self.entry.empty = self.entry.read == 0

    def parquet(self) -> Iterator[Document]:
        """A document a row, by row group, reading only the columns of text and id."""
        if not self.entry.size:
            self.entry.empty = True
            return
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise InputError(
                f'{self.file.shown}: reading Parquet needs `pip install "stablelm[data]"`.'
            ) from None
        number = 0
        open(self.file.path, "rb").close()  # a file that may not be read is not a broken one
        try:
            table = ParquetFile(self.file.path, page_checksum_verification=True)
            names = table.schema_arrow.names
        except (pyarrow.ArrowException, OSError) as error:
            self.entry.read += 1
            return self._fault(None, "unreadable", f"not a Parquet file ({_first_line(error)})", _AGAIN)
        self.entry.empty = table.metadata.num_rows == 0
        if self.source.text_key not in names:
            self.entry.read += table.metadata.num_rows
            return self._missing(1, names, table.metadata.num_rows) if table.metadata.num_rows else None
        columns = [
            name for name in dict.fromkeys((self.source.text_key, self.source.id_key)) if name in names
        ]
        for group in range(table.metadata.num_row_groups):
            left = table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
                    for row in range(batch.num_rows):
                        number, left = number + 1, left - 1
                        self.entry.read += 1
                        yield from self._row([batch.column(name)[row] for name in columns], number)
            except (pyarrow.ArrowException, OSError) as error:
                self.entry.read += left
                what = f"the row cannot be read ({_first_line(error)})"
                self._fault(number + 1, "unreadable", what, _AGAIN, left)
                number += left

    def _record(self, line: bytes, number: int, offset: int) -> Iterator[Document]:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            place = (
                f"byte {error.start + 1:,} of the line, offset {offset + error.start:,} in the unpacked file"
            )
            return self._not_utf8(number, line, error.start, place)
        text = text.removeprefix("\ufeff") if number == 1 else text
        if not text or text.isspace():
            return self.account.drop(self.entry, number, "blank line")
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            at = f"{error.msg}, column {error.colno:,}" if isinstance(error, json.JSONDecodeError) else error
            return self._fault(number, "broken JSON", f"not valid JSON ({at})", "Repair or remove the line.")
        if not isinstance(record, dict):
            what = f"{_kind(record)}, not a JSON object with the key {self.source.text_key!r}"
            return self._fault(number, "wrong type", what, "Repair or remove the line.")
        if self.source.text_key not in record:
            return self._missing(number, list(record))
        yield from self._identified(record[self.source.text_key], record.get(self.source.id_key), number)

    def _row(self, cells: list[Any], number: int) -> Iterator[Document]:
        try:
            text, *ids = (
                value.decode() if isinstance(value, bytes) else value for value in (c.as_py() for c in cells)
            )
        except UnicodeDecodeError as error:
            place = f"byte {error.start + 1:,} of the text or id"
            return self._not_utf8(number, error.object, error.start, place)
        yield from self._identified(text, ids[0] if ids else None, number)

    def _identified(self, text: Any, identity: Any, number: int) -> Iterator[Document]:
        if isinstance(identity, str | int) and not isinstance(identity, bool) and str(identity):
            name = printable(str(identity))
            return self._document(text, name, _PIECE.sub("", name) or name, number)
        return self._document(text, f"{self.file.id}:{number}", f"{self.file.id}:{number}", number)

    def _document(self, text: Any, name: str, origin: str, number: int) -> Iterator[Document]:
        if not isinstance(text, str):
            what = f"{self.source.text_key!r} is {_kind(text)}, not a string"
            return self._fault(number, "wrong type", what, "Repair or remove it.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"character {error.start + 1:,} of {self.source.text_key!r} is half a surrogate pair"
            return self._fault(number, "lone surrogate", what, "Replace or remove it.")
        if not text or text.isspace():
            return self.account.drop(self.entry, number, "empty")
        self.entry.kept += 1
        yield Document(text, name, origin, self.entry, number)

    def _missing(self, number: int, names: list[str], count: int = 1) -> None:
        has = ", ".join(repr(name) for name in names[:10]) or "none"
        what = f"the key {self.source.text_key!r} is missing (there: {has})"
        self._fault(number, "missing key", what, "Add it, or name the key of the text in `text_key`.", count)

    def _not_utf8(self, number: int, data: bytes, at: int, place: str) -> None:
        what = f"not UTF-8: {place}, is {data[at]:#04x}"
        self._fault(number, "invalid UTF-8", what, "Convert the file to UTF-8, for example with iconv.")

    def _fault(self, number: int | None, reason: str, what: str, remedy: str, count: int = 1) -> None:
        self.account.fault(self.on_error, self.entry, number, reason, what, remedy, count)

    def _chunks(self) -> Iterator[bytes]:
        """The file's bytes, unpacked."""
        packing = self.file.path.suffix.lower()
        with open(self.file.path, "rb") as file:
            if packing in PACKED:
                yield from unpacked(self._counted(file, _READ_PACKED), packing, self.file.shown)
            else:
                yield from self._counted(file, _READ)

    def _counted(self, file: IO[bytes], size: int) -> Iterator[bytes]:
        while chunk := file.read(size):
            self.entry.position += len(chunk)
            yield chunk


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".")
