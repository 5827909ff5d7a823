"""Lines or paragraphs that many documents share, and where they are cut out.

    line_numbers   each line's number (64-bit hash of its folded text) and place     one pass over each text
    spill_lines    SHARD.lines: (line, document), once for each document             16 bytes a line
    bucket_lines   the lines of more than K documents → (line, first document)       one bucket in memory
    Repeated       those of all buckets, sorted, in memory (16 bytes each)
    removals       where they stand in a shard's texts, and which texts go whole     a second pass

How often a line stands in one document does not count: repetition within a document is a matter of quality,
not of boilerplate. Case, white space and Unicode's spellings make no difference. A line takes its LF with it,
a paragraph the blank lines after it. With 64 bits, among 10¹⁰ different lines three pairs share a number, and
are counted together. Costs about 15 ns a byte for each pass.
Rejected: suffix arrays (find repeats that are no lines, for 10 times the memory), a Bloom filter (cannot tell
the first document)."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.deduplication import LineDeduplication
from stablelm.data.deduplication.spill import Folders, UInt64, gather_bucket, read_spill, write_spill
from stablelm.data.texts import Texts
from stablelm.storage import keyed_uint64

SUFFIX, MOST_COMMON = ".lines", 10


@dataclass(frozen=True)
class Lines:
    """k lines or paragraphs that are long enough, in the order of the texts."""

    rows: NDArray[np.int64]
    """Text of each, [k]."""
    starts: NDArray[np.int64]
    """First byte within the text, [k]."""
    ends: NDArray[np.int64]
    """One past the last byte, line end included, [k]."""
    numbers: UInt64
    """The same for lines that count as equal, [k]."""


@dataclass(frozen=True)
class Removals:
    """What to cut out of n texts."""

    rows: NDArray[np.int64]
    """Text of each cut, ascending, [k]."""
    starts: NDArray[np.int64]
    """First byte within the text, on a character's boundary, [k]."""
    ends: NDArray[np.int64]
    """One past the last byte, [k]."""
    dropped: NDArray[np.bool_]
    """Texts of which too little is left, [n]."""


def line_numbers(texts: Texts, settings: LineDeduplication, scope: str = "") -> Lines:
    """The lines or paragraphs of at least `min_characters`; only those of one `scope` ("" for all, or a
    source's name) are ever equal."""
    from stablelm.kernels.text.folding import folding
    from stablelm.kernels.text.ngrams import segments

    most = int(np.count_nonzero(texts.data == 10)) + len(texts)
    rows, spans = np.empty(most, np.int64), np.empty((most, 2), np.int64)
    numbers, lengths = np.empty(most, np.uint64), np.empty(most, np.int64)
    paragraphs = settings.unit == "paragraph"
    count = segments(texts.data, texts.ends, paragraphs, *folding(), rows, spans, numbers, lengths)
    long = lengths[:count] >= settings.min_characters
    salt = np.uint64(keyed_uint64("lines", settings.unit, scope))
    start, end = spans[:count][long].T
    return Lines(rows[:count][long], start, end, numbers[:count][long] ^ salt)


def spill_lines(
    folder: str | Path, shard: str, numbers: NDArray[np.uint64], lines: Lines, buckets: int
) -> Path:
    """Writes FOLDER/SHARD.lines for a shard whose texts are the documents `numbers` [n]; returns the file."""
    records = np.column_stack([lines.numbers, numbers.astype(np.uint64)[lines.rows]])
    path = Path(folder) / f"{shard}{SUFFIX}"
    write_spill(path, np.unique(records, axis=0), buckets)
    return path


def bucket_lines(
    folder: Folders, bucket: int, settings: LineDeduplication
) -> tuple[UInt64, NDArray[np.int64]]:
    """uint64 [k, 2], ascending: the lines of one bucket that more than `max_documents` documents have, and
    the lowest number of these documents; and how many have each, [k]."""
    records = gather_bucket(folder, SUFFIX, bucket, 2)  # by line, then document
    new = np.ones(len(records), bool)
    new[1:] = records[1:, 0] != records[:-1, 0]
    starts = np.flatnonzero(new)
    counts = np.diff(starts, append=len(records))
    many = counts > settings.max_documents
    return records[starts[many]], counts[many]


def most_common(repeated: UInt64, documents: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(documents, line) of the `MOST_COMMON` lines that most documents have; for a report."""
    return merge_common(zip(documents.tolist(), repeated[:, 0].tolist(), strict=True))


def merge_common(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of some lists of such pairs; no line may be in two."""
    return heapq.nsmallest(MOST_COMMON, pairs, key=lambda pair: (-pair[0], pair[1]))


def write_repeated(path: str | Path, repeated: UInt64) -> None:
    """Writes what `bucket_lines` returned, whole or not at all."""
    write_spill(path, repeated, 1)


class Repeated:
    """The repeated lines of all buckets, sorted: 16 bytes each in memory."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        """`paths`: the files of `write_repeated`, in any order."""
        parts = [part for path in paths for part in read_spill(path, 2)]
        records = np.concatenate([np.empty((0, 2), np.uint64), *parts])
        records = records[np.argsort(records[:, 0], kind="stable")]
        if (records[1:, 0] == records[:-1, 0]).any():
            raise InputError(
                "repeated lines: two files hold the same line, so one was given twice or is from another "
                "run. Run the step that finds repeated lines again."
            )
        self._lines = np.ascontiguousarray(records[:, 0])
        self._firsts = np.ascontiguousarray(records[:, 1])

    def __len__(self) -> int:
        return len(self._lines)

    def removed(self, lines: UInt64, documents: UInt64, keep_first: bool) -> NDArray[np.bool_]:
        """Which of `lines` [k], standing in `documents` [k], are to go."""
        if not len(self):
            return np.zeros(len(lines), bool)
        at = np.searchsorted(self._lines, lines).clip(max=len(self) - 1)
        found: NDArray[np.bool_] = self._lines[at] == lines
        return found & (self._firsts[at] != documents) if keep_first else found


def removals(
    texts: Texts, numbers: NDArray[np.uint64], lines: Lines, repeated: Repeated, settings: LineDeduplication
) -> Removals:
    """The repeated lines among `lines` (those of `texts`, by the same settings and scope), to be cut out."""
    documents = numbers.astype(np.uint64)[lines.rows]
    gone = repeated.removed(lines.numbers, documents, settings.keep == "first")
    rows, starts, ends = lines.rows[gone], lines.starts[gone], lines.ends[gone]
    sizes = np.diff(texts.ends, prepend=0)
    cut = np.bincount(rows, weights=ends - starts, minlength=len(texts)).astype(np.int64)
    dropped = (cut > 0) & (sizes - cut < settings.min_left * sizes)
    for row in np.flatnonzero((cut > 0) & ~dropped).tolist():
        dropped[row] = not left_over(texts, row, rows, starts, ends).strip()
    return Removals(rows, starts, ends, dropped)


def left_over(
    texts: Texts, row: int, rows: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> str:
    """What is left of one text without the cuts; rows, starts, ends [k] as in `Removals`."""
    text, its = texts.raw(row), slice(*np.searchsorted(rows, [row, row + 1]))
    pieces = zip([0, *ends[its].tolist()], [*starts[its].tolist(), len(text)], strict=True)
    return b"".join(text[start:end] for start, end in pieces).decode()
