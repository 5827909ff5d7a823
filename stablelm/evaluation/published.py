"""The published zero-shot results, the metric of each column, and the rules by which averages were made.

Source: the README of Stability AI's StableLM repository (nine tasks), and its evaluation JSON for
StableLM-3B-4E1T (`evals/stablelm-3b-4e1t.json`). One run, three published averages: they choose different
metrics and tasks."""

import dataclasses
import math
from collections.abc import Mapping

TASKS = (
    "arc_challenge", "arc_easy", "boolq", "hellaswag", "lambada_openai", "openbookqa", "piqa", "sciq",
    "winogrande",
)  # fmt: skip
"""The suite stablelm-3b-4e1t, in the order of the published table."""

TITLES = {
    "arc_challenge": "ARC-C", "arc_easy": "ARC-E", "boolq": "BoolQ", "hellaswag": "HellaSwag",
    "lambada_openai": "LAMBADA", "openbookqa": "OBQA", "piqa": "PIQA", "sciq": "SciQ", "winogrande": "WG",
}  # fmt: skip

PUBLISHED: dict[str, tuple[float, ...]] = {
    "Llama-2-13b": (48.63, 79.50, 80.52, 79.36, 76.77, 35.40, 79.05, 94.50, 72.22),
    "LLaMA-7b": (41.89, 75.25, 75.05, 76.22, 73.55, 34.40, 78.67, 94.60, 69.93),
    "Llama-2-7b": (43.00, 76.26, 77.74, 75.94, 73.47, 31.40, 77.75, 93.60, 69.61),
    "MPT-7b": (40.53, 74.92, 73.94, 76.17, 68.64, 31.40, 78.89, 93.70, 68.03),
    "stablelm-3b-4e1t": (37.80, 72.47, 75.63, 73.90, 70.64, 31.40, 79.22, 94.80, 66.54),
    "Baichuan2-7B": (42.24, 75.00, 73.09, 72.29, 70.99, 30.40, 76.17, 94.60, 67.56),
    "open_llama_7b_v2": (38.82, 71.93, 71.41, 74.65, 71.05, 30.20, 79.16, 93.80, 65.82),
    "gpt-neox-20B": (37.88, 72.90, 69.48, 71.43, 71.98, 29.80, 77.42, 93.10, 66.14),
    "btlm-3b-8k": (34.90, 70.45, 69.63, 69.78, 66.23, 27.60, 75.84, 92.90, 64.96),
    "open_llama_3b_v2": (33.87, 67.59, 65.69, 69.99, 66.74, 26.00, 76.66, 92.40, 62.90),
    "stablelm-base-alpha-3b-v2": (32.42, 67.26, 64.56, 68.58, 70.25, 26.40, 76.01, 92.10, 62.12),
    "pythia-2.8b-deduped": (30.12, 63.47, 64.13, 59.44, 65.15, 23.80, 74.10, 88.20, 58.25),
}
"""Model → percent for each of `TASKS`."""
SEED = "stablelm-3b-4e1t"


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one published average is made."""

    name: str
    where: str
    tasks: tuple[str, ...]
    normalised: frozenset[str]
    """Tasks that are taken by acc_norm; the others by acc."""

    def metric(self, task: str) -> str:
        """acc or acc_norm."""
        return "acc_norm" if task in self.normalised else "acc"


README_RULE = Rule(
    "readme", "StableLM README: nine tasks, HellaSwag by acc_norm", TASKS, frozenset({"hellaswag"})
)
_NORMALISED = frozenset({"arc_challenge", "arc_easy", "hellaswag"})
RULES = (
    README_RULE,
    Rule("tabulate", "its tabulation script: nine tasks, ARC and HellaSwag by acc_norm", TASKS, _NORMALISED),
    Rule(
        "ten-tasks",
        "its results page: with SIQA, ARC and HellaSwag by acc_norm",
        (*TASKS, "siqa"),
        _NORMALISED,
    ),
)
"""66.93, 66.65 and 64.18 for the same run of StableLM-3B-4E1T."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One task's number, in percent."""

    task: str
    metric: str
    value: float
    stderr: float | None


def cells(results: Mapping[str, Mapping[str, object]], rule: Rule = README_RULE) -> list[Cell]:
    """The columns of a table, read from `results` of an lm_eval JSON (0.3's keys, such as acc_stderr, or
    0.4's, such as "acc_stderr,none"); tasks that were not run are left out."""
    found = []
    for task in rule.tasks:
        values = results.get(task)
        if values is None:
            continue
        metric = rule.metric(task)
        value = _number(values, metric)
        if value is not None:
            error = _number(values, f"{metric}_stderr")
            found.append(Cell(task, metric, 100 * value, None if error is None else 100 * error))
    return found


def average(found: list[Cell], rule: Rule = README_RULE) -> Cell | None:
    """The mean of the columns, with the standard error of independent tasks; None unless all were run."""
    if [cell.task for cell in found] != list(rule.tasks):
        return None
    errors = [cell.stderr for cell in found]
    spread = None
    if all(error is not None for error in errors):
        spread = math.sqrt(sum(error**2 for error in errors if error is not None)) / len(found)
    return Cell("average", rule.name, sum(cell.value for cell in found) / len(found), spread)


def published_average(model: str) -> float:
    """The mean of a published row."""
    return sum(PUBLISHED[model]) / len(TASKS)


def _number(values: Mapping[str, object], name: str) -> float | None:
    for key in (name, f"{name},none"):
        value = values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
