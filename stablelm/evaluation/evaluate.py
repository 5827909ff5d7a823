"""Any models on a suite: opened, evaluated, compared, written down."""

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError
from stablelm.evaluation import safety
from stablelm.evaluation.comparison import Difference, compare
from stablelm.evaluation.safety.items import gather
from stablelm.evaluation.suites import SAFETY, Evaluation, Suite, choose_tasks, run, write
from stablelm.interchange.hub import resolve
from stablelm.interchange.open import open_path
from stablelm.planning import resolve_device

Comparison = tuple[str, str, list[Difference]]


def evaluate(
    models: str | Path | Sequence[str | Path],
    *,
    suite: str | None = None,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "auto",
    progress: bool = True,
    classifier: str | Path | None = None,
) -> list[Evaluation]:
    """Evaluates paths or Hub ids on a suite ("stablelm-3b-4e1t" by default) or on named lm_eval tasks.

    `data`: a directory with <task>.jsonl files, without which items come from the Hub; `limit`: items of each
    task; `out`: a directory for results.json, samples and report.html (of several models: a folder for each,
    and one page). The results of each are lm_eval's JSON. The suite "safety" takes files of its own from
    `data`, and a `classifier` of toxic texts (`evaluation/safety/`)."""
    given = [models] if isinstance(models, str | Path) else list(models)
    wanted = choose_tasks(suite, tasks)
    return evaluate_suite(
        given, wanted, data, limit, out, dtype, device, progress=progress, classifier=classifier
    )[0]


def evaluate_suite(
    models: Sequence[str | Path],
    suite: Suite,
    data: str | Path | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "auto",
    *,
    compared: bool = False,
    progress: bool = True,
    classifier: str | Path | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> tuple[list[Evaluation], list[Comparison]]:
    """What `evaluate` does, with the paired differences of each model to the first when `compared`."""
    names = distinct_names(models)
    if suite.name == SAFETY:
        gather(data, limit)  # a mistake in a file is told before a model is opened
    elif classifier is not None:
        raise InputError("--classifier belongs to --suite safety; leave it out.")
    found = []
    for path, name in zip(models, names, strict=True):
        say(f"{name}: {path}")
        folder = None if out is None else Path(out) / name if len(names) > 1 else Path(out)
        model, tokenizer = open_path(resolve(path), dtype, resolve_device(device))
        if tokenizer is None:
            raise InputError(f"{path}: has no tokenizer.json; evaluation works on text.")
        if suite.name == SAFETY:
            result = safety.run(
                model, tokenizer, name=name, out=folder, data=data, limit=limit, classifier=classifier,
                say=say,
            )  # fmt: skip
            if folder is not None:
                write(result, suite, folder)
            found.append(result)
        else:
            found.append(
                run(model, tokenizer, suite, name=name, out=folder, data=data, limit=limit, progress=progress)
            )
        del model
        gc.collect()
    differences: list[Comparison] = []
    if compared:
        first = found[0]
        for number, other in enumerate(found[1:], 1):
            if suite.name == SAFETY:
                parts = safety.compared(first, other)
            else:
                parts = compare(first.samples, other.samples)
            differences.append((first.model, other.model, parts))
            if out is not None:  # for the card of the later model
                told = {"model": first.model, "weights": first.details["weights"]}
                against = {**told, "differences": [part.as_dict() for part in parts]}
                found[number] = replace(other, details={**other.details, "against": against})
                write(found[number], suite, Path(out) / other.model)
    if out is not None and len(found) > 1:
        from stablelm.evaluation.pages import page

        page(found, suite, differences).write(Path(out) / "report.html")
    return found, differences


def distinct_names(models: Sequence[str | Path]) -> list[str]:
    """A short name for each path or id: its last part, made distinct, fit for a folder."""
    names: list[str] = []
    for path in models:
        last = str(path).rstrip("/").split("/")[-1] or "model"
        base = re.sub(r"[^\w.+-]", "-", last).strip(".") or "model"
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
