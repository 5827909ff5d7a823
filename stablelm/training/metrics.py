"""metrics.jsonl: one JSON object per step and per evaluation, always; TensorBoard beside it when asked.

A line is flushed when it is written. On resume, lines after the checkpoint's step (and a line cut by a kill)
are dropped, so the file reads as if the run had never stopped."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from stablelm.config import InputError
from stablelm.storage import explain_full_disk, write_text

METRICS = "metrics.jsonl"


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


class Metrics:
    """Appends records to a run's metrics; a context manager."""

    def __init__(self, run: Path, step: int, tensorboard: bool = False) -> None:
        """Keeps the records up to `step` completed steps, none before the first, and appends after them."""
        self._path = run / METRICS
        self._keep(step)
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    'logging.tensorboard needs TensorBoard: pip install "stablelm[track]", or set it to '
                    "false."
                ) from None
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def _keep(self, step: int) -> None:
        kept = [record for record in read_metrics(self._path.parent) if 0 < step >= record["step"]]
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        """Drops what came after `step`, to which the run has gone back."""
        self._file.close()
        self._keep(step)

    def write(self, record: dict[str, Any]) -> None:
        """Writes one record; `step` counts completed steps."""
        with explain_full_disk(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._board is not None:
            kind = record.get("kind", "train")
            prefix = f"{kind}/{record['source']}" if "source" in record else kind
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{prefix}/{name}", value, record["step"])

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
