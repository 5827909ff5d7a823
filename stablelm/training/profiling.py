"""A few steps of a run as a trace: what ran when, on processor and GPU (`stablelm train --profile N`).

PyTorch's profiler watches the first process from the fifth step of this start on, when compilation and the
allocator have settled, and writes a Chrome trace; on CUDA also a snapshot of what holds memory, with who
asked for it. Nothing of the steps changes but their time. A trace that cannot be written is told, and the run
goes on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

FOLDER = "profile"
WARM = 2
"""Steps between the first one of a start and the profiler's own warm-up step."""
EVENTS = 200_000
"""Allocations that a snapshot of memory remembers, the newest."""


class Profiler:
    """Records `steps` steps of a run; a context manager, `step` is called after each."""

    def __init__(self, steps: int, run: Path, device: torch.device, message: Callable[[str], None]) -> None:
        self.steps, self.folder, self.device, self.message = steps, run / FOLDER, device, message
        self._profile: Any = None
        self._first = self._last = 0

    def step(self, step: int, last: int) -> None:
        """After the completed step `step` of a run that ends with `last`."""
        if self._profile is not None:
            self._profile.step()
            return
        if self._last:
            return
        wait = max(0, min(WARM, last - step - 1 - self.steps))
        self._first = step + wait + 2
        self._last = min(self._first + self.steps - 1, last)
        if self._first > last:
            self.message("profile: no step is left to record after one to warm up")
            return
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.memory._record_memory_history(max_entries=EVENTS)
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])],
            schedule=schedule(wait=wait, warmup=1, active=self._last - self._first + 1, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=True,
        )
        self._profile.start()

    def _write(self, found: Any) -> None:
        name = f"steps-{self._first}-to-{self._last}"
        target = self.folder / f"{name}.json.gz"
        aside = self.folder / f"{name}.tmp.json.gz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found.export_chrome_trace(str(aside))
            os.replace(aside, target)
            self.message(f"profile: {target}; open it in https://ui.perfetto.dev, or chrome://tracing")
            if self.device.type == "cuda":
                snapshot = self.folder / f"{name}-memory.pickle"
                torch.cuda.memory._dump_snapshot(str(snapshot))  # type: ignore[no-untyped-call]
                self.message(f"profile: {snapshot}; open it in https://pytorch.org/memory_viz")
        except (OSError, RuntimeError) as error:
            self.message(f"warning: the profile could not be written ({error}); the run goes on")

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *error: object) -> None:
        if self._profile is not None:
            self._profile.stop()  # writes what there is where a run ended before its last step
            if self.device.type == "cuda":
                torch.cuda.memory._record_memory_history(enabled=None)
