"""Tasks in processes of this machine.

Workers are started when the first stage has work for more than one (less than `SMALL` bytes is done in this
process, sooner than a worker starts), are kept for the later stages, and do one task at a time on one thread:
documents share nothing, and threads that share a tokenizer's cache wait for each other. A worker that dies is
one error that names its task; a task's error, or Ctrl-C, ends all workers at once. They also end when this
process is killed. What is finished stays finished. Rejected: `concurrent.futures` (does not say which task a
lost worker had, and waits for running tasks before it reports an error); a fork server that has imported the
package already (it looks where Python looks, and may find another version than this process runs)."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from stablelm.config.errors import RunError
from stablelm.data.execution import Stage, Task, run_task

SMALL = 8 << 20
_ONE_THREAD = {
    "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


class _Worker:
    """A process and what it is doing."""

    def __init__(self, context: Any) -> None:
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.task: Task | None = None


class Local:
    """`workers` processes; with 1, this one."""

    def __init__(self, workers: int = 0) -> None:
        """`workers` 0: one a core that this process may use."""
        self.workers = workers or available_cores()
        self._pool: list[_Worker] = []

    def map(self, stage: Stage, tasks: Sequence[Task], work: Path, finished: Callable[[Task], None]) -> None:
        """See `Executor.map`."""
        if min(self.workers, len(tasks)) < 2 or sum(task.size for task in tasks) < SMALL:
            for task in tasks:
                run_task(stage, task, work)
                finished(task)
            return
        try:
            self._run(stage, list(tasks), work, finished)
        except BaseException:
            self.close()
            raise

    def _run(self, stage: Stage, tasks: list[Task], work: Path, finished: Callable[[Task], None]) -> None:
        context = multiprocessing.get_context("spawn")
        while len(self._pool) < min(self.workers, len(tasks)):
            self._pool.append(_Worker(context))
        tasks = tasks[::-1]
        while tasks or any(worker.task for worker in self._pool):
            for worker in self._pool:
                if worker.task is None and tasks:
                    worker.task = task = tasks.pop()
                    try:
                        worker.pipe.send((stage, task, work))
                    except OSError:  # it was lost while it had nothing to do
                        raise RunError(self._lost(worker, stage, task)) from None
            busy = {worker.pipe: worker for worker in self._pool if worker.task}
            for pipe in wait(list(busy)):
                worker = busy[pipe]
                assert worker.task is not None
                task, worker.task = worker.task, None
                try:
                    error, trace = worker.pipe.recv()
                except (EOFError, OSError):
                    raise RunError(self._lost(worker, stage, task)) from None
                if error is not None:
                    raise error from (None if isinstance(error, ValueError | OSError) else _Remote(trace))
                finished(task)

    def _lost(self, worker: _Worker, stage: Stage, task: Task) -> str:
        worker.process.join(5)
        code = worker.process.exitcode or 0
        how = f"was killed (signal {-code})" if code < 0 else f"ended (exit code {code})"
        return (
            f"a worker process {how} while doing {stage.name}/{task.name}; often the memory did not suffice. "
            "What was finished is kept: run again to go on, with fewer `workers` if it was the memory."
        )

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        pool, self._pool = self._pool, []
        for worker in pool:
            worker.process.kill() if worker.task else worker.pipe.close()
        for worker in pool:
            worker.process.join(5)
            worker.process.kill()
            worker.process.join()
            worker.process.close()


class _Remote(Exception):
    """The traceback of a worker."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(pipe: Connection) -> None:
    """A worker: tasks come through the pipe, their errors go back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends its workers
    os.environ.update(_ONE_THREAD)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        try:
            stage, task, work = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[Exception | None, str] = (None, "")
        try:
            run_task(stage, task, work)
        except Exception as error:
            answer = (error, traceback.format_exc())
        try:
            pipe.send(answer)
        except (TypeError, AttributeError, ValueError):  # an error that cannot be pickled
            pipe.send((RuntimeError(repr(answer[0])), answer[1]))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
