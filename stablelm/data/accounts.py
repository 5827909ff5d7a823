"""What became of everything that was read: for every file, read = kept + dropped + errors, by reason, in
documents and in bytes.

The unit is the document: a text, code or HTML file, a line of JSON, a row of a table, a record of a WARC
file. Its bytes are those it takes in the unpacked input: the file's; the line's with its LF; the record's
with its header and the blank lines after it; for a row, the UTF-8 bytes of its text (0 where there is none,
or it cannot be read). `read` counts what the reader took up, and its bytes where they come out of the file
or the column; the other three count what was done with each document, and its own length. They are counted
in different places and compared at the end of every file (`balance`).

A file read in pieces has an account a piece; `merge` adds them, in the order of the pieces, to the account of
reading it whole. Accounts pass through JSON (`as_dict`, `from_dict`)."""

from collections import Counter
from collections.abc import Mapping
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
    """What a document is: file, line, row or record."""
    position: int = 0
    """Bytes of them read so far."""
    sha256: str = ""
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    kept_bytes: int = 0
    dropped_bytes: Counter[str] = field(default_factory=Counter)
    error_bytes: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    """Documents without a label in a source that excludes labels."""
    empty: bool = False
    """The file holds no bytes, or no lines, rows or records."""

    def keep(self, size: int) -> None:
        """Counts a document of `size` bytes that is handed on."""
        self.kept += 1
        self.kept_bytes += size

    def balance(self) -> None:
        """Checks the account of a file, or of a piece, that was read to its end."""
        parts = self.kept + self.dropped.total() + self.errors.total()
        assert self.read == parts, f"{self.path}: read {self.read} documents, accounted for {parts}"
        size = self.kept_bytes + self.dropped_bytes.total() + self.error_bytes.total()
        assert self.read_bytes == size, f"{self.path}: read {self.read_bytes} bytes, accounted for {size}"

    def merge(self, other: "FileAccount") -> None:
        """Adds the account of a later piece of the same file."""
        self.position = min(self.size, self.position + other.position)
        self.sha256 = self.sha256 or other.sha256
        for name in ("read", "kept", "read_bytes", "kept_bytes", "unlabelled"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "errors", "dropped_bytes", "error_bytes"):
            getattr(self, name).update(getattr(other, name))
        self.empty = self.empty and other.empty

    def as_dict(self) -> dict[str, Any]:
        """For the manifest, and for `from_dict`."""
        return {
            "path": self.path, "bytes": self.size, "unit": self.unit, "sha256": self.sha256,
            "empty": self.empty,
            "read": self.read, "kept": self.kept, "dropped": dict(self.dropped), "errors": dict(self.errors),
            "read_bytes": self.read_bytes, "kept_bytes": self.kept_bytes,
            "dropped_bytes": dict(self.dropped_bytes), "error_bytes": dict(self.error_bytes),
            "unlabelled": self.unlabelled,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FileAccount":
        """The account that `as_dict` wrote, of a file or piece read to its end."""
        account = cls(values["path"], values["bytes"], position=values["bytes"])
        for name in ("unit", "sha256", "empty", "read", "kept", "read_bytes", "kept_bytes", "unlabelled"):
            setattr(account, name, values[name])
        for name in ("dropped", "errors", "dropped_bytes", "error_bytes"):
            setattr(account, name, Counter[str](values[name]))
        return account


@dataclass
class SourceAccount:
    """All files of one source."""

    files: list[FileAccount] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    """What folders and patterns held and was not taken for input, by suffix."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason → the first few places, `file:line`."""

    def open(self, path: str, size: int, unit: str) -> FileAccount:
        """Begins the account of a file, or of a piece of it."""
        self.files.append(FileAccount(path, size, unit))
        return self.files[-1]

    def drop(self, file: FileAccount, number: int, reason: str, size: int = 0) -> None:
        """Counts a document of `size` bytes that is sound but not kept."""
        file.dropped[reason] += 1
        file.dropped_bytes[reason] += size
        self._example(reason, f"{file.path}:{number}")

    def reject(self, file: FileAccount, number: int, reason: str, size: int) -> None:
        """Counts as dropped a document that the reader had kept: a filter's decision."""
        file.kept -= 1
        file.kept_bytes -= size
        self.drop(file, number, reason, size)

    def fault(
        self,
        on_error: OnError,
        file: FileAccount,
        number: int | None,
        reason: str,
        what: str,
        remedy: str,
        count: int = 1,
        size: int = 0,
    ) -> None:
        """A broken document: `InputError` saying where and what to do, or with "skip" `count` more, of `size`
        bytes together, under `reason`.

        `number` is the line, row or record from 1; None when the fault is the whole file's."""
        if on_error == "stop":
            unit = "line" if file.unit == "file" else file.unit
            where = file.path if number is None else f"{file.path}, {unit} {number}"
            raise InputError(f"{where}: {what}. {remedy} {_SKIP}")
        file.errors[reason] += count
        file.error_bytes[reason] += size
        self._example(reason, f"{file.path}:{number or 1}")

    def _example(self, reason: str, place: str) -> None:
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(place)

    def merge(self, later: "SourceAccount") -> None:
        """Adds the account of later files, or of later pieces of files already here."""
        here = {file.path: file for file in self.files}
        for file in later.files:
            if file.path in here:
                here[file.path].merge(file)
            else:
                here[file.path] = FileAccount.from_dict(file.as_dict())
                here[file.path].position = file.position
                self.files.append(here[file.path])
        self.ignored.update(later.ignored)
        for reason, places in later.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *places][:EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        """Totals, examples, and every file, for the manifest and for `from_dict`."""
        sums = {name: Counter[str]() for name in ("dropped", "errors", "dropped_bytes", "error_bytes")}
        for file in self.files:
            for name, total in sums.items():
                total.update(getattr(file, name))
        return {
            "read": sum(file.read for file in self.files),
            "kept": sum(file.kept for file in self.files),
            "dropped": dict(sums["dropped"]),
            "errors": dict(sums["errors"]),
            "read_bytes": sum(file.read_bytes for file in self.files),
            "kept_bytes": sum(file.kept_bytes for file in self.files),
            "dropped_bytes": dict(sums["dropped_bytes"]),
            "error_bytes": dict(sums["error_bytes"]),
            "unlabelled": sum(file.unlabelled for file in self.files),
            "examples": self.examples,
            "empty_files": [file.path for file in self.files if file.empty],
            "ignored": dict(self.ignored),
            "inputs": [file.as_dict() for file in self.files],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SourceAccount":
        """The account that `as_dict` wrote."""
        files = [FileAccount.from_dict(file) for file in values["inputs"]]
        examples = {reason: list(places) for reason, places in values["examples"].items()}
        return cls(files, Counter(values["ignored"]), examples)


def refuse_errors(accounts: Mapping[str, SourceAccount], max_error_rate: float) -> None:
    """`InputError` when more than `max_error_rate` of a source's documents could not be read: for the end of
    the reading, before anything is made of it.

    A rate a source, so that a small one that is broken cannot hide behind a large one; if every source keeps
    the limit, so do all together."""
    lines = []
    for name, account in accounts.items():
        read, errors = sum(file.read for file in account.files), Counter[str]()
        for file in account.files:
            errors.update(file.errors)
        if errors.total() > max_error_rate * read:
            reasons = ", ".join(
                f"{count:,} × {reason} (first at {account.examples[reason][0]})"
                for reason, count in errors.most_common()
            )
            lines.append(
                f"source {name!r}: {errors.total():,} of {read:,} documents ({errors.total() / read:.2%}) "
                f"could not be read, more than `max_error_rate` {max_error_rate:.2%} allows: {reasons}."
            )
    if lines:
        raise InputError("\n".join([*lines, "Repair these inputs, or raise `max_error_rate`."]))
