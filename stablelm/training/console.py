"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere (a log file,
Slurm)."""

import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Console(Protocol):
    """Where a run reports to."""

    def start(self, steps: int, done: int) -> None:
        """The loop begins: `steps` in all, `done` of them before."""

    def step(self, record: dict[str, Any], eta_seconds: float, line: bool) -> None:
        """One step was made; `line` says that it is one to print in a log."""

    def message(self, text: str) -> None:
        """One line."""

    def stop(self) -> None:
        """The loop ended."""


class Lines:
    """The console as a sink of records: steps as they are made, and why one was rejected."""

    def __init__(self, console: Console, steps: Callable[[], int], every: int) -> None:
        """`steps` in all, of the plan at hand; a line `every` so many."""
        self._console, self._steps, self._every, self._seconds = console, steps, every, 0.0

    def write(self, record: dict[str, Any]) -> None:
        """Shows a step; measurements are told by who makes them, in words."""
        step, kind = record["step"], record.get("kind")
        if kind == "rejected":
            self._console.message(f"step {step:,}: rejected: {record['reason']}")
        if kind is None:
            seconds, left = record["seconds"], self._steps() - step
            self._seconds = 0.95 * self._seconds + 0.05 * seconds if self._seconds else seconds
            shown = left == 0 or step % self._every == 0 or step == 1
            self._console.step(record, left * self._seconds, shown)

    def rewind(self, step: int) -> None:
        """What was said was said."""

    def close(self) -> None:
        """The console speaks on."""


def make_console() -> Console:
    """A live console on a terminal, else plain lines."""
    return LiveConsole() if sys.stdout.isatty() else PlainConsole()


def describe(record: dict[str, Any]) -> str:
    """Loss, perplexity, learning rate, throughput and MFU of a step, for a reader."""
    margin = record.get("rewards/margins")  # of preference tuning
    watched = "" if margin is None else f"margin {margin:.3f}  "
    if (right := record.get("rewards/accuracies")) is not None:
        watched += f"right {100 * right:.0f} %  "
    perplexity = f"perplexity {record['perplexity']:,.2f}  " if "perplexity" in record else ""
    return (
        f"loss {record['loss']:.4f}  {perplexity}{watched}lr {record['lr']:.2e}  "
        f"norm {record['grad_norm']:.2f}  {record['tokens_per_second']:,.0f} tokens/s  "
        f"MFU {100 * record['mfu']:.1f} %"
    )


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class PlainConsole:
    """Lines on standard output, flushed."""

    def start(self, steps: int, done: int) -> None:
        self._steps = steps

    def step(self, record: dict[str, Any], eta_seconds: float, line: bool) -> None:
        if line:
            self.message(
                f"step {record['step']}/{self._steps}  {describe(record)}  ETA {duration(eta_seconds)}"
            )

    def message(self, text: str) -> None:
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the reader went away, as `| head` does; the run goes on without it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def stop(self) -> None:
        """Nothing to close."""


class LiveConsole:
    """A progress bar that stays in place; messages scroll above it."""

    def __init__(self) -> None:
        self._console = RichConsole(highlight=False)
        self._progress: Progress | None = None

    def start(self, steps: int, done: int) -> None:
        columns = (MofNCompleteColumn(), BarColumn(24), TextColumn("{task.fields[about]}"))
        self._progress = Progress(*columns, console=self._console)
        self._progress.start()
        self._task = self._progress.add_task("", total=steps, completed=done, about="")

    def step(self, record: dict[str, Any], eta_seconds: float, line: bool) -> None:
        assert self._progress is not None
        about = f"{describe(record)}  ETA {duration(eta_seconds)}"
        self._progress.update(self._task, completed=record["step"], about=about)

    def message(self, text: str) -> None:
        self._console.print(text, markup=False)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class SilentConsole:
    """Says nothing: what all processes but the first report to."""

    def start(self, steps: int, done: int) -> None:
        """Nothing."""

    def step(self, record: dict[str, Any], eta_seconds: float, line: bool) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""
