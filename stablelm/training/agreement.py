"""Processes that act together: what one of them cannot do, all of them refuse, with the same error.

Each does its part and tells the others how it went, over a gloo group of its own, so it may happen beside
the training's communication. One that has died closes its connections, which the others notice within a
second; one that hangs, after the group's timeout. A plain process without a group is a run of one."""

import datetime
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from stablelm.config import InputError
from stablelm.config.errors import RunError

T = TypeVar("T")
PATIENCE = datetime.timedelta(minutes=30)
"""How long a process that does not answer is waited for: the slowest may be writing many gigabytes."""


class Ranks:
    """The processes of this run; `rank` of `world`. Every process makes the same ones in the same order."""

    def __init__(self, patience: datetime.timedelta = PATIENCE) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.group: dist.ProcessGroup | None = None
        self.rank, self.world = 0, 1
        if together:
            self.group = dist.new_group(backend="gloo", timeout=patience)
            self.rank, self.world = dist.get_rank(), dist.get_world_size()

    @property
    def first(self) -> bool:
        """Whether this process writes what there is one of."""
        return self.rank == 0

    def together(self, action: Callable[[], T]) -> list[T]:
        """What `action` gave on every rank, by rank; raises everywhere the error of the first that failed."""
        mine: tuple[T | None, Exception | None]
        try:
            mine = (action(), None)
        except Exception as error:
            if self.group is None:
                raise
            mine = (None, _portable(error, self.rank))
        told = [mine] * self.world
        if self.group is not None:
            with answering():
                dist.all_gather_object(told, mine, self.group)
        for _, failure in told:
            if failure is not None:
                raise failure
        return [value for value, _ in told]  # type: ignore[misc]  # without an error there is a value

    def at_first(self, action: Callable[[], T]) -> T:
        """`action` done by the first process alone; its value, or its error, on all."""
        value = self.together(lambda: action() if self.first else None)[0]
        return value  # type: ignore[return-value]  # rank 0's

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        if self.group is None:
            return flag
        count = torch.tensor(int(flag))
        with answering():
            dist.all_reduce(count, group=self.group)
        return bool(count)


class answering:
    """While the block runs, a process that is gone is one clear `RunError` instead of gloo's words.

    `only`: the block does more than talk, so other errors go through as they are."""

    def __init__(self, *, only: bool = False) -> None:
        self.only = only

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, RunError):
            return
        if not self.only or isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise RunError(
                f"a process of this run is gone or does not answer ({str(error).splitlines()[0][:200]}). "
                "Finished checkpoints are untouched: start all processes again with --resume."
            ) from error


def _portable(error: Exception, rank: int) -> Exception:
    """The error as another process may unpickle it."""
    if type(error) in (InputError, RunError) or isinstance(error, OSError):
        return error
    return RunError(f"process {rank}: {type(error).__name__}: {error}")
