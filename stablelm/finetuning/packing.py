"""Examples to rows of one length, and rows to the samples that a trainer reads.

Packing is best fit, longest example first (ties by a hash of the seed): each goes into the row with the least
room that still takes it; an example is never cut. It is done once; what changes from epoch to epoch is the
order of the rows, a keyed permutation as in pre-training, so a sample is found from its number alone and a
resumed run reads what an undisturbed one would. Attention stays within an example and positions start anew
in each, so an example's loss does not depend on its neighbours; what is left of a row is padding that nothing
attends to and nothing predicts. Costs about 2 µs an example.

Rejected: packing anew in each epoch (the number of rows, and with it the schedule, would depend on the
order), cutting examples at the end of a row (an answer without its question)."""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.finetune import SOURCE
from stablelm.config.mixture import as_fraction
from stablelm.config.run import RunConfig, steps_of
from stablelm.data.mixture import Mixture
from stablelm.data.permutation import mix64
from stablelm.data.samples import Samples, Sighting
from stablelm.finetuning.examples import Example
from stablelm.finetuning.pairs import Pair
from stablelm.storage import fingerprint, keyed_uint64

Int64 = NDArray[np.int64]


def pack(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Rows of example numbers, the lengths in each adding up to at most `capacity`; the same for equal
    arguments."""
    sizes = np.asarray(lengths, dtype=np.int64)
    assert not len(sizes) or 0 < sizes.min() <= sizes.max() <= capacity
    with np.errstate(over="ignore"):
        ties = mix64(np.arange(len(sizes), dtype=np.uint64) + np.uint64(keyed_uint64(seed, "packing")))
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # room → rows that have it
    rooms: list[int] = []  # its keys, ascending
    for number in np.lexsort((ties, -sizes)).tolist():
        size = int(sizes[number])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        rows[row].append(number)
        if room := room - size:
            if room not in open_rows:
                open_rows[room] = []
                insort(rooms, room)
            open_rows[room].append(row)
    return rows


class Rows:
    """Examples in rows of `length` + 1 ids, by row number."""

    def __init__(
        self,
        examples: Sequence[Example],
        length: int,
        seed: int,
        pad_id: int,
        *,
        packing: bool = True,
        groups: list[list[int]] | None = None,
    ) -> None:
        """`groups`: which examples share a row, where that is decided already."""
        self.length, self.pad_id = length, pad_id
        sizes = [len(example.ids) for example in examples]
        alone = [[number] for number in range(len(sizes))]
        self.examples = groups or (pack(sizes, length + 1, seed) if packing else alone)
        """Row → numbers of its examples."""
        self._ids = np.concatenate([e.ids for e in examples]) if examples else np.zeros(0, dtype=np.int32)
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        digest = hashlib.sha256(self._ids.tobytes() + self._starts.tobytes())
        self.fingerprint = fingerprint([digest.hexdigest(), self.examples, length, pad_id])
        """Of every id, and of how they lie."""
        self.trained = np.array([example.trained for example in examples], dtype=np.int64)
        """Trained tokens of each example."""

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def fill(self) -> float:
        """Share of the rows' places that examples take."""
        return len(self._ids) / max(1, len(self) * (self.length + 1))

    def sizes(self, row: int) -> list[int]:
        """Tokens of each example of a row."""
        return [int(self._starts[number + 1] - self._starts[number]) for number in self.examples[row]]

    def ids(self, rows: Int64) -> Int64:
        """As of samples, int64 [n, L + 1]; padding is read as an id that is no target."""
        found = np.full((len(rows), self.length + 1), ~self.pad_id, dtype=np.int64)
        for filled, row in zip(found, rows.tolist(), strict=True):
            at = 0
            for number in self.examples[row]:
                piece = self._ids[self._starts[number] : self._starts[number + 1]]
                filled[at : at + len(piece)] = piece
                at += len(piece)
        return found

    def documents(self, rows: Int64) -> NDArray[np.int32]:
        """Which example of its row each input is of, [n, L]; padding is one more."""
        found = np.zeros((len(rows), self.length + 1), dtype=np.int32)
        for filled, row in zip(found, rows.tolist(), strict=True):
            at = 0
            for place, size in enumerate(self.sizes(row)):
                filled[at : at + size] = place
                at += size
            filled[at:] = len(self.examples[row])
        return found[:, :-1].copy()


class PairRows:
    """Pairs in rows of two lanes: first sides in one, second sides in the other, of `length` + 1 ids each.

    Both sides of a pair are in one row, so no process and no pass ever has half of one, and each side may be
    as long as the model's context."""

    def __init__(
        self, pairs: Sequence[Pair], length: int, seed: int, pad_id: int, *, packing: bool = True
    ) -> None:
        self.length, self.pairs = length, pairs
        sides = list(zip(*(pair.sides for pair in pairs), strict=True)) or [(), ()]
        sizes = [max(len(first.ids), len(second.ids)) for first, second in zip(*sides, strict=True)]
        self.examples = pack(sizes, length + 1, seed) if packing else [[n] for n in range(len(sizes))]
        """Row → numbers of its pairs."""
        self.lanes = [Rows(lane, length, seed, pad_id, groups=self.examples) for lane in sides]
        wanted = [pair.wanted for pair in pairs]
        self.fingerprint = fingerprint([*(lane.fingerprint for lane in self.lanes), wanted])
        self.trained: Int64 = self.lanes[0].trained + self.lanes[1].trained
        """Tokens of the answers of each pair."""

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def fill(self) -> float:
        """Share of the rows' places that pairs take."""
        return sum(lane.fill for lane in self.lanes) / 2

    def members(self, rows: Int64) -> list[int]:
        """Numbers of the pairs in some rows, as they lie."""
        return [number for row in rows.tolist() for number in self.examples[row]]

    def lengths(self, pairs: Sequence[int], lanes: Sequence[int]) -> list[int]:
        """Tokens of the answers of some pairs, lane after lane."""
        return [int(self.lanes[lane].trained[number]) for lane in lanes for number in pairs]

    def ids(self, rows: Int64) -> Int64:
        """Both lanes' one after the other, int64 [n, 2 (L + 1)]."""
        return np.concatenate([lane.ids(rows) for lane in self.lanes], axis=1)

    def documents(self, rows: Int64) -> NDArray[np.int32]:
        """Which pair of its row each input is of, lane after lane, [n, 2 L]."""
        return np.concatenate([lane.documents(rows) for lane in self.lanes], axis=1)


class ExampleSamples(Samples):
    """Rows of examples in the order of a run, for its trainer."""

    def __init__(self, rows: Rows | PairRows, config: RunConfig) -> None:
        self.rows = rows
        self._epochs = as_fraction(config.data.epochs[SOURCE])
        self.mixture = Mixture({SOURCE: len(rows)}, {SOURCE: self._epochs}, config.seed)
        total = self.mixture.num_samples
        super().__init__(total, config.data.skip, config.batch.sequence_length, steps_of(config))
        self.fingerprint = fingerprint([rows.fingerprint, config.seed, self.prefix(self.total)])

    def read(self, numbers: Int64) -> Int64:
        """Ids of the samples with these numbers, int64 [n, L + 1]."""
        return self.rows.ids(self.mixture.address(numbers)[2])

    def documents(self, numbers: Int64) -> NDArray[np.int32] | None:
        """Which example each input is of, [n, L]."""
        return self.rows.documents(self.mixture.address(numbers)[2])

    def predicted(self, numbers: Int64) -> Iterator[tuple[str, int, int]]:
        """(Source, example, its trained tokens), sample by sample."""
        for row in self.mixture.address(numbers)[2].tolist():
            for example in self.rows.examples[row]:
                yield SOURCE, int(example), int(self.rows.trained[example])

    def drawn(self, number: int) -> dict[str, int]:
        """Samples with numbers below `number`."""
        return self.mixture.seen(number)

    def prefix(self, end: int) -> dict[str, Any]:
        """All that decides the samples with numbers below `end`, for JSON."""
        return {"epochs": str(self._epochs), "skip": [list(r) for r in self.skips.before(end)]}

    def seen(self, num_samples: int) -> dict[str, dict[str, Any]]:
        """Rows, epochs and places for tokens (padding included) of the first `num_samples` samples."""
        count = self.consumed(num_samples)[SOURCE]
        tokens = count * self.sequence_length
        return {SOURCE: {"samples": count, "epochs": count / len(self.rows), "tokens": tokens}}

    def table(self) -> dict[str, dict[str, Any]]:
        """Epochs asked for, rows in an epoch, samples in all."""
        samples = self.mixture.totals[SOURCE] - self._skipped().get(SOURCE, 0)
        return {SOURCE: {"epochs": _written(self._epochs), "windows": len(self.rows), "samples": samples}}

    def accounting(self) -> dict[str, dict[str, Any]]:
        """Epoch by epoch, the rows that are read, left out by data.skip, or not reached; no token is lost."""
        size, left, entries = len(self.rows), self.mixture.totals[SOURCE], []
        for epoch in range(-(-left // size)):
            read = min(left - epoch * size, size)
            before, after = (
                sum(max(0, min(b + 1, edge) - a) for a, b in self.skips.ranges if a < edge)
                for edge in (epoch * size, epoch * size + read)
            )
            entries.append({
                "epoch": epoch, "windows": read - (after - before), "skipped_windows": after - before,
                "unread_windows": size - read, "remainder": 0, "documents": [],
            })  # fmt: skip
        tokens = int(self.rows.trained.sum())
        return {SOURCE: {"trained_tokens": tokens, "examples": len(self.rows.trained), "epochs": entries}}

    def when(
        self, source: str, document: int, epoch: int | None = None, tokens: tuple[int, int] | None = None
    ) -> list[Sighting]:
        """Every sample in which an example is read, in the order of the run; examples are never cut, so
        `tokens` changes nothing."""
        if not 0 <= document < len(self.rows.trained):
            raise InputError(f"no example {document}; there are {len(self.rows.trained):,}, from 0 on.")
        row = next(i for i, numbers in enumerate(self.rows.examples) if document in numbers)
        epochs = np.arange(-(-self.mixture.totals[SOURCE] // len(self.rows)))
        epochs = epochs if epoch is None else epochs[epochs == epoch]
        numbers = self.mixture.sample_number(0, epochs, row) if len(epochs) else np.zeros(0, dtype=np.int64)
        at, steps = self.locate(numbers)
        count = int(self.rows.trained[document])
        found = zip(epochs.tolist(), numbers.tolist(), at.tolist(), steps.tolist(), strict=True)
        return [Sighting(e, row, n, position, step, count) for e, n, position, step in found if position >= 0]


def _written(epochs: Any) -> str:
    return str(epochs) if epochs.denominator == 1 else f"{float(epochs):g}"
