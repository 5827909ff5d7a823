"""Sample numbers to token windows: the bridge between a prepared dataset and a training step.

A window is L + 1 tokens, the last being only a target, so neighbouring windows overlap by one token and no
target is lost. In epoch e the stream of source s (t tokens, its end joined to its beginning) is cut from o(s,
e) = hash mod L on: window i is tokens o + i·L … o + i·L + L, for i < N = ⌊t / L⌋. In every epoch each token
is thus the target of exactly one prediction, except t − N·L < L tokens, which lie elsewhere in each epoch;
`accounting` names their documents. `data.windows` limits a source to its first W windows: the stream is then
its first W·L tokens, and nothing is left over.

Documents inside a window are found in the index by binary search, never by looking for EOD, which text may
forge; the join of end and beginning is a boundary too. A token at a boundary still predicts the next one, the
first of another document, so that every token stays a target.

Everything is a pure function of (dataset, mixture, L, seed, sample number): the state of the loader is one
integer."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.mixture import DataConfig, PhaseConfig, as_fraction
from stablelm.config.optimization import BatchConfig
from stablelm.config.schema import suggest
from stablelm.config.steps import Steps
from stablelm.data.manifest import Dataset
from stablelm.data.mixture import BLOCK, Mixture, Phase
from stablelm.data.permutation import GOLDEN, mix64
from stablelm.data.samples import Samples, Sighting
from stablelm.data.skips import Skips
from stablelm.data.token_files import TokenFile
from stablelm.storage import fingerprint, keyed_uint64

Int64 = NDArray[np.int64]


class Loader(Samples):
    """The training samples of a run, by position."""

    def __init__(
        self, dataset: Dataset, data: DataConfig, sequence_length: int, seed: int, sequences: int = 1
    ) -> None:
        """`sequences`: of a step, which `until_step` counts in, but where a phase says otherwise.

        `InputError` for a source that is not there, or shorter than a window or than `data.windows`; for a
        phase that cannot end where it is to, and a skipped range that is not there."""
        self.dataset = dataset
        files: dict[str, TokenFile] = {}
        windows: dict[str, int] = {}
        for name in data.sources():  # the order in which a configuration lists them does not matter
            dataset.info(name)
            files[name] = dataset.train(name)
            windows[name] = _windows(name, files[name].num_tokens, data, sequence_length)
        steps = Steps.of(data, BatchConfig(sequences=sequences, sequence_length=sequence_length))
        self.mixture = _mixture(data.mixtures(), windows, data.skip, seed, steps)
        super().__init__(self.mixture.num_samples, data.skip, sequence_length, steps)
        names = self.mixture.sources
        self._files = [files[name] for name in names]
        self._lengths = [
            windows[name] * sequence_length if name in data.windows else files[name].num_tokens
            for name in names
        ]  # tokens of each source's stream
        self._turns = np.array([keyed_uint64(seed, "rotation", name) for name in names], dtype=np.uint64)
        phases = data.parts()
        self._firsts = [order.first for order in self.mixture.phases]  # sample number that a phase begins at
        if data.epochs:
            ends = [phase.until_step for phase in phases[:-1]]
            self._firsts = [0, *(self.next_number(steps.position(end)) for end in ends if end is not None)]
        own = [phase.document_boundaries for phase in phases]
        self._bounded = [data.document_boundaries if flag is None else flag for flag in own]
        self._tables = [
            {name: str(as_fraction(phase.epochs[name])) for name in sorted(phase.epochs)} for phase in phases
        ]
        described: dict[str, Any] = {
            "dataset": dataset.fingerprint, "epochs": {n: str(e) for n, e in self.mixture.epochs.items()},
            "windows": self.mixture.windows, "lengths": self._lengths, "seed": seed,
            "sequence_length": sequence_length,
        }  # fmt: skip
        if len(phases) > 1 or self.skips.ranges or any(self._bounded) or self.mixture.phases[0].cut:
            described |= self.prefix(self.total)  # what came later than the first checkpoints
        self.fingerprint = fingerprint(described)

    def read(self, numbers: Int64) -> Int64:
        """Ids of the samples with these numbers, int64 [n, L + 1]."""
        source, start = self._start(numbers)
        batch = np.empty((len(numbers), self.sequence_length + 1), dtype=np.int64)
        for row, number, at in zip(batch, source.tolist(), start.tolist(), strict=True):
            filled, length = 0, self._lengths[number]
            while filled < len(row):  # a window that crosses the end of the stream goes on at its beginning
                count = min(len(row) - filled, length - at)
                row[filled : filled + count] = self._files[number].tokens(at, count)
                filled, at = filled + count, (at + count) % length
        return batch

    def documents(self, numbers: Int64) -> NDArray[np.int32] | None:
        """Document ids of the samples with these numbers; 0 all along a row whose phase has no boundaries."""
        bounded = np.array(self._bounded)[np.searchsorted(self._firsts, numbers, side="right") - 1]
        if not bounded.any():
            return None
        source, start = self._start(numbers)
        ids = np.zeros((len(numbers), self.sequence_length), dtype=np.int32)
        for row in np.flatnonzero(bounded).tolist():
            file, length, at = self._files[source[row]], self._lengths[source[row]], int(start[row])
            pieces = [tokens for _, tokens in _documents(file, at, at + self.sequence_length, length)]
            ids[row] = np.repeat(np.arange(len(pieces), dtype=np.int32), pieces)
        return ids

    def phase(self, position: int) -> int:
        """Which phase of the data, from 0, the sample at a position is of."""
        return int(np.searchsorted(self._firsts, self.numbers(position, 1)[0], side="right")) - 1

    def source(self, numbers: Int64) -> Int64:
        """Which source each sample is of, [n]."""
        return self.mixture.address(numbers)[0]

    def predicted(self, numbers: Int64) -> Iterator[tuple[str, int, int]]:
        """(Source, document, its tokens that are predicted), sample by sample."""
        for row, at in zip(*(v.tolist() for v in self._start(numbers)), strict=True):
            stop = at + 1 + self.sequence_length
            for document, tokens in _documents(self._files[row], at + 1, stop, self._lengths[row]):
                yield self.mixture.sources[row], document, tokens

    def document_names(self, source: str, documents: set[int]) -> dict[int, str]:
        """Their ids, as the data were prepared."""
        return self.dataset.document_ids(source, documents)

    def _start(self, numbers: Int64) -> tuple[Int64, Int64]:
        """Source and first token of samples."""
        source, epoch, window = self.mixture.address(numbers)
        return source, self._rotation(source, epoch) + window * self.sequence_length

    def _rotation(self, source: Int64, epoch: Int64) -> Int64:
        """Where the first window of an epoch begins, in [0, L)."""
        with np.errstate(over="ignore"):
            turns = mix64(self._turns[source] + epoch.astype(np.uint64) * GOLDEN)
        return (turns % np.uint64(self.sequence_length)).astype(np.int64)

    def when(
        self, source: str, document: int, epoch: int | None = None, tokens: tuple[int, int] | None = None
    ) -> list[Sighting]:
        """Every sample in which tokens of a training document are predicted, in the order of the run.

        `epoch`, from 0, asks for one reading alone; `tokens` (first, one past the last) for a part of the
        document. Exact, and found by inverting the order: a few µs a window."""
        if source not in self.mixture.sources:
            raise InputError(f"no source {source!r} in this run{suggest(source, self.mixture.sources)}")
        number = self.mixture.sources.index(source)
        file, length, windows = self._files[number], self._lengths[number], self.mixture.windows[source]
        if not 0 <= document < file.num_documents:
            raise InputError(f"source {source!r} has no document {document}; it has {file.num_documents:,}.")
        size, start = int(file.sizes[document]), file.document_start(document)
        low, high = (0, size) if tokens is None else (max(0, tokens[0]), min(size, tokens[1]))
        stop = min(start + high, length)
        if start + low >= stop:
            return []
        epochs = np.arange(-(-self.mixture.totals[source] // windows))
        if epoch is not None:
            epochs = epochs[epochs == epoch]
        found: list[Sighting] = []
        for each, turn in zip(epochs, self._rotation(np.full_like(epochs, number), epochs), strict=True):
            counts = _in_windows((start + low - int(turn) - 1) % length, stop - start - low, length,
                                 self.sequence_length, windows)  # fmt: skip
            wanted = np.array(sorted(counts), dtype=np.int64)
            numbers = self.mixture.sample_number(number, each, wanted)
            found += [
                Sighting(int(each), window, sample, position, step, counts[window])
                for window, sample, position, step in zip(
                    wanted.tolist(),
                    numbers.tolist(),
                    *(v.tolist() for v in self.locate(numbers)),
                    strict=True,
                )
                if position >= 0
            ]
        return sorted(found, key=lambda sighting: sighting.position)

    def drawn(self, number: int) -> dict[str, int]:
        """Samples of each source with numbers below `number`, skipped ones included."""
        return self.mixture.seen(number)

    def prefix(self, end: int) -> dict[str, Any]:
        """All that decides the samples with numbers below `end`, for JSON."""
        begun = [i for i, first in enumerate(self._firsts) if first < end]
        ends = [*self._firsts[1:], self.total]
        phases = [
            {
                "epochs": self._tables[i],
                "until_sample": min(end, ends[i]),
                "document_boundaries": self._bounded[i],
            }
            for i in begun
        ]
        used = {name for i in begun for name in self._tables[i]}
        windows = {name: count for name, count in self.mixture.windows.items() if name in used}
        return {"phases": phases, "skip": [list(r) for r in self.skips.before(end)], "windows": windows}

    def seen(self, num_samples: int) -> dict[str, dict[str, Any]]:
        """Per source, what the first `num_samples` samples hold: samples, epochs (a float) and tokens."""
        return {
            name: {
                "samples": count,
                "epochs": count / self.mixture.windows[name],
                "tokens": count * self.sequence_length,
            }
            for name, count in self.consumed(num_samples).items()
        }

    def table(self) -> dict[str, dict[str, Any]]:
        """Per source: epochs asked for (as written: 4, 1.15, 7/3), windows in an epoch, samples in all."""
        skipped = self._skipped()
        return {
            name: {
                "epochs": _written(self.mixture.epochs[name]),
                "windows": count,
                "samples": self.mixture.totals[name] - skipped.get(name, 0),
            }
            for name, count in self.mixture.windows.items()
        }

    def accounting(self) -> dict[str, dict[str, Any]]:
        """Per source, every token that the mixture does not use, epoch by epoch.

        `tokens` = `stream` + `beyond_windows` (cut off by data.windows, from document `from_document` on).
        Each entry of `epochs` reads `windows` of all; `skipped_windows` are left out by data.skip,
        `unread_windows` because the epoch is a fraction; `remainder` tokens are too few for a window, and
        `documents` lists them: number and id in the token file, tokens."""
        skipped: dict[tuple[int, int], int] = {}
        for first, last in self.skips.ranges:
            for begin in range(first, last + 1, BLOCK):
                source, epoch, _ = self.mixture.address(np.arange(begin, min(begin + BLOCK, last + 1)))
                pairs, counts = np.unique(np.stack([source, epoch]), axis=1, return_counts=True)
                for row, turn, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
                    skipped[row, turn] = skipped.get((row, turn), 0) + count
        return {
            name: self._account(number, name, skipped) for number, name in enumerate(self.mixture.sources)
        }

    def _account(self, number: int, name: str, skipped: dict[tuple[int, int], int]) -> dict[str, Any]:
        file, length, windows = self._files[number], self._lengths[number], self.mixture.windows[name]
        entries: list[dict[str, Any]] = []
        left = self.mixture.totals[name]
        for epoch in range(-(-left // windows)):
            read = min(left, windows)
            left -= read
            turn = int(self._rotation(np.array([number]), np.array([epoch]))[0])
            used, passed = windows * self.sequence_length, skipped.get((number, epoch), 0)
            unused = _documents(file, turn + used + 1, turn + length + 1, length)
            entries.append({
                "epoch": epoch, "windows": read - passed, "skipped_windows": passed,
                "unread_windows": windows - read, "remainder": length - used,
                "documents": [{"document": document, "tokens": tokens} for document, tokens in unused],
            })  # fmt: skip
        ids = self.dataset.document_ids(name, {d["document"] for e in entries for d in e["documents"]})
        for entry in entries:
            entry["documents"] = [{**about, "id": ids[about["document"]]} for about in entry["documents"]]
        beyond = file.num_tokens - length
        return {
            "tokens": file.num_tokens, "stream": length, "beyond_windows": beyond,
            "from_document": file.document_at(length) if beyond else None, "epochs": entries,
        }  # fmt: skip


def _windows(name: str, tokens: int, data: DataConfig, length: int) -> int:
    """Windows of a source in one epoch."""
    available = tokens // length
    if available < 1:
        raise InputError(
            f"source {name!r}: {tokens:,} training tokens are fewer than one window of {length:,}. Shorten "
            "batch.sequence_length, add text, or leave the source out."
        )
    windows = data.windows.get(name, available)
    if not 1 <= windows <= available:
        raise InputError(
            f"data.windows: {windows:,} windows of {name!r} are asked for; its {tokens:,} tokens make 1 to "
            f"{available:,} of {length:,}."
        )
    return windows


def _mixture(
    phases: list[PhaseConfig], windows: dict[str, int], skip: list[tuple[int, int]], seed: int, steps: Steps
) -> Mixture:
    """The mixture of a configuration: steps become the sample numbers at which they are over."""
    skips = Skips(skip)
    tables = [
        Phase(
            {name: as_fraction(phase.epochs[name]) for name in sorted(phase.epochs)},
            None
            if phase.until_step is None
            else int(skips.numbers(steps.position(phase.until_step) - 1)) + 1,
        )
        for phase in phases
    ]
    try:
        return Mixture(windows, tables, seed)
    except InputError as error:
        if all(phase.until_step is None for phase in phases):
            raise
        sizes = " or ".join(f"{size:,}" for size in dict.fromkeys(s.windows for s in steps.stretches))
        raise InputError(f"data.phases (a step is {sizes} samples): {error}") from None


def _in_windows(first: int, count: int, stream: int, length: int, windows: int) -> dict[int, int]:
    """How many of `count` targets from `first` on, in a stream joined at its end, each window holds."""
    counts: dict[int, int] = {}
    for start, stop in ((first, min(first + count, stream)), (0, first + count - stream)):
        stop = min(stop, windows * length)
        while start < stop:
            end = min(stop, (start // length + 1) * length)
            counts[start // length] = counts.get(start // length, 0) + end - start
            start = end
    return counts


def _documents(file: TokenFile, start: int, stop: int, length: int) -> Iterator[tuple[int, int]]:
    """Documents at positions start to stop − 1 of a stream joined at `length`, and their tokens there."""
    while start < stop:
        at = start % length
        document = file.document_at(at)
        tokens = min(file.document_start(document) + int(file.sizes[document]), length) - at
        tokens = min(tokens, stop - start)
        yield document, tokens
        start += tokens


def _written(epochs: Fraction) -> str:
    return f"{float(epochs):.12g}" if as_fraction(f"{float(epochs):.12g}") == epochs else str(epochs)
