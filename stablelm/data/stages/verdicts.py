"""What the judging stages leave for each document shard: why its documents are dropped, and what is changed.

A verdict is what all judges so far have decided: a document keeps the first reason that any of them gave, and
later judges do not look at it. It is a code a document (`verdict.arrays`) and a table of reasons in the mark.
Changes of text (`edits.arrays`) are places in the text as it was read, so those of several stages are merged
and applied once, when it is encoded."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.data.arrays import read_arrays, texts_arrays, texts_from, write_arrays
from stablelm.data.edits import Edits
from stablelm.data.execution import Mark, Stage, Work
from stablelm.data.texts import Texts

EDITS, VERDICT = "edits.arrays", "verdict.arrays"
Reasons = NDArray[Any]
"""Why each document is dropped, "" keeps it, object [n]."""


def write_verdict(out: Path, reasons: Reasons) -> list[str]:
    """Writes a verdict; returns the table of reasons, which belongs into the mark as `reasons`."""
    names = ["", *sorted(set(reasons.tolist()) - {""})]
    codes = np.searchsorted(np.array(names, dtype=object), reasons) if len(reasons) else reasons
    write_arrays(out / VERDICT, {"codes": codes.astype(np.int16)})
    return names


def standing(work: Work, judges: Iterable[Stage]) -> dict[str, tuple[dict[str, Any], str]]:
    """By shard: where the last judge's verdict on it is, for `read_verdict`, and what it is known by."""
    found = {}
    for judge in judges:
        for task, mark in work.marks(judge):
            about = {"verdict": f"{judge.name}/{task.name}", "reasons": mark.result["reasons"]}
            found[task.name] = (about, mark.output)
    return found


def read_verdict(work: Path, arguments: Mapping[str, Any], count: int) -> Reasons:
    """The verdict that `arguments` name, on `count` documents; all are kept where there is none."""
    if "verdict" not in arguments:
        return np.full(count, "", object)
    codes = read_arrays(work / arguments["verdict"] / VERDICT)["codes"]
    assert len(codes) == count, f"{arguments['verdict']}: {len(codes)} verdicts on {count} documents"
    found: Reasons = np.array(arguments["reasons"], dtype=object)[codes]
    return found


def write_edits(out: Path, edits: Edits) -> None:
    """Writes the changes of text of one shard."""
    stored = edits.to_arrays()
    words = Texts.of(stored.pop("replacements").tolist())
    write_arrays(out / EDITS, {**stored, **texts_arrays("replacements", words)})


def read_edits(work: Path, place: str) -> Edits:
    """The changes of text of one shard."""
    path = work / place / EDITS
    stored = dict(read_arrays(path))
    words = np.array(list(texts_from(stored, "replacements", path)), dtype=np.str_)
    return Edits.from_arrays({**stored, "replacements": words}, str(path))


def changed_by(work: Work, editors: Sequence[Stage]) -> dict[str, list[tuple[str, Mark]]]:
    """By shard: where its changes of text are, of the stages that made any."""
    found: dict[str, list[tuple[str, Mark]]] = {}
    for editor in editors:
        for task, mark in work.marks(editor):
            if mark.result["edits"]:
                found.setdefault(task.name, []).append((f"{editor.name}/{task.name}", mark))
    return found
