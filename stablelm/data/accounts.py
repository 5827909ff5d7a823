"""What became of everything that was read: for every file, read = kept + dropped + errors, by reason.

The unit is the document: a text file, a line of JSON, a row of Parquet. `read` counts what the reader took
up, the other three what was done with it; they are counted in different places and compared at the end of
every file."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stablelm.config import InputError
from stablelm.config.recipe import OnError

EXAMPLES = 5
_SKIP = "Or set `on_error: skip` to leave such documents out and count them."


@dataclass
class FileAccount:
    """One input file."""

    path: str
    """As the user named it."""
    size: int
    """Bytes on the disk."""
    unit: str = "line"
    """What a document is: line, row or file."""
    position: int = 0
    """Bytes of them read so far."""
    sha256: str = ""
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    empty: bool = False
    """The file holds no bytes, or no lines or rows."""

    def balance(self) -> None:
        """Checks the account of a file that was read to its end."""
        parts = self.kept + self.dropped.total() + self.errors.total()
        assert self.read == parts, f"{self.path}: read {self.read} documents, accounted for {parts}"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "path": self.path, "bytes": self.size, "sha256": self.sha256, "empty": self.empty,
            "read": self.read, "kept": self.kept, "dropped": dict(self.dropped), "errors": dict(self.errors),
        }  # fmt: skip


@dataclass
class SourceAccount:
    """All files of one source."""

    files: list[FileAccount] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    """What folders and patterns held and was not taken for input, by suffix."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason → the first few places, `file:line`."""

    def open(self, path: str, size: int, unit: str) -> FileAccount:
        """Begins the account of a file."""
        self.files.append(FileAccount(path, size, unit))
        return self.files[-1]

    def drop(self, file: FileAccount, number: int, reason: str) -> None:
        """Counts a document that is sound but not kept."""
        file.dropped[reason] += 1
        self._example(reason, f"{file.path}:{number}")

    def fault(
        self,
        on_error: OnError,
        file: FileAccount,
        number: int | None,
        reason: str,
        what: str,
        remedy: str,
        count: int = 1,
    ) -> None:
        """A broken document: `InputError` saying where and what to do, or with "skip" `count` more under
        `reason`.

        `number` is the line or row from 1; None when the fault is the whole file's."""
        if on_error == "stop":
            unit = "line" if file.unit == "file" else file.unit
            where = file.path if number is None else f"{file.path}, {unit} {number}"
            raise InputError(f"{where}: {what}. {remedy} {_SKIP}")
        file.errors[reason] += count
        self._example(reason, f"{file.path}:{number or 1}")

    def _example(self, reason: str, place: str) -> None:
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(place)

    def as_dict(self) -> dict[str, Any]:
        """Totals, examples, and every file, for the manifest."""
        dropped, errors = Counter[str](), Counter[str]()
        for file in self.files:
            dropped += file.dropped
            errors += file.errors
        return {
            "read": sum(file.read for file in self.files),
            "kept": sum(file.kept for file in self.files),
            "dropped": dict(dropped),
            "errors": dict(errors),
            "examples": self.examples,
            "empty_files": [file.path for file in self.files if file.empty],
            "ignored": dict(self.ignored),
            "inputs": [file.as_dict() for file in self.files],
        }
