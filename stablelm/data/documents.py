"""What a reader makes of a record: its fields found, its faults named, the document handed on or counted.

Keys may be dotted paths. A key that is there by its whole name comes first; else the path leads through
objects, and through strings that hold an object as JSON or as Python prints a dictionary (the `meta` of
several public data sets). A record whose label is excluded is dropped as `excluded: LABEL`, with the label as
the recipe writes it, before its text is looked at."""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from stablelm.config.recipe import OnError, SourceConfig, folded
from stablelm.data.accounts import FileAccount, SourceAccount
from stablelm.data.inputs import InputFile

MISSING: Any = object()
AGAIN = "Copy or download it again."
_PIECE = re.compile(r"(#[^#/]*)+$")
_LONGEST_PRINTED = 1 << 16  # a dictionary printed by Python is parsed only below this many characters


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it comes from."""

    text: str
    id: str
    origin: str
    """What is split as one: the file, for pieces of a file."""
    file: FileAccount
    number: int
    """Line, row or record, from 1; 1 for a text file."""
    url: str = ""
    label: str = ""
    date: str = ""
    """When a page was fetched (WARC)."""
    size: int = 0
    """Its bytes in the unpacked input, as accounts count them."""


class Intake:
    """The records of one file on their way to documents, and the file's account."""

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
        self.excluded = {folded(label): label for label in source.exclude}
        self.folder = printable(_folder(file)) if source.label_from_folder else ""

    def record(self, fields: Mapping[str, Any], number: int, size: int) -> Document | None:
        """The document of a JSON object or of a row of a table."""
        labels = [
            value for key in self.source.label_key if isinstance(value := lookup(fields, key), str) and value
        ]
        if self._is_excluded(labels, number, size):
            return None
        text = lookup(fields, self.source.text_key)
        if text is MISSING:
            return self.missing(number, list(fields), size=size)
        name = origin = f"{self.file.id}:{number}"
        identity, url = lookup(fields, self.source.id_key), lookup(fields, self.source.url_key)
        if isinstance(identity, str | int) and not isinstance(identity, bool) and str(identity):
            name = printable(str(identity))
            origin = _PIECE.sub("", name) or name
        address = printable(url) if isinstance(url, str) else ""
        return self.document(text, name, origin, number, size, address, labels)

    def page(
        self, text: Any, name: str, number: int, size: int, url: str = "", date: str = ""
    ) -> Document | None:
        """The document of a file or page, which has no fields."""
        if self._is_excluded([], number, size):
            return None
        return self.document(text, name, name, number, size, url, [], date)

    def document(
        self,
        text: Any,
        name: str,
        origin: str,
        number: int,
        size: int,
        url: str = "",
        labels: list[str] | None = None,
        date: str = "",
    ) -> Document | None:
        """The document, unless its text is none or nothing."""
        if not isinstance(text, str):
            what = f"{self.source.text_key!r} is {kind_of(text)}, not a string"
            return self.fault(number, "wrong type", what, "Repair or remove it.", size=size)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"character {error.start + 1:,} of {self.source.text_key!r} is half a surrogate pair"
            return self.fault(number, "lone surrogate", what, "Replace or remove it.", size=size)
        if not text or text.isspace():
            return self.drop(number, "empty", size)
        self.entry.keep(size)
        label = printable(labels[0]) if labels else self.folder
        return Document(text, name, origin, self.entry, number, url, label, date, size)

    def drop(self, number: int, reason: str, size: int) -> Document | None:
        """Counts a sound record that is not kept; no document."""
        self.account.drop(self.entry, number, reason, size)
        return None

    def fault(
        self, number: int | None, reason: str, what: str, remedy: str, count: int = 1, size: int = 0
    ) -> Document | None:
        """A broken record: `InputError`, or counted; no document either way."""
        self.account.fault(self.on_error, self.entry, number, reason, what, remedy, count, size)
        return None

    def missing(self, number: int, names: list[str], count: int = 1, size: int = 0) -> Document | None:
        """A record, or a table, without the key of the text."""
        has = ", ".join(repr(name) for name in names[:10]) or "none"
        what = f"the key {self.source.text_key!r} is missing (there: {has})"
        remedy = "Add it, or name the key of the text in `text_key`."
        return self.fault(number, "missing key", what, remedy, count, size)

    def not_utf8(self, number: int, data: bytes, at: int, place: str, size: int) -> Document | None:
        """Bytes that are no text."""
        what = f"not UTF-8: {place}, is {data[at]:#04x}"
        remedy = "Convert the file to UTF-8, for example with iconv."
        return self.fault(number, "invalid UTF-8", what, remedy, size=size)

    def _is_excluded(self, labels: list[str], number: int, size: int) -> bool:
        if not self.excluded:
            return False
        names = labels or ([self.folder] if self.folder else [])
        self.entry.unlabelled += not names
        for name in names:
            if (rule := self.excluded.get(folded(name))) is not None:
                self.drop(number, f"excluded: {rule}", size)
                return True
        return False


def lookup(fields: Mapping[str, Any], key: str) -> Any:
    """The value at a key or dotted path; `MISSING` if it is not there."""
    if key in fields:
        return fields[key]
    head, dot, rest = key.partition(".")
    while dot:
        inner = fields.get(head)
        if isinstance(inner, str):
            inner = _object_in(inner)
        if isinstance(inner, Mapping):
            value = lookup(inner, rest)
            if value is not MISSING:
                return value
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return MISSING


def _object_in(text: str) -> Any:
    """The object that a string holds, as JSON or as Python prints it; None if it holds none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text) if len(text) <= _LONGEST_PRINTED else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold spelled out (undecodable file names, lone surrogates in ids)."""
    return text.encode("utf-8", "backslashreplace").decode()


def first_line(error: Exception) -> str:
    """An error's message, for quoting in ours."""
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__


def _folder(file: InputFile) -> str:
    below = PurePosixPath(file.id).parts
    return below[0] if len(below) > 1 else PurePosixPath(file.location).parent.name
