"""Input files cut into pieces of about one size, each read on its own.

Large JSON lines are cut between lines, Parquet between row groups, Arrow between record batches, saved
datasets between rows; other files are never cut (a compressed stream has no place to begin in the
middle), but neighbours that are small share a piece. The pieces in order are the whole reading: the same
documents, ids, numbers, faults and, merged, accounts, whatever the target.

Cutting JSON lines reads the file once, to count its lines (so that any piece can name a line of the file,
or make an id of it) and to hash it. Rejected: counting only when a message needs it (a file without ids
needs it for every record), ids by byte offset (they would not be those of reading the file whole)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stablelm.config import InputError
from stablelm.config.recipe import OnError, SourceConfig
from stablelm.data.accounts import SourceAccount
from stablelm.data.discovery import PACKED
from stablelm.data.documents import Document
from stablelm.data.inputs import InputFile, Span, Tap, opened
from stablelm.data.sources import read_spans

_READ = 1 << 20


@dataclass(frozen=True)
class Piece:
    """What one task reads."""

    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """Bytes on the disk, about; 0 where that cannot be known."""
        return sum(span.size for span in self.spans)

    def as_dict(self) -> dict[str, Any]:
        """For `from_dict`, through JSON; two pieces of one file differ, and so do two versions of a file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Piece":
        """What `as_dict` wrote."""
        return cls(tuple(Span(**{**span, "file": InputFile(**span["file"])}) for span in values["spans"]))


def pieces(files: Sequence[InputFile], target_bytes: int) -> list[Piece]:
    """The files in pieces of about `target_bytes` on the disk, in the order of reading."""
    made: list[Piece] = []
    group: list[Span] = []
    filled = 0
    for file in files:
        spans = _cut(file, target_bytes) if file.size > target_bytes else [Span(file, size=file.size)]
        alone = len(spans) > 1 or (not file.size and (file.remote or file.format == "datasets"))
        if group and (alone or filled + file.size > target_bytes):
            made.append(Piece(tuple(group)))
            group, filled = [], 0
        if alone:
            made += [Piece((span,)) for span in spans]
        else:
            group, filled = [*group, *spans], filled + file.size
    return [*made, Piece(tuple(group))] if group else made


def read_piece(
    piece: Piece, source: SourceConfig, on_error: OnError, account: SourceAccount
) -> Iterator[Document]:
    """The documents of a piece, streamed; `account` gets the account of each of its spans.

    `InputError` as for `read_documents`, also when a file is not the one that was cut."""
    return read_spans(piece.spans, source, on_error, account)


def _cut(file: InputFile, target: int) -> list[Span]:
    """The spans of a large file; one where it cannot be cut."""
    if file.format == "jsonl" and file.suffix not in PACKED:
        return _cut_lines(file, target)
    if file.format in ("parquet", "arrow"):
        from stablelm.data.tables import cut_table

        return cut_table(file, target)
    if file.format == "datasets":
        from stablelm.data.hub import cut_dataset

        return cut_dataset(file, target)
    return [Span(file, size=file.size)]


def _cut_lines(file: InputFile, target: int) -> list[Span]:
    cuts = [(0, 0)]  # byte and line at which a span begins
    at = lines = 0
    try:
        with opened(file) as handle:
            tap = Tap(handle, file.shown)
            for chunk in tap.chunks(_READ):
                begin = 0
                while at + len(chunk) >= (wanted := cuts[-1][0] + target):
                    newline = chunk.find(b"\n", max(begin, wanted - at - 1))
                    if newline < 0 or at + newline + 1 == file.size:
                        break
                    lines += chunk.count(b"\n", begin, newline + 1)
                    begin = newline + 1
                    cuts.append((at + begin, lines))
                lines += chunk.count(b"\n", begin)
                at += len(chunk)
            file = dataclasses.replace(file, sha256=tap.sha256())
    except OSError as error:
        raise InputError(
            f"{file.shown}: cannot be read ({error.strerror or error}). Make it so, or leave it out."
        ) from None
    if len(cuts) == 1:
        return [Span(file, size=file.size)]
    ends = [*(byte for byte, _ in cuts[1:]), file.size]
    return [Span(file, byte, end, line, end - byte) for (byte, line), end in zip(cuts, ends, strict=True)]
