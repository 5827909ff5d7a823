"""What every order of training samples offers: samples by position, and where something is seen.

A position counts what a run has consumed; `Skips` turns it into a sample number, and the order (`Loader`,
`NeoxLoader`) turns that into tokens. Positions, numbers and windows are pure functions of each other, so the
state of a run is one integer."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.steps import Steps
from stablelm.data.skips import Skips


@dataclasses.dataclass(frozen=True)
class Sighting:
    """One training sample in which tokens of a document are predicted."""

    epoch: int
    """Which reading of the source, from 0; of GPT-NeoX's order, which occurrence of the document."""
    window: int
    """The window of that epoch; of GPT-NeoX's order, the row of `sample_idx`."""
    sample: int
    """Its number in the order."""
    position: int
    """How many samples the run has consumed before it."""
    step: int
    """The optimizer step that reads it, from 1."""
    tokens: int
    """How many of the tokens asked for are predicted in it."""


class Samples(ABC):
    """The training samples of a run, by position."""

    fingerprint: str
    """Of everything that decides what is read; equal fingerprints, equal samples."""

    def __init__(self, total: int, skip: Iterable[tuple[int, int]], length: int, steps: Steps) -> None:
        """`total` sample numbers, of which the ranges `skip` are left out; `steps` says which are read when.

        `InputError` for a range that is not there, or when nothing is left."""
        self.sequence_length, self.steps, self.total = length, steps, total
        self.skips = Skips(skip)
        for first, last in self.skips.ranges:
            if last >= total:
                raise InputError(
                    f"data.skip: [{first:,}, {last:,}] goes beyond the last sample, {total - 1:,}. Sample "
                    "numbers are first_sample and last_sample in metrics.jsonl."
                )
        self.num_samples = total - self.skips.count
        """Samples that a run can consume."""
        if self.num_samples < 1:
            raise InputError("data.skip: it leaves out every sample. Skip less.")

    def numbers(self, first: int, count: int) -> NDArray[np.int64]:
        """The sample numbers at `count` positions from `first` on, [count]."""
        if first < 0 or count < 0 or first + count > self.num_samples:
            raise IndexError(f"samples {first:,} to {first + count:,} of {self.num_samples:,}")
        return self.skips.numbers(np.arange(first, first + count))

    def samples(self, first: int, count: int) -> NDArray[np.int64]:
        """Ids of `count` samples from position `first` on, int64 [count, L + 1]: inputs [:, :-1], targets
        [:, 1:]."""
        return self.read(self.numbers(first, count))

    def document_ids(self, first: int, count: int) -> NDArray[np.int32] | None:
        """For the inputs of the same samples, [count, L]: neighbours with equal numbers are of one document.

        Only where the run's data keep documents apart; None when no row of these does."""
        return self.documents(self.numbers(first, count))

    def next_number(self, position: int) -> int:
        """One more than the last sample number among the first `position` samples."""
        return int(self.skips.numbers(position - 1)) + 1 if position else 0

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions and steps (from 1) of sample numbers; −1 and −1 for one that is never consumed."""
        at = np.where(numbers < 0, -1, self.skips.positions(np.maximum(numbers, 0)))
        return at, np.where(at < 0, -1, self.steps.reading(np.maximum(at, 0)) + 1)

    def phase(self, position: int) -> int:
        """Which phase of the data, from 0, the sample at a position is of."""
        return 0

    def source(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which source each sample is of: a place in the order of `table`, [n]."""
        return np.zeros(len(numbers), dtype=np.int64)

    def predicted(self, numbers: NDArray[np.int64]) -> Iterator[tuple[str, int, int]]:
        """(Source, document, its tokens that are predicted), sample by sample; of an order without documents
        nothing."""
        return iter(())

    def document_names(self, source: str, documents: set[int]) -> dict[int, str]:
        """The ids of documents, where the data have any."""
        return {}

    def _skipped(self) -> dict[str, int]:
        """Samples of each source in the skipped ranges."""
        counts: dict[str, int] = {}
        for first, last in self.skips.ranges:
            before, after = self.drawn(first), self.drawn(last + 1)
            counts = {name: counts.get(name, 0) + after[name] - before[name] for name in after}
        return counts

    def consumed(self, position: int) -> dict[str, int]:
        """Samples of each source among the first `position` consumed."""
        number = self.next_number(min(position, self.num_samples))
        drawn = self.drawn(number)
        for first, last in self.skips.before(number):
            before, after = self.drawn(first), self.drawn(last + 1)
            drawn = {name: count - after[name] + before[name] for name, count in drawn.items()}
        return drawn

    @abstractmethod
    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of the samples with these numbers, int64 [n, L + 1]; an entry v < 0 is the id ~v, which is read
        but not to be predicted."""

    @abstractmethod
    def documents(self, numbers: NDArray[np.int64]) -> NDArray[np.int32] | None:
        """Document ids of the samples with these numbers, or None."""

    @abstractmethod
    def drawn(self, number: int) -> dict[str, int]:
        """Samples of each source with numbers below `number`, skipped ones included."""

    @abstractmethod
    def prefix(self, end: int) -> dict[str, Any]:
        """All that decides the samples with numbers below `end`, for JSON: what a resumed run may not
        change."""

    @abstractmethod
    def seen(self, num_samples: int) -> dict[str, dict[str, Any]]:
        """Per source, what the first `num_samples` samples hold: samples, epochs (a float) and tokens."""

    @abstractmethod
    def table(self) -> dict[str, dict[str, Any]]:
        """Per source: epochs asked for (as written: 4, 1.15, 7/3), windows in an epoch, samples in all."""

    @abstractmethod
    def accounting(self) -> dict[str, dict[str, Any]]:
        """Per source, every token that the order does not use."""

    @abstractmethod
    def when(
        self, source: str, document: int, epoch: int | None = None, tokens: tuple[int, int] | None = None
    ) -> list[Sighting]:
        """Every sample in which tokens of a document of a source are predicted, in the order of the run.

        `epoch`, from 0, asks for one reading alone; `tokens` (first, one past the last) for a part of the
        document."""
