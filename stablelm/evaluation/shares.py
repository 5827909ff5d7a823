"""Which forward passes a process makes when several evaluate one model together.

A pass over a model that is spread over processes is collective: all make equally many, and one that has
nothing left repeats something that nobody counts. What they found is put together by sums, so every process
has the same numbers, those of one process."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


def _alone(mine: Tensor) -> Tensor:
    return mine


@dataclasses.dataclass(frozen=True)
class Share:
    """This process's part of the work; by default all of it."""

    part: int = 0
    parts: int = 1
    """Processes (or groups that compute a sequence together) that read different rows."""
    total: Callable[[Tensor], Tensor] = _alone
    """A float64 tensor, added up over the parts."""
    multiple: int = 1
    """Rows are padded to a multiple of so many tokens, which sequence parallelism wants."""

    def turns(self, batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """This part's batches, each with whether it counts: every n-th, and the last again where the others
        have one more."""
        for first in range(0, len(batches), self.parts):
            number = first + self.part
            yield batches[min(number, len(batches) - 1)], number < len(batches)

    def padded(self, width: int) -> int:
        """`width` or a little more."""
        return -(-width // self.multiple) * self.multiple


ALONE = Share()
