"""Stages as pure functions over tasks, in a work directory that a killed run continues.

    WORK/<stage>/<task>/          what a task made, whole or absent
    WORK/<stage>/<task>/done.json its fingerprint, the sizes of its files, and small results

A task is its stage's name and version, its arguments (JSON) and the outputs it reads; the hash of all that is
its fingerprint, and what it makes depends on nothing else. A task that was finished with the same fingerprint
is not run again, so a run that was killed, or whose settings or inputs changed, repeats what is missing or
concerned and no more. A stage whose output is small can pass its content on instead of its fingerprint
(`by_content`): what it finds anew but equal then changes nothing downstream.

Who runs the tasks is an executor's business (executors/): processes here, a cluster, or an array of jobs, of
which worker k of N does tasks k, k + N, …. None can change a byte: a task sees only its arguments. Costs a
directory and some flushes a task. Rejected: marks by rank or by time (a change would go unnoticed)."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.storage import (
    atomic_directory,
    explain_full_disk,
    fingerprint,
    read_json,
    sha256_file,
    write_json,
)
from stablelm.storage.atomic import TEMPORARY

DONE = "done.json"


@dataclass(frozen=True)
class Task:
    """A piece of a stage's work."""

    name: str
    """Of its directory below the stage's."""
    arguments: Mapping[str, Any]
    """All that `run` goes by, as JSON."""
    inputs: tuple[str, ...] = ()
    """What the outputs that it reads are known by (`Mark.output`)."""
    size: int = 0
    """Bytes it goes through, about; for the progress."""


@dataclass(frozen=True)
class Mark:
    """The mark of a finished task."""

    fingerprint: str
    output: str
    """What later tasks know its output by."""
    result: dict[str, Any]
    """Small results, JSON."""


class Stage(Protocol):
    """A step of the preparation; can be pickled."""

    @property
    def name(self) -> str:
        """Of its directory, and in reports."""

    @property
    def version(self) -> int:
        """Raised when the same arguments come to make something else."""

    @property
    def by_content(self) -> bool:
        """Whether its output is known by its bytes rather than by its fingerprint."""

    def tasks(self, work: "Work") -> list[Task]:
        """Its tasks in a stable order; may read the results of the stages before it."""

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Does a task: reads below `work`, writes into `out`, and returns what its mark is to hold."""


class Progress(Protocol):
    """Where a preparation reports to."""

    def message(self, text: str) -> None:
        """One line."""

    def start(self, stage: str, tasks: int, size: int) -> None:
        """A stage begins: so many tasks to do, of `size` bytes together."""

    def advance(self, size: int) -> None:
        """A task of `size` bytes was finished."""

    def finish(self) -> None:
        """The stage ended, or was broken off."""


class Executor(Protocol):
    """What runs tasks."""

    def map(self, stage: Stage, tasks: Sequence[Task], work: Path, finished: Callable[[Task], None]) -> None:
        """Has `run_task` done for every task, in any order; calls `finished` after each, here.

        Raises what a task raised (the others may be broken off), `RunError` when a worker is lost."""

    def close(self) -> None:
        """Lets go of its workers."""


class Work:
    """A work directory, and the tasks of its stages; each stage's are listed once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tasks: dict[str, list[Task]] = {}
        self._marks: dict[tuple[str, str], Mark] = {}

    def tasks(self, stage: Stage) -> list[Task]:
        """The stage's tasks; the stages before it must be finished."""
        if stage.name not in self._tasks:
            tasks = stage.tasks(self)
            assert len({task.name for task in tasks}) == len(tasks), f"{stage.name}: two tasks of one name"
            self._tasks[stage.name] = tasks
        return self._tasks[stage.name]

    def marks(self, stage: Stage) -> list[tuple[Task, Mark]]:
        """Every task of a finished stage with its mark; `InputError` names a task that is missing."""
        return [(task, self.mark(stage, task)) for task in self.tasks(stage)]

    def mark(self, stage: Stage, task: Task) -> Mark:
        """The mark of a finished task."""
        key = (stage.name, task.name)
        if key not in self._marks:
            mark = finished(self.path, stage, task)
            if mark is None:
                raise InputError(
                    f"{self.path / stage.name / task.name}: not done yet, or with other settings. Run the "
                    f"stage {stage.name!r} first."
                )
            self._marks[key] = mark
        return self._marks[key]

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())


def task_fingerprint(stage: Stage, task: Task) -> str:
    """Of all that a task's output depends on."""
    return fingerprint([stage.name, stage.version, task.arguments, list(task.inputs)])


def finished(work: Path, stage: Stage, task: Task) -> Mark | None:
    """The mark of a task that was finished as it now is, with files of the promised sizes; else None."""
    folder = work / stage.name / task.name
    try:
        values = read_json(folder / DONE)
        mark = Mark(values["fingerprint"], values["output"], values["result"])
        whole = all((folder / name).stat().st_size == size for name, size in values["files"].items())
    except (InputError, KeyError, TypeError, AttributeError, OSError):
        return None
    return mark if whole and mark.fingerprint == task_fingerprint(stage, task) else None


def run_task(stage: Stage, task: Task, work: Path) -> None:
    """Does one task and marks it finished; what was there under its name is replaced."""
    folder = work / stage.name / task.name
    own = task_fingerprint(stage, task)
    with explain_full_disk(folder), atomic_directory(folder, replace=True) as aside:
        result = stage.run(work, task, aside)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        names = [path.relative_to(aside).as_posix() for path in files]
        output = own
        if stage.by_content:
            output = fingerprint([[n, sha256_file(f)] for n, f in zip(names, files, strict=True)] + [result])
        sizes = {name: path.stat().st_size for name, path in zip(names, files, strict=True)}
        write_json(aside / DONE, {"fingerprint": own, "output": output, "files": sizes, "result": result})


def execute(stages: Sequence[Stage], work: Work, executor: Executor, progress: Progress) -> dict[str, int]:
    """Runs what is not finished, stage by stage; returns how many tasks each stage had to run."""
    ran = {}
    for stage in stages:
        tasks = work.tasks(stage)
        waiting = [task for task in tasks if finished(work.path, stage, task) is None]
        _prune(work.path / stage.name, {task.name for task in tasks})
        ran[stage.name] = len(waiting)
        if not waiting:
            continue
        progress.start(stage.name, len(waiting), sum(task.size for task in waiting))
        try:
            executor.map(stage, waiting, work.path, lambda task: progress.advance(task.size))
        finally:
            progress.finish()
        for task in waiting:
            if finished(work.path, stage, task) is None:
                raise RunError(f"stage {stage.name!r}: task {task.name} was not done. Run again to go on.")
    return ran


def run_part(stage: Stage, work: Work, part: int, parts: int, progress: Progress) -> int:
    """Does tasks `part`, `part` + `parts`, … of a stage in this process, of which it returns how many it ran;
    the stages before it must be finished."""
    waiting = [t for t in work.tasks(stage)[part::parts] if finished(work.path, stage, t) is None]
    progress.start(stage.name, len(waiting), sum(task.size for task in waiting))
    try:
        for task in waiting:
            run_task(stage, task, work.path)
            progress.advance(task.size)
    finally:
        progress.finish()
    return len(waiting)


def _prune(folder: Path, wanted: set[str]) -> None:
    """Removes what no task of the stage is named by: earlier settings' tasks, and what a kill left aside."""
    if folder.is_dir():
        for entry in list(os.scandir(folder)):
            if entry.name not in wanted and (entry.is_dir() or TEMPORARY in entry.name):
                shutil.rmtree(entry.path, ignore_errors=True)
