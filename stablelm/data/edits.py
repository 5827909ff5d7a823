"""Changes of texts as byte spans: what the cleaning groups decide, stored apart from the text they change.

An edit says: of text `row`, bytes [start, end) become a replacement; an empty one deletes. The edits of all
groups become one list by `merge`, whatever the order they come in, by four rules:
  1. deletions that overlap or touch are one deletion;
  2. a replacement that a deletion covers is gone;
  3. replacements that overlap are one, over all their bytes, with the text of the longest (then the first,
     then the least by code point);
  4. where a deletion overlaps a replacement in part, those bytes are the replacement's.
So the bytes that vanish are exactly those which some edit named, and each replacement is written once. Texts
are changed when they are tokenised and nowhere before, so a changed threshold costs no rewriting. Merge all
groups at once: by rule 2, merging what is merged may keep a replacement that merging at once would drop.
Costs 2 µs an edit. Rejected: edited copies of the text (the disk twice, and later groups' offsets change)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.data.texts import Texts

Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Edits:
    """k edits, sorted by row and start, without overlaps. Made by `of`, `merge` and `from_arrays`."""

    rows: Array
    """Number of the text, [k]."""
    starts: Array
    """First byte of the span within its text, on a character boundary, [k]."""
    ends: Array
    """One past the last byte, [k]."""
    codes: Array
    """What stands there instead, as a number in `replacements`, [k]."""
    replacements: tuple[str, ...]
    """The texts that are used, each once, sorted."""

    @classmethod
    def none(cls) -> "Edits":
        """Change nothing."""
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, empty, empty, ())

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int, int, str]]) -> "Edits":
        """From (row, start, end, replacement) in any order, merged; an empty span is no edit."""
        listed = list(spans)
        rows, starts, ends = np.array([span[:3] for span in listed], np.int64).reshape(-1, 3).T
        return _merged(rows, starts, ends, [span[3] for span in listed])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        """(row, start, end, replacement) of each edit."""
        texts = (self.replacements[code] for code in self.codes.tolist())
        return zip(self.rows.tolist(), self.starts.tolist(), self.ends.tolist(), texts, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edits) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # arrays may not be keys

    def of_row(self, row: int) -> "Edits":
        """The edits of one text."""
        first, last = np.searchsorted(self.rows, [row, row + 1])
        return self._at(np.arange(first, last))

    def renumbered(self, numbers: Array) -> "Edits":
        """Text i becomes text numbers[i], which rise; −1 drops its edits."""
        kept = np.flatnonzero(numbers[self.rows] >= 0)
        chosen = self._at(kept)
        return Edits(numbers[chosen.rows], chosen.starts, chosen.ends, chosen.codes, chosen.replacements)

    def _at(self, places: Array) -> "Edits":
        used = sorted(set(self.codes[places].tolist()))
        codes = np.searchsorted(used, self.codes[places]).astype(np.int64)
        table = tuple(self.replacements[code] for code in used)
        return Edits(self.rows[places], self.starts[places], self.ends[places], codes, table)

    def apply(self, text: bytes) -> bytes:
        """`text` (UTF-8) with the edits of its row done; all of them must be of one row (`of_row`)."""
        assert len(self) == 0 or self.rows[0] == self.rows[-1], "the edits of one text are wanted"
        pieces, place = [], 0
        for _, start, end, replacement in self:
            pieces += [text[place:start], replacement.encode()]
            place = end
        return b"".join([*pieces, text[place:]])

    def apply_all(self, texts: Texts) -> Texts:
        """All texts with their edits done: `apply` of each row, without a step per unchanged text."""
        self.check(texts, "edits")
        firsts = np.concatenate([[0], texts.ends[:-1]])[self.rows] if len(texts) else self.rows
        encoded = [text.encode() for text in self.replacements]
        data, pieces, place = np.ascontiguousarray(texts.data).data, [], 0
        for start, end, code in zip(
            (firsts + self.starts).tolist(), (firsts + self.ends).tolist(), self.codes.tolist(), strict=True
        ):
            pieces += [data[place:start], encoded[code]]
            place = end
        longer = np.array([len(text) for text in encoded], np.int64)[self.codes] if encoded else self.codes
        gained = np.zeros(len(texts) + 1, np.int64)
        np.add.at(gained, self.rows, longer - (self.ends - self.starts))
        joined = np.frombuffer(b"".join([*pieces, data[place:]]), np.uint8)
        return Texts(joined, texts.ends + np.cumsum(gained)[:-1])

    def check(self, texts: Texts, source: str) -> None:
        """`InputError` naming `source` and the row unless each span fits its text, on characters' bounds."""
        if not len(self):
            return
        starts = np.concatenate([[0], texts.ends[:-1]]) if len(texts) else np.zeros(0, np.int64)
        inside = (self.rows >= 0) & (self.rows < len(texts))
        if inside.all():
            first, last = starts[self.rows], texts.ends[self.rows]
            inside = (self.starts >= 0) & (first + self.ends <= last)
        if inside.all():
            bounds = np.append((texts.data & 0xC0) != 0x80, True)  # where a character begins, and the end
            inside &= bounds[first + self.starts] & bounds[first + self.ends]
        if not inside.all():
            row = int(self.rows[np.argmin(inside)])
            raise InputError(
                f"{source}: an edit of text {row} does not fit it; edits and texts are of different runs. "
                "Delete the work directory and prepare again."
            )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As plain arrays, without pickles: four of int64 [k] and the table of strings."""
        return {
            "rows": self.rows,
            "starts": self.starts,
            "ends": self.ends,
            "codes": self.codes,
            "replacements": np.array(self.replacements, dtype=np.str_),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], source: str) -> "Edits":
        """What `to_arrays` gave; anything else is an `InputError` that names `source`."""
        missing = [key for key in ("rows", "starts", "ends", "codes", "replacements") if key not in arrays]
        problem = f"{', '.join(missing)} missing" if missing else ""
        if not missing:
            rows, starts, ends, codes = (arrays[key] for key in ("rows", "starts", "ends", "codes"))
            table = tuple(str(text) for text in arrays["replacements"])
            found = cls(rows, starts, ends, codes, table)
            problem = found._fault()
        if problem:
            raise InputError(f"{source}: not stored edits ({problem}). Delete the file and prepare again.")
        return found

    def _fault(self) -> str:
        arrays = (self.rows, self.starts, self.ends, self.codes)
        if any(array.dtype != np.int64 or array.ndim != 1 for array in arrays):
            return "an array is not of int64"
        if len({len(array) for array in arrays}) != 1:
            return "the arrays differ in length"
        if len(self) and not set(self.codes.tolist()) <= set(range(len(self.replacements))):
            return "a code is not in the table"
        if list(self.replacements) != sorted(set(self.replacements)):
            return "the table is not sorted"
        if (self.rows < 0).any() or (self.starts < 0).any() or (self.starts >= self.ends).any():
            return "a span is empty or negative"
        same, risen = np.diff(self.rows) == 0, np.diff(self.rows) > 0
        if not (risen | (same & (self.starts[1:] >= self.ends[:-1]))).all():
            return "the spans are not in order or overlap"
        return ""


def merge(*groups: Edits) -> Edits:
    """The edits of several groups as one list, by the rules above; the order of the groups does not count."""
    texts = [group.replacements[code] for group in groups for code in group.codes.tolist()]
    none = np.zeros(0, np.int64)
    rows = np.concatenate([none, *(group.rows for group in groups)])
    starts = np.concatenate([none, *(group.starts for group in groups)])
    ends = np.concatenate([none, *(group.ends for group in groups)])
    return _merged(rows, starts, ends, texts)


def _merged(rows: Array, starts: Array, ends: Array, texts: list[str]) -> Edits:
    if any("\0" in text for text in set(texts)):
        raise InputError("edits: a replacement holds a NUL character; choose one without.")
    assert not len(rows) or (min(rows.min(), starts.min()) >= 0 and (starts <= ends).all()), "not spans"
    table = sorted(set(texts))
    numbers = {text: number for number, text in enumerate(table)}
    codes = np.array([numbers[text] for text in texts], np.int64)
    filled = starts < ends
    rows, starts, ends, codes = rows[filled], starts[filled], ends[filled], codes[filled]
    if not len(rows):
        return Edits.none()
    # All rows on one line, a gap between each two, so that spans of two rows never meet.
    named, ranks = np.unique(rows, return_inverse=True)
    stride = int(ends.max()) + 2
    assert len(named) * stride < 1 << 62
    first, last = ranks * stride + starts, ranks * stride + ends
    deletes = np.array([text == "" for text in table], bool)[codes]
    gone = _union(first[deletes], last[deletes])
    kept = _replacements(first[~deletes], last[~deletes], codes[~deletes], gone)
    gone = _outside(*gone, *kept[:2])
    begin, end = np.concatenate([gone[0], kept[0]]), np.concatenate([gone[1], kept[1]])
    codes = np.concatenate([np.zeros(len(gone[0]), np.int64), kept[2]])  # "" sorts first, if it is used
    order = np.argsort(begin, kind="stable")
    found = Edits(
        named[begin // stride][order],
        (begin % stride)[order],
        (end % stride)[order],
        codes[order],
        tuple(table),
    )
    return found._at(np.arange(len(found)))


def _union(starts: Array, ends: Array) -> tuple[Array, Array]:
    """Maximal spans; those that touch are one."""
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    opens = np.ones(len(starts), bool)
    opens[1:] = starts[1:] > reach[:-1]
    closes = np.roll(opens, -1)
    return starts[opens], reach[closes]


def _replacements(
    starts: Array, ends: Array, codes: Array, gone: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Rules 2 and 3."""
    nearest = np.searchsorted(gone[0], starts, side="right") - 1
    covered = (nearest >= 0) & (np.append(gone[1], -1)[nearest] >= ends)
    starts, ends, codes = starts[~covered], ends[~covered], codes[~covered]
    order = np.argsort(starts, kind="stable")
    starts, ends, codes = starts[order], ends[order], codes[order]
    reach = np.maximum.accumulate(ends)
    opens = np.ones(len(starts), bool)
    opens[1:] = starts[1:] >= reach[:-1]
    cluster = np.cumsum(opens)
    winners = np.lexsort((codes, starts, starts - ends, cluster))
    return starts[opens], reach[np.roll(opens, -1)], codes[winners[opens]]


def _outside(starts: Array, ends: Array, other_starts: Array, other_ends: Array) -> tuple[Array, Array]:
    """What of the first spans lies in none of the second; both sorted, each without overlaps."""
    low = np.searchsorted(
        other_ends, starts, side="right"
    )  # the others that overlap span i: low[i] to high[i]
    high = np.maximum(low, np.searchsorted(other_starts, ends, side="left"))
    pieces = high - low + 1
    owner = np.repeat(np.arange(len(starts)), pieces)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    other = low[owner] + step
    begin = np.where(step == 0, starts[owner], np.append(other_ends, 0)[np.maximum(other - 1, 0)])
    end = np.where(step == pieces[owner] - 1, ends[owner], np.append(other_starts, 0)[other])
    filled = begin < end
    return begin[filled], end[filled]
