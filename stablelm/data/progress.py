"""What a person sees of a preparation: a bar a stage on a terminal, plain lines elsewhere, with the speed."""

import sys
import time
from collections.abc import Callable
from typing import Any

from stablelm.data.execution import Progress

_SECONDS_BETWEEN_LINES = 2.0


class Plain:
    """Lines, now and then, for a function that writes one."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def message(self, text: str) -> None:
        """One line."""
        self._say(text)

    def start(self, stage: str, tasks: int, size: int) -> None:
        """A stage begins."""
        self._stage, self._tasks, self._size, self._done, self._finished = stage, tasks, size, 0, 0
        self._began = self._spoken = time.monotonic()

    def advance(self, size: int) -> None:
        """A task was finished."""
        self._done, self._finished = self._done + size, self._finished + 1
        if time.monotonic() - self._spoken > _SECONDS_BETWEEN_LINES:
            self._spoken = time.monotonic()
            self.message(f"{self._stage}: {self._finished:,} of {self._tasks:,} tasks, {self._speed()}")

    def finish(self) -> None:
        """The stage ended."""
        if self._finished == self._tasks:
            seconds = time.monotonic() - self._began
            self.message(f"{self._stage}: {self._tasks:,} tasks in {seconds:.1f} s, {self._speed()}")

    def _speed(self) -> str:
        return f"{self._done / 1e6 / max(time.monotonic() - self._began, 1e-3):,.1f} MB/s"


class Live:
    """A bar that stays in place; lines scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._bar: Any = None

    def message(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False)

    def start(self, stage: str, tasks: int, size: int) -> None:
        """A stage begins."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:12}"), BarColumn(24), TextColumn("{task.fields[about]}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
        self._bar.start()
        self._plain = Plain(lambda text: None)
        self._plain.start(stage, tasks, size)
        self._task = self._bar.add_task(stage, total=max(size, 1), about=f"0/{tasks:,} tasks")

    def advance(self, size: int) -> None:
        """A task was finished."""
        self._plain.advance(size)
        about = f"{self._plain._finished:,}/{self._plain._tasks:,} tasks  {self._plain._speed()}"
        self._bar.update(self._task, advance=size, about=about)

    def finish(self) -> None:
        """The stage ended."""
        self._bar.stop()


def make_progress() -> Progress:
    """Bars on a terminal, else lines on standard error."""
    if sys.stderr.isatty():
        return Live()
    return Plain(lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
