"""Suites of tasks, and how one is run: lm_eval's tasks, prompts and metrics over our scores.

OUT/results.json is lm_eval's own schema, OUT/samples/TASK.jsonl has each item, OUT/report.html the tables and
charts, OUT/scores.jsonl what an interrupted run need not compute again."""

import contextlib
import dataclasses
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.evaluation.local_tasks import check_files, environment, offline, sciq_split, write_definitions
from stablelm.evaluation.published import README_RULE, TASKS
from stablelm.model import StableLM
from stablelm.storage import atomic_file, write_text
from stablelm.tokenizer import Tokenizer

SAFETY = "safety"
"""The suite that is not lm_eval's (`evaluation/safety/`); its tasks are the sets it finds."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tasks with the examples shown before each item and the metric of the column."""

    name: str
    tasks: tuple[tuple[str, int, str], ...]
    """(task, examples, metric)."""


SUITES = {
    suite.name: suite
    for suite in (
        Suite("stablelm-3b-4e1t", tuple((task, 0, README_RULE.metric(task)) for task in TASKS)),
        Suite(
            "open-llm-leaderboard",
            (
                ("arc_challenge", 25, "acc_norm"), ("hellaswag", 10, "acc_norm"), ("mmlu", 5, "acc"),
                ("truthfulqa_mc2", 0, "acc"), ("winogrande", 5, "acc"), ("gsm8k", 5, "exact_match"),
            ),
        ),
        Suite(SAFETY, ()),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model on some tasks."""

    model: str
    results: dict[str, Any]
    """lm_eval's JSON, without the samples."""
    samples: dict[str, list[dict[str, Any]]]
    """Task → its items."""
    notes: list[str]
    """What a reader of the numbers must know."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`weights`: their hash, where it was made; of the safety suite also counts and settings."""


def choose_tasks(suite: str | None, tasks: Sequence[str]) -> Suite:
    """The suite of that name, or one of the named tasks at the examples they ask for (−1)."""
    if suite is not None and tasks:
        raise InputError("--suite and --tasks are both given; keep one.")
    if tasks:
        return Suite("tasks", tuple((task, -1, "acc") for task in tasks))
    name = suite or "stablelm-3b-4e1t"
    if name not in SUITES:
        raise InputError(f"suite {name!r} does not exist; the suites are {', '.join(SUITES)}.")
    return SUITES[name]


def run(
    model: StableLM,
    tokenizer: Tokenizer,
    suite: Suite,
    *,
    name: str,
    out: str | Path | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluates `model` (called `name` in reports).

    `data`: a directory with <task>.jsonl, else the Hub. `limit`: only so many items of each task. With `out`
    everything is written there, and scores found there are used."""
    names = [task for task, _, _ in suite.tasks]
    if data is not None:  # a mistake is told before lm_eval is loaded
        check_files(data, names)
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least one item of each task is needed.")
    from stablelm.evaluation.harness import backend
    from stablelm.evaluation.score_cache import ScoreCache
    from stablelm.model.fingerprint import weights_hash

    cache, details = None, {}
    if out is not None:
        details["weights"] = weights_hash(model)
        length = model.config.max_position_embeddings
        cache = ScoreCache(Path(out) / "scores.jsonl", f"{details['weights']}-{length}")
    scorer = backend()(model, tokenizer, cache=cache, batch_tokens=batch_tokens, progress=progress)
    raw = _harness(scorer, suite, data, limit)
    notes = []
    if limit is not None:
        notes.append(f"Only the first {limit:,} items of each task: a quick look, not a result.")
    if scorer.truncated:
        notes.append(f"{scorer.truncated:,} requests were longer than the context and lost their beginning.")
    if data is not None and "sciq" in names and (split := sciq_split(data)) != "test":
        notes.append(f"SciQ is its {split} split here; the published number is of the test split.")
    samples = raw.pop("samples", {})
    result = Evaluation(name, raw, samples, notes, details)
    if out is not None:
        write(result, suite, out)
    return result


@contextlib.contextmanager
def task_manager(names: Sequence[str], data: str | Path | None) -> Iterator[Any]:
    """lm_eval's finder of tasks: of those in files below `data`, without a network, or of all it has.

    `InputError` for a name that it does not know."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if data is not None:
        with tempfile.TemporaryDirectory() as folder, offline():
            write_definitions(Path(folder), data, names)
            yield TaskManager(include_path=folder, include_defaults=False)
        return
    manager = TaskManager()
    if unknown := [task for task in names if task not in manager.all_tasks]:
        raise InputError(
            f"tasks {', '.join(unknown)} are not known to lm_eval; `lm_eval ls tasks` lists them."
        )
    yield manager


def _harness(scorer: Any, suite: Suite, data: str | Path | None, limit: int | None) -> dict[str, Any]:
    from lm_eval import evaluator

    names = [task for task, _, _ in suite.tasks]
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(task_manager(names, data))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # it prints what it bootstraps
        stack.enter_context(_without_git(evaluator))
        # Its bootstrap forks this process, whose threads may hold locks that the children then wait for.
        stack.enter_context(environment(DISABLE_MULTIPROC="1"))
        merged: dict[str, Any] = {}
        for shots in sorted({shots for _, shots, _ in suite.tasks}):
            wanted = [task for task, count, _ in suite.tasks if count == shots]
            try:
                part = evaluator.simple_evaluate(
                    scorer, tasks=wanted, num_fewshot=None if shots < 0 else shots, limit=limit,
                    task_manager=manager, bootstrap_iters=1000, log_samples=True,
                )  # fmt: skip
            except (ConnectionError, FileNotFoundError) as error:
                raise no_items(wanted, error, "--data DIR") from None
            for key, value in part.items():
                if isinstance(value, dict) and isinstance(merged.get(key), dict):
                    merged[key] |= value
                else:
                    merged.setdefault(key, value)
    return merged


def no_items(tasks: Sequence[str], error: Exception, remedy: str) -> InputError:
    """What to say where the items of tasks cannot be loaded; `remedy` is how files are named."""
    return InputError(
        f"the items of {', '.join(tasks)} could not be loaded ({str(error).splitlines()[0]}). "
        f"Without a network give {remedy}, a directory with <task>.jsonl for each."
    )


@contextlib.contextmanager
def _without_git(evaluator: Any) -> Iterator[None]:
    """The harness asks git for the commit of the current folder, which is not about the model and is an error
    message where there is none."""
    before = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = before


def write(evaluation: Evaluation, suite: Suite, out: str | Path) -> None:
    """Writes results.json, samples and the page, each whole or not at all."""
    from stablelm.evaluation.pages import page

    try:  # which the safety suite does without
        from lm_eval.utils import handle_non_serializable
    except ImportError:
        handle_non_serializable = str

    folder = Path(out)
    for task, items in evaluation.samples.items():
        with atomic_file(folder / "samples" / f"{task}.jsonl", "w") as file:
            for item in items:
                file.write(json.dumps(item, default=handle_non_serializable, ensure_ascii=False) + "\n")
    values: Mapping[str, Any] = evaluation.results | {
        "model_name": evaluation.model,
        "stablelm": {"suite": suite.name, "notes": evaluation.notes, **evaluation.details},
    }
    write_text(
        folder / "results.json",
        json.dumps(values, indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n",
    )
    page([evaluation], suite).write(folder / "report.html")
