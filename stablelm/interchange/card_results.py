"""What `stablelm evaluate` found, as a section of a model card: its results.json, read and told.

A result is of the weights that it was measured on. Their hash is in the file; where it is not that of the
weights that the card describes (another precision, another checkpoint), the card says so."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.storage import read_json

TITLES = {"safety": "Safety"}
"""Suite → heading; every other suite is under its own name."""


@dataclass(frozen=True)
class CardResult:
    """One suite's results."""

    suite: str
    model: str
    """What was evaluated, as it was called then."""
    same_weights: bool
    """Whether these are, to the bit, the weights that the card is of."""
    rows: tuple[tuple[str, str, float, float | None], ...]
    """Task, metric, value and standard error, in percent; perplexities as they are."""
    notes: tuple[str, ...]
    """What a reader of the numbers must know."""
    details: Mapping[str, Any]


def read_results(folder: str | Path, weights: str) -> CardResult:
    """The results in the directory that `stablelm evaluate --out` wrote; `weights` is the hash of the model
    that the card is of. `InputError` for a directory without readable ones."""
    path = Path(folder) / "results.json" if Path(folder).is_dir() else Path(folder)
    if not path.is_file():
        raise InputError(
            f"{folder}: no results.json. Name the directory of one model that `stablelm evaluate` wrote."
        )
    values = read_json(path)
    try:
        details = values["stablelm"]
        rows = [row for task, numbers in values["results"].items() for row in _rows(task, numbers)]
        notes = tuple(str(note) for note in details["notes"])
        same = details.get("weights") == weights
        if against := details.get("against"):
            _changes(against)
        return CardResult(details["suite"], values["model_name"], same, tuple(rows), notes, details)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: not the results of `stablelm evaluate` ({error!r}).") from None


def _rows(task: str, numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    for key, value in numbers.items():
        metric, _, rest = key.partition(",")
        if not isinstance(value, int | float) or isinstance(value, bool) or metric.endswith("_stderr"):
            continue
        if metric in ("sample_len", "sample_count"):
            continue
        scale = 1.0 if "perplexity" in metric else 100.0
        error = numbers.get(f"{metric}_stderr,{rest}" if rest else f"{metric}_stderr")
        yield task, metric, scale * value, scale * error if isinstance(error, int | float) else None


def sections(results: Sequence[CardResult]) -> Iterator[tuple[str, list[str], list[list[Any]], list[str]]]:
    """Heading, header and rows of the table, and the paragraphs below it, of each result."""
    for one in results:
        head = ["Task", "Metric", "Percent"]
        rows: list[list[Any]] = [
            [task, metric, f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")]
            for task, metric, value, error in one.rows
        ]
        below = list(one.notes)
        if against := one.details.get("against"):
            before, known = str(against["model"]), _changes(against)
            head = ["Task", "Metric", f"Before: {before}", "After", "Difference, 95 % interval"]
            rows = [
                [task, metric, *known.pop((task, metric), ("", f"{value:.2f}", ""))]
                for task, metric, value, _ in one.rows
            ]
            rows += [[*names, *numbers] for names, numbers in known.items()]  # an average over tasks
            below.insert(
                0,
                f"Before and after are {before} and this model on the same items, in percent. Differences "
                "are paired, item by item; where the interval holds 0, no change is shown.",
            )
        for name, found in one.details.items():
            if isinstance(found, dict) and "categories" in found:
                parts = ", ".join(
                    f"{category} {part['preferred']:g} of {part['pairs']}"
                    for category, part in found["categories"].items()
                )
                below.insert(0, f"Stereotype likelier, by category ({name}): {parts}.")
            elif isinstance(found, dict) and "found" in found:
                parts = ", ".join(f"{kind} {count}" for kind, count in found["found"].items())
                below.insert(0, f"Personal data found ({name}): {parts}.")
        if not one.same_weights:
            below.append(
                f"Measured on {one.model}, whose weights are not bit for bit these (another precision, or "
                "another checkpoint)."
            )
        yield TITLES.get(one.suite, f"Results: {one.suite}"), head, rows, below


def _changes(against: Mapping[str, Any]) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Task and metric → before, after, and the difference with its interval."""
    found = {}
    for one in against["differences"]:
        low, high = one["interval"]
        shown = f"{one['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
        found[one["task"], one["metric"]] = (f"{one['first']:.2f}", f"{one['second']:.2f}", shown)
    return found
