"""Finished checkpoints, copied in the background to wherever fsspec can write: a bucket, another disk.

One thread, of the first process; it copies one checkpoint at a time and only finished ones, so training and
saving never wait for it. The manifest goes last (that of an older copy of the same name goes first of all),
so a copy without one is none. Every file's size is asked back. A place that refuses is tried three times,
then told, and the run goes on; a checkpoint that is being copied, or waits to be, is not removed here. When
the run ends, the last copy is waited for. Rejected: writing checkpoints there at once, which would tie the
training to the network, and has no rename."""

import queue
import threading
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.data.inputs import file_system
from stablelm.storage import MANIFEST, read_json

TRIES = 3
PAUSE = 5.0
"""Seconds after the first failure; three times as long after each further one."""


class Bucket:
    """Copies of one run's checkpoints below an address."""

    def __init__(self, address: str, every: int | None = None) -> None:
        """`every`: only steps that are multiples of it. `InputError` for an address that nothing opens."""
        try:
            self.system, self.root = file_system(address)
        except InputError as error:
            raise InputError(f"checkpoint.copy_to: {error}") from None
        self.address, self.every = address.rstrip("/"), every
        self.messages: list[str] = []
        """To be told by the main thread."""
        self.waiting: set[Path] = set()
        """Checkpoints that must stay until they are copied."""
        self._queue: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def offer(self, checkpoint: Path, step: int) -> None:
        """A checkpoint that is finished; begins to copy it if it is one of those."""
        if self.every is not None and step % self.every:
            return
        self.waiting.add(checkpoint)
        self._queue.put(checkpoint)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="bucket", daemon=True)
            self._thread.start()

    def close(self, *, wait: bool) -> None:
        """Ends the thread, after what is offered is copied if asked to wait."""
        if not wait:
            self._stop.set()  # the thread is a daemon: a copy under way is left without its manifest
        elif self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (checkpoint := self._queue.get()) is not None:
            if not self._stop.is_set():
                self._try(checkpoint)
            self.waiting.discard(checkpoint)

    def _try(self, checkpoint: Path) -> None:
        pause = PAUSE
        for tried in range(1, TRIES + 1):
            try:
                return self._copy(checkpoint)
            except Exception as error:  # whatever the store's library raises
                if tried == TRIES or self._stop.wait(pause):
                    said = str(error).splitlines()[0][:300] if str(error) else ""
                    self.messages.append(
                        f"warning: {checkpoint.name} could not be copied to {self.address} in {tried} tries "
                        f"({type(error).__name__}: {said}); it is here, and the run goes on"
                    )
                    return None
                pause *= 3

    def _copy(self, checkpoint: Path) -> None:
        target = f"{self.root.rstrip('/')}/{checkpoint.name}"
        manifest = (checkpoint / MANIFEST).read_bytes()
        marked = f"{target}/{MANIFEST}"
        if self.system.exists(marked):
            if self.system.cat_file(marked) == manifest:
                return  # copied before, by a run that went on from there
            self.system.rm_file(marked)
        names: dict[str, Any] = read_json(checkpoint / MANIFEST)["files"]
        for name in sorted(names):
            self._put(checkpoint / name, f"{target}/{name}")
        self.system.pipe_file(marked, manifest)

    def _put(self, path: Path, target: str) -> None:
        self.system.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        self.system.put_file(str(path), target)
        self.system.invalidate_cache()
        size = self.system.info(target)["size"]
        if size != path.stat().st_size:
            raise OSError(f"{target} has {size:,} bytes there, {path.stat().st_size:,} here")
