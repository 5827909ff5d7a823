"""Where a run's records go: metrics.jsonl always, the console, and what else was asked for (boards.py).

metrics.jsonl has one JSON object per step and per evaluation. A line is flushed when it is written. On
resume, lines after the checkpoint's step (and a line cut by a kill) are dropped, so the file reads as if the
run had never stopped. Console and metrics.jsonl must work; any other sink that fails is told once and left
out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from stablelm.config import InputError
from stablelm.storage import explain_full_disk, write_text

METRICS = "metrics.jsonl"
GOODPUT_KIND = "goodput"
"""Records of the time so far: goodput.jsonl has it, and metrics.jsonl is the same on any machine."""


class Sink(Protocol):
    """A place that records go to, in order."""

    def write(self, record: dict[str, Any]) -> None:
        """Takes one record: `step` counts completed steps, `kind` is absent for a step."""

    def rewind(self, step: int) -> None:
        """The run has gone back: what came after `step` is none of its records any more."""

    def close(self) -> None:
        """There are no more."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole records of a run, in order; a last line cut short by a kill is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; the file is damaged.") from None
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}: not valid JSON ({error.msg}).") from None
            continue
        if not isinstance(records[-1], dict) or not isinstance(records[-1].get("step"), int):
            raise InputError(f"{path}, line {number}: not a record of a step; the file is damaged.")
    return records


class JsonLines:
    """The sink metrics.jsonl."""

    def __init__(self, run: Path, step: int) -> None:
        """Keeps the records up to `step` completed steps, none before the first, and appends after them."""
        self._path = run / METRICS
        self._keep(step)

    def _keep(self, step: int) -> None:
        kept = [record for record in read_metrics(self._path.parent) if 0 < step >= record["step"]]
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        self._file.close()
        self._keep(step)

    def write(self, record: dict[str, Any]) -> None:
        if record.get("kind") != GOODPUT_KIND:
            with explain_full_disk(self._path):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()

    def close(self) -> None:
        self._file.close()


class Metrics:
    """All sinks of a run as one; a context manager."""

    def __init__(
        self,
        run: Path,
        step: int,
        console: Sink | None = None,
        others: Mapping[str, Sink] | None = None,
        message: Callable[[str], None] = print,
    ) -> None:
        """`step`: completed steps so far; `others` by name, which may fail; what failed is a `message`."""
        self.needed: list[Sink] = [JsonLines(run, step), *([console] if console else [])]
        self.others, self._message = dict(others or {}), message

    def write(self, record: dict[str, Any]) -> None:
        """Writes one record everywhere."""
        self._each(lambda sink: sink.write(record))

    def rewind(self, step: int) -> None:
        """Drops what came after `step`, to which the run has gone back."""
        self._each(lambda sink: sink.rewind(step))

    def _each(self, action: Callable[[Sink], None]) -> None:
        for sink in self.needed:
            action(sink)
        for name, sink in list(self.others.items()):
            try:
                action(sink)
            except Exception as error:
                del self.others[name]
                self._message(
                    f"warning: {name} failed and is left out from here on: {error or type(error).__name__}. "
                    f"The run goes on; {METRICS} has everything."
                )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._each(lambda sink: sink.close())
