"""`signals` measures the documents of the sources that have filters, `decide` judges them from the numbers.

Numbers are stored as Parquet (`signals.parquet`, one row a document, for anybody to look at), changes of text
as arrays. A decision is made again when a threshold changes, from the numbers alone: no text is read. What
later stages know a decision by is its content, so a threshold that changes no decision repeats nothing
else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.filter_set import FilterSet
from stablelm.config.recipe import DataRecipe
from stablelm.data.execution import Task, Work
from stablelm.data.report_data import histogram
from stablelm.data.shards import Shard
from stablelm.data.stages.reading import Read, shards_of
from stablelm.data.stages.verdicts import write_edits, write_verdict
from stablelm.storage import write_json

HISTOGRAMS, SIGNALS = "histograms.json", "signals.parquet"


@dataclass(frozen=True)
class Signals:
    """Document shards → numbers and changes of text."""

    recipe: DataRecipe
    read: Read
    name: str = "signals"
    version: int = 2
    by_content: bool = False

    def tasks(self, work: Work) -> list[Task]:
        """A task a document shard of a source with filters."""
        measured = self._measured()
        return [
            Task(
                shard.name,
                {"shard": shard.path, "source": shard.source, "measured": measured[shard.source]},
                (shard.read.output,),
                shard.text_bytes,
            )
            for shard in shards_of(self.read, work)
            if shard.source in measured
        ]

    def _measured(self) -> dict[str, dict[str, Any]]:
        from stablelm.data.signals import measured_by

        return {s.name: measured_by(s.filters) for s in self.recipe.sources if s.filters.active()}

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Measures a shard. The settings come from the recipe; all that matters of them is in `measured`."""
        from stablelm.data.signals import measure

        filters = next(s.filters for s in self.recipe.sources if s.name == task.arguments["source"])
        shard = Shard.open(work / task.arguments["shard"])
        columns, edits = measure(shard.texts, list(shard.urls), filters)
        _write_parquet(out / SIGNALS, {"id": np.array(list(shard.ids), object), **columns})
        write_edits(out, edits)
        write_json(out / HISTOGRAMS, {name: histogram(column) for name, column in columns.items()})
        return {"edits": len(edits)}


@dataclass(frozen=True)
class Decide:
    """Numbers → what is dropped, and why."""

    recipe: DataRecipe
    signals: Signals
    name: str = "decide"
    version: int = 1
    by_content: bool = True

    def tasks(self, work: Work) -> list[Task]:
        """A task a measured shard."""
        filters = {s.name: s.filters.model_dump(mode="json") for s in self.recipe.sources}
        return [
            Task(
                task.name,
                {"signals": f"{self.signals.name}/{task.name}", "filters": filters[task.arguments["source"]]},
                (mark.output,),
                task.size // 100,
            )
            for task, mark in work.marks(self.signals)
        ]

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Judges a shard: a code a document into `reasons`, 0 keeps it."""
        from stablelm.data.signals import decide

        columns = _read_parquet(work / task.arguments["signals"] / SIGNALS)
        reasons = decide(columns, FilterSet.model_validate(task.arguments["filters"]), len(columns["id"]))
        return {"reasons": write_verdict(out, reasons)}


def _write_parquet(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    pyarrow, parquet = _parquet()
    table = pyarrow.table({name: pyarrow.array(column) for name, column in columns.items()})
    parquet.write_table(table, path, compression="zstd")


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    _, parquet = _parquet()
    table = parquet.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError('filters store their numbers as Parquet: pip install "stablelm[data]".') from None
    return pyarrow, parquet
