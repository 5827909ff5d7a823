"""Python's garbage collector, pinned: it may start at any allocation, on each process at another moment, and
all the others then wait for that one. During a run it collects every `every` steps, everywhere at once."""

import gc
from types import TracebackType


class PinnedGarbage:
    """While the block runs, nothing is collected but by `step`; what was there before is left alone. What a
    program that trains has frozen itself stays frozen: it cannot be told from ours afterwards."""

    def __init__(self, every: int = 1000) -> None:
        self.every, self._enabled, self._freezes = every, gc.isenabled(), False

    def __enter__(self) -> "PinnedGarbage":
        self._freezes = gc.get_freeze_count() == 0
        gc.collect()
        if self._freezes:
            gc.freeze()
        gc.disable()
        return self

    def step(self, number: int) -> None:
        """Collects when it is time to."""
        if number % self.every == 0:
            gc.collect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._freezes:
            gc.unfreeze()
        if self._enabled:
            gc.enable()
