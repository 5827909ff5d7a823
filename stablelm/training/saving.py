"""When a run is saved: beside the training, one save at a time, and never silently lost.

The tensors are copied to host memory (12 bytes a parameter, shared out over the processes), and a thread
writes the copy while the next steps are made; the file holds the state at the save. The next save waits for
the former, the end of the run for the last. A disk that refuses a save is told at once and the run goes on;
two such saves in a row, or the last one, stop it: the newest finished checkpoint is untouched. Any other
failure (a process that has died) stops it when the save is next waited for. With `asynchronous: false`
nothing is copied and the training waits."""

import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from stablelm.config.errors import RunError
from stablelm.config.model import to_huggingface
from stablelm.config.run import CheckpointConfig
from stablelm.interchange.native import FOLDER, finished_checkpoints
from stablelm.model import StableLM
from stablelm.storage import json_bytes
from stablelm.training.agreement import Ranks
from stablelm.training.bucket import Bucket
from stablelm.training.checkpoint import not_finite, write_checkpoint
from stablelm.training.optimizer import moments, trained


class NotFinite(RunError):
    """Weights or moments are not finite, so they must not become a checkpoint."""


class Checkpoints:
    """The saves of one run. As a context manager it ends with the last save finished, whatever happens."""

    def __init__(self, run: Path, config: CheckpointConfig, message: Callable[[str], None]) -> None:
        self.run, self.config, self.message = run, config, message
        self.ranks = Ranks()
        self.bucket: Bucket | None = None
        if config.copy_to is not None and self.ranks.first:
            self.bucket = Bucket(config.copy_to, config.copy_every)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._told, self._pending, self._failures = False, False, 0
        self.protected: frozenset[int] = frozenset()
        """Steps that are saved, and whose checkpoints stay, besides the newest and the permanent."""

    def due(self, step: int) -> bool:
        """Whether the run is to be saved after this step."""
        return step % self.config.every == 0 or self._permanent(step) or step in self.protected

    def save(
        self,
        model: StableLM,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        about: dict[str, Any],
        kept: Mapping[str, bytes],
        more: Mapping[str, dict[str, Tensor]] = MappingProxyType({}),
    ) -> Path:
        """Begins to save `state["step"]` and returns where it will be; every process calls it.

        `state` is all that continuing needs besides tensors; `about` is what a reader or a model card wants
        to know; `kept` are files by name, the tokenizer's among them; `more` are tensors by folder beside
        weights and moments. `NotFinite` when any is not."""
        self._settle(last=False)
        step = int(state["step"])
        target = self.run / FOLDER / f"step-{step:06d}"
        tensors = {"model": trained(model), "optimizer": moments(model, optimizer), **more}
        every = {f"{folder}.{name}" if folder in more else name: tensor
                 for folder, held in tensors.items() for name, tensor in held.items()}  # fmt: skip
        seen = self.ranks.together(lambda: (not_finite(every), target in finished_checkpoints(self.run)))
        if (name := next((name for name, _ in seen if name), None)) is not None:
            raise NotFinite(
                f"step {step:,}: the weights are not finite (tensor {name!r}); not saved. Go on from the "
                "last checkpoint."
            )
        files = {
            "config.json": json_bytes(to_huggingface(model.config, str(model.dtype).removeprefix("torch."))),
            **kept,
            "state.json": json_bytes(state),
            "about.json": json_bytes(about),
        }
        self._error, self._told, self._pending = None, False, True
        if seen[0][1]:  # saved before, by a run that went on from there
            self._offer(target, step)
            self._prune()
        elif self.config.asynchronous:
            staged = _staged(tensors)
            self._thread = threading.Thread(
                target=self._write, args=(target, staged, files, step), name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            self._write(target, tensors, files, step)
            self._settle(last=False)
        return target

    def _write(
        self, target: Path, tensors: Mapping[str, dict[str, Tensor]], files: dict[str, bytes], step: int
    ) -> None:
        try:
            write_checkpoint(target, tensors, files, step, self.ranks)
            self._offer(target, step)
            self._prune()
        except BaseException as error:
            self._error = error

    def _offer(self, checkpoint: Path, step: int) -> None:
        if self.bucket is not None:
            self.bucket.offer(checkpoint, step)

    def _permanent(self, step: int) -> bool:
        return self.config.permanent_every is not None and step % self.config.permanent_every == 0

    def _prune(self) -> None:
        """Removes all but the newest, the permanent, the protected, and those that wait to be copied."""
        if self.ranks.first:
            waiting = self.bucket.waiting if self.bucket is not None else ()
            for old in finished_checkpoints(self.run)[: -self.config.keep]:
                number = int(old.name.removeprefix("step-"))
                kept = self._permanent(number) or number in self.protected or old in waiting
                if not kept:
                    shutil.rmtree(old, ignore_errors=True)

    def poll(self) -> None:
        """Tells of a save or a copy that has failed meanwhile; never waits."""
        while self.bucket is not None and self.bucket.messages:
            self.message(self.bucket.messages.pop(0))
        if self._error is not None and not self._told:
            self._told = True
            saved = finished_checkpoints(self.run)
            newest = f"the newest checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
            self.message(f"warning: a checkpoint could not be saved: {self._error}; {newest}")

    def _settle(self, *, last: bool) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.poll()
        error = self._error
        if self._pending:
            self._pending = False
            self._failures = 0 if error is None else self._failures + 1
        if error is not None and (last or self._failures > 1 or not isinstance(error, OSError)):
            raise error

    def finish(self) -> None:
        """Waits for the save at hand and raises what it failed with."""
        self._settle(last=True)

    def settle(self) -> None:
        """Waits for the save at hand; what it failed with is told, and counts, as if the next were due."""
        self._settle(last=False)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif not issubclass(kind, KeyboardInterrupt):  # a second Ctrl-C means now
            if self._thread is not None:
                self._thread.join()
            self.poll()
        if self.bucket is not None:
            asked = kind is None or issubclass(kind, RunError)
            if asked and self.bucket.waiting:
                self.message(f"waiting for the last copy to {self.bucket.address}")
            self.bucket.close(wait=asked)
            self._prune()  # what had to stay until it was copied
            self.poll()


def _staged(tensors: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Copies in host memory."""
    cuda = any(t.is_cuda for held in tensors.values() for t in held.values())
    stager = DefaultStager(StagingOptions(cuda, False, False, cuda))
    try:
        return stager.stage(dict(tensors))  # type: ignore[return-value, unused-ignore]
    finally:
        stager.close()
