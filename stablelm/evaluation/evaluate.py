"""Any models on a suite, or a model with adapters: opened, evaluated, compared, written down."""

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError
from stablelm.evaluation import safety
from stablelm.evaluation.comparison import Difference, compare
from stablelm.evaluation.safety.items import gather
from stablelm.evaluation.suites import SAFETY, Evaluation, Suite, choose_tasks, run, write
from stablelm.interchange.adapters import adapter_directory, attach_all, checked, named
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
    adapters: str | Path | Sequence[str | Path] = (),
) -> list[Evaluation]:
    """Evaluates paths or Hub ids on a suite ("stablelm-3b-4e1t" by default) or on named lm_eval tasks.

    With `adapters` (directories in PEFT's format, or runs that trained one) the one model is evaluated with
    each of them instead.

    `data`: a directory with <task>.jsonl files, without which items come from the Hub; `limit`: items of each
    task; `out`: a directory for results.json, samples and report.html (of several models: a folder for each,
    and one page). The results of each are lm_eval's JSON. The suite "safety" takes files of its own from
    `data`, and a `classifier` of toxic texts (`evaluation/safety/`)."""
    given = [models] if isinstance(models, str | Path) else list(models)
    wanted = choose_tasks(suite, tasks)
    several = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    return evaluate_suite(
        given, wanted, data, limit, out, dtype, device, progress=progress, classifier=classifier,
        adapters=several,
    )[0]  # fmt: skip


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
    adapters: Sequence[str | Path] = (),
    say: Callable[[str], Any] = lambda line: None,
) -> tuple[list[Evaluation], list[Comparison]]:
    """What `evaluate` does, with the paired differences of each model to the first when `compared`; the first
    is the model alone where it has `adapters`."""
    subjects = subjects_of(models, adapters, compared)
    if suite.name == SAFETY:
        gather(data, limit)  # a mistake in a file is told before a model is opened
    elif classifier is not None:
        raise InputError("--classifier belongs to --suite safety; leave it out.")
    found = []
    for name, path, worn in subjects:
        say(f"{name}: {path}" + "".join(f" with the adapter {where}" for where in worn.values()))
        folder = None if out is None else Path(out) / name if len(subjects) > 1 else Path(out)
        place = resolve(path)
        model, tokenizer = open_path(place, dtype, resolve_device(device))
        if worn:
            tokenizer = attach_all(model, checked(model, place, worn)) or tokenizer
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


Subject = tuple[str, str | Path, Mapping[str, Path]]
"""What is evaluated: its name, the path of a model, and the adapter on it if any, by name."""


def subjects_of(
    models: Sequence[str | Path], adapters: Sequence[str | Path] = (), compared: bool = False
) -> list[Subject]:
    """Models as they are, or the one model with each of `adapters` ([NAME=]DIRECTORY), after itself when
    `compared`; `InputError` for adapters on several models."""
    plain: list[Subject] = [
        (name, path, {}) for name, path in zip(distinct_names(models), models, strict=True)
    ]
    if not adapters:
        return plain
    if len(models) != 1:
        raise InputError(
            f"--adapter goes with one MODEL, and {len(models)} are given; runs that trained an adapter can "
            "be given as models themselves."
        )
    worn = {own: adapter_directory(path) for own, path in named([str(one) for one in adapters]).items()}
    names = distinct_names([models[0], *worn])[1:]
    dressed: list[Subject] = [
        (name, models[0], {own: path}) for name, (own, path) in zip(names, worn.items(), strict=True)
    ]
    return [*(plain if compared else ()), *dressed]


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
