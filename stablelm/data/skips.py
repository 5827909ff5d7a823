"""Sample numbers that a run leaves out, and what that does to counting.

A run's position counts the samples that it consumed; a sample's number is its place in the order. Without
skipped ranges the two are equal; with them, the position steps over the range. Both directions are one binary
search in the list of ranges, so any sample is still found from a number alone, and a range ahead changes
nothing of what lies behind. Rejected: a list of the numbers left, and forgetting skipped ranges once they are
passed (a resumed run would count differently from an undisturbed one)."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64 = NDArray[np.int64]


class Skips:
    """Ranges of sample numbers, both ends included, merged where they touch."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        merged: list[list[int]] = []
        for first, last in sorted((int(first), int(last)) for first, last in ranges):
            assert 0 <= first <= last
            if merged and first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        self.ranges = [(first, last) for first, last in merged]
        """[first, last], ascending, disjoint."""
        self._firsts = np.array([first for first, _ in self.ranges], dtype=np.int64)
        sizes = np.array([last - first + 1 for first, last in self.ranges], dtype=np.int64)
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])  # skipped before range i
        self.count = int(self._before[-1])
        """How many numbers are left out."""

    def numbers(self, positions: ArrayLike) -> Int64:
        """The sample numbers at positions in the run."""
        at = np.asarray(positions, dtype=np.int64)
        passed = np.searchsorted(self._firsts - self._before[:-1], at, side="right")
        return np.asarray(at + self._before[passed])

    def positions(self, numbers: ArrayLike) -> Int64:
        """The positions of sample numbers; −1 for one that is left out."""
        at = np.asarray(numbers, dtype=np.int64)
        passed = np.searchsorted(self._firsts, at, side="right")
        lasts = np.array([-1, *(last for _, last in self.ranges)], dtype=np.int64)
        return np.where(at <= lasts[passed], -1, at - self._before[passed])

    def before(self, number: int) -> list[tuple[int, int]]:
        """The ranges below a sample number, the one that reaches beyond cut off."""
        return [(first, min(last, number - 1)) for first, last in self.ranges if first < number]
