"""Which samples the passes of a step read, for what is drawn by the sample: noise, dropout.

A step reads its samples in an order that is known before; each pass takes the next of them. What is drawn
from a sample's number is then the same however rows are cut into passes and shared by processes."""

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class Passing:
    """Knows the numbers of the samples that a step still has to read; none outside `on`."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self.now: list[int] = []
        """Of the pass that is being made."""

    @contextlib.contextmanager
    def on(self, numbers: NDArray[np.int64]) -> Iterator[None]:
        """While the passes of a step are made that read the samples with these numbers, in this order."""
        self._waiting = numbers.tolist()
        try:
            yield
        finally:
            self._waiting, self.now = [], []

    def take(self, count: int) -> list[int]:
        """The numbers of the next pass, of `count` rows; fewer where a process has no sample left."""
        self.now, self._waiting = self._waiting[:count], self._waiting[count:]
        return self.now
