"""Which windows a step reads: steps ↔ positions, where the batch and the context may change between phases.

A window is `batch.sequence_length` tokens, the longest context of the run, and everything that counts samples
counts windows. A phase with a shorter context cuts every window into equal pieces that are read as sequences
of their own, in the same step; so the order, the epochs and the accounts know nothing of contexts, and a
change of context neither repeats nor loses a token. Positions count windows consumed."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stablelm.config.mixture import DataConfig, PhaseConfig
from stablelm.config.optimization import BatchConfig


class Span(NamedTuple):
    """What one step reads."""

    first: int
    """Position of its first window."""
    windows: int
    """How many it reads."""
    pieces: int
    """Sequences that each of them is cut into."""


@dataclass(frozen=True)
class Stretch:
    """Steps with one batch."""

    step: int
    """Steps completed before its first."""
    position: int
    """Windows consumed before it."""
    windows: int
    """Windows of a step."""
    pieces: int
    """Sequences in a window."""


class Steps:
    """The steps of a run."""

    def __init__(self, stretches: Sequence[Stretch], window: int) -> None:
        """`stretches` ascend from step 0; `window`: tokens in one."""
        self.stretches, self.window = tuple(stretches), window
        self._begins = [stretch.step for stretch in self.stretches]
        self._positions = np.array([stretch.position for stretch in self.stretches], dtype=np.int64)
        self._windows = np.array([stretch.windows for stretch in self.stretches], dtype=np.int64)
        self._steps = np.array(self._begins, dtype=np.int64)

    @property
    def batches(self) -> list[tuple[int, int, int]]:
        """(Steps completed before, sequences, tokens of context) wherever one of these changes."""
        found: list[tuple[int, int, int]] = []
        for stretch in self.stretches:
            now = stretch.windows * stretch.pieces, self.window // stretch.pieces
            if not found or found[-1][1:] != now:
                found.append((stretch.step, *now))
        return found

    @classmethod
    def of(cls, data: DataConfig, batch: BatchConfig) -> "Steps":
        """The steps of a configuration; `ValueError` where a phase's batch does not fit its windows, or its
        beginning is not known."""
        stretches: list[Stretch] = []
        parts: list[PhaseConfig | None] = [*data.parts()]
        phases, begin = parts or [None], 0
        for number, phase in enumerate(phases):
            windows, pieces = _cut(number, phase, batch)
            if not stretches:
                stretches.append(Stretch(0, 0, windows, pieces))
            before, last = phases[number - 1] if number else phase, stretches[-1]
            batch_changes = (windows, pieces) != (last.windows, last.pieces)
            if before and phase and (batch_changes or _rate(phase) != _rate(before)):
                if before.until_step is None:
                    raise ValueError(
                        f"data.phases.{number} changes the batch, the context or the learning rate, which "
                        f"happens after a step: give data.phases.{number - 1} its until_step"
                    )
                position = last.position + (before.until_step - last.step) * last.windows
                stretches.append(Stretch(before.until_step, position, windows, pieces))
            if phase is not None and phase.until_step is not None:
                if phase.until_step <= begin:
                    raise ValueError(
                        f"data.phases.{number}.until_step {phase.until_step:,} is not after step {begin:,}, "
                        "where the phase before ends; steps count from the beginning of the run"
                    )
                begin = phase.until_step
        return cls(stretches, batch.sequence_length)

    def stretch(self, step: int) -> Stretch:
        """The one that the step after `step` completed ones is in."""
        return self.stretches[bisect_right(self._begins, step) - 1]

    def position(self, step: int) -> int:
        """Windows that `step` full steps consume."""
        stretch = self.stretch(step)
        return stretch.position + (step - stretch.step) * stretch.windows

    def span(self, step: int, samples: int) -> Span:
        """What the step after `step` completed ones reads of a run of `samples` windows."""
        first = self.position(step)
        return Span(first, min(self.position(step + 1), samples) - first, self.stretch(step).pieces)

    def count(self, samples: int) -> int:
        """Steps that read `samples` windows, the last one perhaps not full."""
        return int(self.reading(np.array([samples - 1]))[0]) + 1 if samples > 0 else 0

    def reading(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many steps are complete before the one that reads each of these positions."""
        row = np.searchsorted(self._positions, positions, side="right") - 1
        return np.asarray(self._steps[row] + (positions - self._positions[row]) // self._windows[row])


def _cut(number: int, phase: PhaseConfig | None, batch: BatchConfig) -> tuple[int, int]:
    """Windows of a step of a phase, and sequences in a window."""
    length = phase.sequence_length if phase and phase.sequence_length else batch.sequence_length
    sequences = phase.sequences if phase and phase.sequences else batch.sequences
    pieces, rest = divmod(batch.sequence_length, length)
    if rest or not pieces:
        raise ValueError(
            f"data.phases.{number}.sequence_length {length:,} does not divide batch.sequence_length "
            f"{batch.sequence_length:,}, the longest context of the run; choose a divisor, or make that a "
            "multiple"
        )
    if sequences % pieces:
        named = f"data.phases.{number}.sequences" if phase and phase.sequences else "batch.sequences"
        raise ValueError(
            f"{named} {sequences:,} × {length:,} tokens are no whole number of windows of "
            f"{batch.sequence_length:,}; make it a multiple of {pieces}"
        )
    return sequences // pieces, pieces


def _rate(phase: PhaseConfig) -> tuple[object, object]:
    return phase.schedule, phase.lr
