"""Goodput: where the wall time of a run went, over all its starts.

A clock is always in one phase; entering a phase charges the time so far to the one before, so nothing is
counted twice and nothing is left out (about a microsecond a change). What it measured goes to
RUN/goodput.jsonl, one line at each save and at least every half minute; lines are appended, never dropped, so
the account outlives `kill -9` and keeps what a resume drops from metrics.jsonl:

    {"start": unix time, "from": step}                    a start, and the step that it went on from
    {"time": unix time, "step": n, "seconds": {phase: s}} since the line before, up to the end of step n
    {"time": unix time, "back": step}                     a rollback (rollback.py)

A start or a rollback makes lost whatever was done after the step that it went on from: the time of those
lines, of any phase, is restart loss. Time between the last line of a start and the next start is down: no
process of the run can tell what it was; after a kill up to half a minute of it were steps. A start is counted
from the call of `train` on, after Python has loaded PyTorch; one that was refused, or found all steps done,
is no start.

The first step of a start compiles, allocates and fills caches: what it takes longer than the second is
start-up. Rejected: the steps' seconds in metrics.jsonl (a resume drops the lost ones), rewriting one small
file (a kill between writing and renaming needs an fsync a time)."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.storage import explain_full_disk, write_text
from stablelm.training.console import duration

GOODPUT = "goodput.jsonl"
EVERY = 30.0
"""Seconds after which a line is written, saves or not."""
COMPUTE, DATA, SAVE, EVALUATION, STARTUP = "compute", "data", "save", "evaluation", "startup"
REJECTED, LOST, DOWN, OTHER = "rejected", "lost", "down", "other"
PHASES = {
    COMPUTE: ("compute", "steps that the run kept: forward, backward, optimizer"),
    DATA: ("data wait", "waiting for the next batch"),
    SAVE: ("save stall", "saving, as far as the steps waited for it"),
    EVALUATION: ("evaluation", "held-out text and tasks"),
    STARTUP: ("start-up", "building, loading, what a first step takes longer than the second"),
    REJECTED: ("rejected steps", "steps that the guard did not let the weights learn from"),
    LOST: ("restart loss", "work after the checkpoint that the run went on from, and going back"),
    DOWN: ("down", "between a start's last line and the next start"),
    OTHER: ("other", "logging, and processes waiting for one another between steps"),
}
"""Each phase's name for a reader, and what it is."""


@dataclass
class Goodput:
    """The account of a run, from its lines."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """By phase; together the wall time."""
    began: float | None = None
    """Unix time of the first start."""
    time: float = 0.0
    """Unix time of the newest line."""
    starts: int = 0
    rollbacks: int = 0
    _kept: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Seconds from the first start to the newest line, by the system's clock."""
        return 0.0 if self.began is None else self.time - self.began

    @property
    def share(self) -> float:
        """Goodput: the share of the wall time that kept steps computed."""
        return self.seconds[COMPUTE] / total if (total := sum(self.seconds.values())) else 0.0

    def shares(self) -> dict[str, float]:
        """Each phase's share of the wall time, the largest first; phases that took no time are left out."""
        total = sum(self.seconds.values()) or 1.0
        ordered = sorted(self.seconds.items(), key=lambda each: -each[1])
        return {name: seconds / total for name, seconds in ordered if seconds > 0}

    def add(self, line: dict[str, Any]) -> None:
        """Takes up one line; `KeyError`, `TypeError` or `ValueError` when it is none."""
        if "seconds" in line:
            known = {name: float(line["seconds"][name]) for name in PHASES if name in line["seconds"]}
            for name, seconds in known.items():
                self.seconds[name] += seconds
            self._kept.append((int(line["step"]), known))
            self.time = float(line["time"])
            return
        if "start" in line:
            now, step = float(line["start"]), int(line["from"])
            self.starts += 1
            if self.began is None:
                self.began = self.time = now
            self.seconds[DOWN] += max(0.0, now - self.time)
        else:
            now, step = float(line["time"]), int(line["back"])
            self.rollbacks += 1
        for _, lost in (kept for kept in self._kept if kept[0] > step):
            for name, seconds in lost.items():
                self.seconds[name] -= seconds
                self.seconds[LOST] += seconds
        self._kept = [kept for kept in self._kept if kept[0] <= step]
        self.time = max(self.time, now)

    def told(self) -> str:
        """The account on one line."""
        rest = ", ".join(
            f"{PHASES[name][0]} {100 * share:.1f} %"
            for name, share in self.shares().items()
            if name != COMPUTE and share >= 0.0005
        )
        starts = f" in {self.starts} starts" if self.starts > 1 else ""
        whole = f"goodput {100 * self.share:.1f} % of {duration(self.wall)}{starts}"
        return f"{whole}; the rest: {rest}" if rest else whole


def read_goodput(run: Path) -> Goodput | None:
    """The account of a run so far, or None where there is none (a run of before there was one). A last line
    cut short by a kill is left out; any other damage is an `InputError`."""
    path, found = run / GOODPUT, Goodput()
    if not path.is_file():
        return None
    for number, line in enumerate(_lines(path), 1):
        try:
            found.add(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path}, line {number:,}: not a line of the account; the file is damaged. Remove it: the "
                "account then begins anew, and nothing else needs it."
            ) from None
    return found if found.starts else None


def _lines(path: Path) -> list[str]:
    """The whole lines of an account."""
    return path.read_text("utf-8", errors="replace").split("\n")[:-1]


class Clock:
    """The phases of one process; of the first process also the account, while it is `open`."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        """By phase, since the last line."""
        self.account: Goodput | None = None
        """Of the run, up to the last line."""
        self._phase, self._since = STARTUP, self.began
        self._steps, self._first, self._before = 0, 0.0, 0.0
        self._write: Callable[[dict[str, Any]], None] | None = None
        self._written = self.began

    def since(self, began: float) -> None:
        """Counts from a moment (of `time.perf_counter`) before the clock was made."""
        self.began = self._since = self._written = began

    def switch(self, phase: str) -> str:
        """Enters a phase; returns the one that it ends."""
        now, before = time.perf_counter(), self._phase
        self.seconds[before] += now - self._since
        self._since, self._phase = now, phase
        return before

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside is of this phase, but for the phases inside of it."""
        before = self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    def stepping(self, step: int) -> None:
        """The loop begins, after `step` completed steps: start-up is over."""
        self.switch(OTHER)
        self.mark(step)

    def stepped(self, step: int, rejected: bool) -> None:
        """A step was made: decides what its computation counts as."""
        took = self.seconds[COMPUTE] - self._before
        self._steps += 1
        if self._steps == 1:
            self._first = took
            self._move(COMPUTE, STARTUP, took)
        elif rejected:
            self._move(COMPUTE, REJECTED, took)
        if self._steps == 2:
            self._move(STARTUP, COMPUTE, min(self._first, took))
        if time.perf_counter() - self._written >= EVERY:
            self.mark(step)
        self._before = self.seconds[COMPUTE]

    def _move(self, source: str, target: str, seconds: float) -> None:
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    def mark(self, step: int) -> None:
        """Writes what was measured since the last line, up to the end of this step."""
        self.switch(self._phase)
        self._written = time.perf_counter()
        if self._write is not None:
            spent = {name: round(seconds, 6) for name, seconds in self.seconds.items() if seconds}
            self._write({"time": round(time.time(), 3), "step": step, "seconds": spent})
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._before = 0.0

    def back(self, reached: int, to: int) -> None:
        """The run has gone back from step `reached` to step `to`."""
        self.mark(reached)
        if self._write is not None:
            self._write({"time": round(time.time(), 3), "back": to})

    @contextlib.contextmanager
    def open(
        self, run: Path, at: Callable[[], int], *, fresh: bool, message: Callable[[str], None]
    ) -> Iterator[None]:
        """Keeps the account of a run while the block runs, and tells it at the end. `at`: completed steps;
        `fresh`: a new run, which has nothing to do with what may be there."""
        path, account = run / GOODPUT, None
        try:
            account = None if fresh else read_goodput(run)
            write_text(path, "".join(line + "\n" for line in (_lines(path) if account else [])))
        except InputError as error:
            path.replace(path.with_name(f"{GOODPUT}.damaged"))
            message(f"warning: {error} It was set aside as {GOODPUT}.damaged.")
        self.account = account or Goodput()
        with path.open("a", encoding="utf-8") as file:

            def write(line: dict[str, Any]) -> None:
                with explain_full_disk(path):
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                assert self.account is not None
                self.account.add(line)

            self._write = write
            write({"start": round(time.time() - (time.perf_counter() - self.began), 3), "from": at()})
            told = True
            try:
                yield
            except BaseException as error:
                told = isinstance(error, RunError)
                raise
            finally:
                self.mark(at())
                self._write = None
                if told:
                    message(self.account.told())
