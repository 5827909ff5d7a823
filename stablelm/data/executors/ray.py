"""Tasks on a Ray cluster: `ray.init` of this machine, or the cluster at RAY_ADDRESS (or `address`).

    WORK/.ray/.lock         shared by every worker while it does a task
    WORK/.ray/run-<token>   there while this run may write

A task goes to any free core, at most two a core are handed out at a time, and Ray itself repeats nothing: a
task whose worker or node is lost is handed out once more (what a task makes appears whole or not at all, so
doing it twice is doing it once), and lost again it is one error that names it. Nothing but arguments, errors
and marks goes through Ray's memory; texts go through the work directory, so every node must see that, and the
folder the command runs in, under the same path, and have the same code: each is asked before work starts, and
a node that joins later by its first task. Workers of a run whose driver was killed are waited for, and what
they had not begun finds its token gone: two runs never write at once. Stages of less than `SMALL` bytes are
done here.

Rejected: Ray Data (its blocks would replace files that a person can look at, and resuming is not by content),
Ray's own retries (they say nothing, and repeat tasks of a driver that is gone), the Ray client `ray://` (its
driver need not see the work directory)."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.data.execution import Stage, Task, finished, run_task
from stablelm.data.executors.local import SMALL, available_cores
from stablelm.storage import directory_lock

INSTALL = 'the Ray executor needs Ray: pip install "stablelm[ray]", or use `--executor local`.'
ATTEMPTS = 2
_ASK_SECONDS, _LEAVE_SECONDS, _VISIBLE_SECONDS, _STARVED_SECONDS = 60.0, 60.0, 60.0, 30.0
_STORE_BYTES = 100 << 20  # arguments and errors only
_ONE_THREAD = {
    "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


class Ray:
    """An executor on Ray's workers; Ray is started, or joined, when the first stage has work for it."""

    def __init__(self, workers: int = 0, address: str | None = None, small: int = SMALL) -> None:
        """`workers`: at most so many tasks at a time; 0: one a core of this machine, or all the cluster's.
        `address`: as `ray.init` takes it, "auto" for a cluster that runs on this machine; None: RAY_ADDRESS,
        and without that a Ray of our own. `small`: stages of fewer bytes are done in this process."""
        self.workers, self.small = workers, small
        self.address = address or os.environ.get("RAY_ADDRESS") or "local"
        if self.address.startswith("ray://"):
            raise InputError(
                f"Ray address {self.address}: a Ray client need not see the work directory. Run the command "
                'on a node of the cluster, with the address "auto".'
            )
        self._ray: Any = None
        self._started = False
        self._token: Path | None = None

    def map(self, stage: Stage, tasks: Sequence[Task], work: Path, finished: Callable[[Task], None]) -> None:
        """See `Executor.map`."""
        work = Path(os.path.abspath(work))
        if len(tasks) < 2 or sum(task.size for task in tasks) < self.small:
            for task in tasks:
                run_task(stage, task, work)
                finished(task)
            return
        self._join(work)
        self._run(stage, tasks, work, finished)
        _wait_until_visible(stage, tasks, work)

    def close(self) -> None:
        """Takes this run's token away; ends Ray if it was started, or joined, here."""
        if self._token is not None:
            self._token.unlink(missing_ok=True)
            self._token = None
        if self._started:
            self._ray.shutdown()
            self._started = False

    def _run(self, stage: Stage, tasks: Sequence[Task], work: Path, finished: Callable[[Task], None]) -> None:
        from ray.exceptions import RayError

        ray, token = self._ray, self._token
        # max_retries also covers a lost node, retry_exceptions what a task raises; neither is wanted.
        remote = ray.remote(num_cpus=1, max_retries=0, retry_exceptions=False)(_serve)
        shipped = ray.put((stage, work, token, os.getcwd()))
        waiting = list(tasks)[::-1]
        running: dict[Any, Task] = {}
        attempts = {task.name: 0 for task in tasks}
        alone = time.monotonic()
        try:
            while waiting or running:
                while waiting and len(running) < self._limit():
                    task = waiting.pop()
                    attempts[task.name] += 1
                    running[remote.remote(shipped, task)] = task
                ready, _ = ray.wait(list(running), timeout=1.0)
                for reference in ready:
                    task = running.pop(reference)
                    try:
                        error, trace = ray.get(reference)
                    except RayError as lost:
                        if attempts[task.name] >= ATTEMPTS:
                            raise RunError(_lost(stage, task, lost)) from None
                        waiting.append(task)
                        continue
                    if error is not None:
                        raise error from (None if isinstance(error, ValueError | OSError) else _Remote(trace))
                    finished(task)
                if ready or self._nodes():
                    alone = time.monotonic()
                elif time.monotonic() - alone > _STARVED_SECONDS:
                    raise RunError(
                        f"no node of the Ray cluster is left, with {len(waiting) + len(running):,} tasks of "
                        f"stage {stage.name!r} to do. What was finished is kept: run again to go on."
                    )
        finally:
            self._cancel(list(running))

    def _limit(self) -> int:
        """How many tasks are handed out at a time: no core waits for the next one, and no queue is long."""
        return self.workers or max(2 * int(sum(node["Resources"]["CPU"] for node in self._nodes())), 1)

    def _nodes(self) -> list[dict[str, Any]]:
        """The nodes that take tasks."""
        return [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]

    def _cancel(self, references: list[Any]) -> None:
        """Breaks off what is not finished, and sees it end: nothing writes after an error is told."""
        from ray.exceptions import RayError

        until = time.monotonic() + _LEAVE_SECONDS
        while references and time.monotonic() < until:
            for reference in references:  # again and again: a task that is just being handed out is missed
                with contextlib.suppress(RayError, ValueError):
                    self._ray.cancel(reference, force=True)
            _, references = self._ray.wait(references, num_returns=len(references), timeout=0.5)

    def _join(self, work: Path) -> None:
        """Starts or joins Ray, takes the work directory over, and asks every node if it can work there."""
        if self._ray is None:
            self._ray = _import()
        if not self._ray.is_initialized():
            self._started = True
            _start(self._ray, self.address, self.workers)
        if self._token is None or self._token.parent.parent != work:
            self._token = _take_over(work)
            self._ask_nodes(work, self._token)

    def _ask_nodes(self, work: Path, token: Path) -> None:
        from ray.exceptions import GetTimeoutError, RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes, here = self._nodes(), versions()
        if not nodes:
            raise InputError(f"Ray cluster {self.address}: no node offers a CPU. Start one with `ray start`.")
        ask = self._ray.remote(num_cpus=0, max_retries=0)(_answer)
        answers = [
            ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(token, os.getcwd())
            for node in nodes
        ]
        for node, reference in zip(nodes, answers, strict=True):
            where = f"Ray node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                fault, there = self._ray.get(reference, timeout=_ASK_SECONDS)
            except GetTimeoutError:
                raise RunError(f"{where}: no answer in {_ASK_SECONDS:.0f} s. Run again without it.") from None
            except RayError as error:
                remedy = "Install the same stablelm on every node, under the same path"
                raise InputError(f"{where}: cannot run stablelm ({_last_line(error)}). {remedy}.") from None
            if fault:
                raise InputError(f"{where}: {fault}")
            different = [
                f"{name} {there[name]}, here {here[name]}" for name in here if there[name] != here[name]
            ]
            if different:
                raise InputError(
                    f"{where}: has {'; '.join(different)}. Install the same versions everywhere."
                )


class _Remote(Exception):
    """The traceback of a worker."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _import() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry, unless it was asked for
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # says Ray's default, else it warns
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError(INSTALL) from None
    return ray


def _start(ray: Any, address: str, workers: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    if address == "local":
        ray.init(
            address="local", num_cpus=workers or available_cores(), object_store_memory=_STORE_BYTES, **quiet
        )
        return
    try:
        del quiet["include_dashboard"]
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Ray cluster {address}: cannot be joined ({_last_line(error)}). Start it with `ray start`, "
            "correct RAY_ADDRESS, or unset it to use this machine."
        ) from None


def _take_over(work: Path) -> Path:
    """This run's token in the work directory; earlier runs' are gone, and so are their workers."""
    folder, until = work / ".ray", time.monotonic() + _LEAVE_SECONDS
    while True:
        try:
            with directory_lock(folder):
                for old in folder.glob("run-*"):
                    old.unlink()
                token = folder / f"run-{uuid.uuid4().hex}"  # a new name: no node has cached its absence
                token.touch()
                return token
        except InputError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _serve(shipped: tuple[Stage, Path, Path, str], task: Task) -> tuple[Exception | None, str]:
    """A task, on a worker: its error and traceback, if any, are the answer."""
    stage, work, token, folder = shipped
    os.environ.update(_ONE_THREAD)
    try:
        fault = _unfit(token, folder)
        if fault:
            raise InputError(f"Ray node {platform.node()}: {fault}")
        with directory_lock(token.parent, shared=True):
            if not token.exists():
                raise InputError(f"{work}: another run works there now.")
            os.chdir(folder)  # where relative paths of the recipe start
            run_task(stage, task, work)
    except Exception as error:
        trace = traceback.format_exc()
        try:
            from ray import cloudpickle

            cloudpickle.loads(cloudpickle.dumps(error))  # type: ignore[no-untyped-call]
        except Exception:  # an error that cannot travel
            return RuntimeError(f"{type(error).__name__}: {error}"), trace
        return error, trace
    return None, ""


def _answer(token: Path, folder: str) -> tuple[str, dict[str, str]]:
    """Asked of a node: what keeps it from working, if anything, and its versions."""
    return _unfit(token, folder), versions()


def _unfit(token: Path, folder: str) -> str:
    """Why no task can be done on this node, "" if one can."""
    work = token.parent.parent
    remedy = "Put it on a file system that all nodes share, under one path (`work:`)"
    if not token.exists():
        return f"does not see the work directory {work} of the node that started the run. {remedy}."
    if not os.access(work, os.W_OK | os.X_OK):
        return f"may not write to the work directory {work}. Change its permissions, or its mount."
    if not os.path.isdir(folder):
        return f"does not see {folder}, where the command runs. Start it in a folder that all nodes share."
    return ""


def versions() -> dict[str, str]:
    """What the bytes of a result depend on, beside the recipe and its inputs."""
    root, code = Path(__file__).parents[2], hashlib.sha256()  # the package
    for path in sorted(root.rglob("*.py")):
        code.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    found = {name: importlib.metadata.version(name) for name in ("numpy", "tokenizers")}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "stablelm code": code.hexdigest()[:8], **found}


def _wait_until_visible(stage: Stage, tasks: Sequence[Task], work: Path) -> None:
    """A network file system may show what another node wrote seconds later."""
    until = time.monotonic() + _VISIBLE_SECONDS
    for task in tasks:
        while finished(work, stage, task) is None and time.monotonic() < until:
            os.listdir(work / stage.name)  # has the listing fetched anew
            time.sleep(0.05)


def _lost(stage: Stage, task: Task, error: Exception) -> str:
    return (
        f"{stage.name}/{task.name}: the Ray worker that did it was lost {ATTEMPTS} times "
        f"({type(error).__name__}: {_last_line(error)}); often the memory did not "
        "suffice. What was finished is kept: run again to go on, with fewer `workers` if it was the memory."
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
