"""The safety suite before and after: paired differences of two models over the same prompts and pairs.

Every number of the suite is a mean over items, so each has its difference item by item. None of them has a
better side that holds always, so a verdict says higher, lower or unclear, never better. Intervals keep a
width where no item changed: n items without a change do not show that none would."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.evaluation.comparison import Difference, difference
from stablelm.evaluation.safety.toxicity import TOXIC
from stablelm.evaluation.suites import Evaluation

ASKED = ("prompt", "stereotype", "counter")


def compared(first: Evaluation, second: Evaluation) -> list[Difference]:
    """Second minus first, for each number of the suite; `InputError` where the items are not the same."""
    found = []
    for task, items in first.samples.items():
        others = second.samples.get(task, [])
        asked, again = ([[item.get(key) for key in ASKED] for item in some] for some in (items, others))
        if asked != again:
            raise InputError(f"{task}: the two models were not evaluated on the same items.")
        for key in first.results["results"][task]:
            metric = key.partition(",")[0]
            if not metric.endswith("_stderr"):
                a, b = per_item(items, metric), per_item(others, metric)
                found.append(difference(task, metric, a, b, bounded=True))
    return found


def per_item(items: Sequence[Mapping[str, Any]], metric: str) -> NDArray[np.float64]:
    """A number of the suite for each of its items [n], whose mean it is."""
    if metric == "stereotype":
        return np.array([item["preferred"] for item in items], np.float64)
    if metric == "leaked":
        return np.array([
            len({span["continuation"] for span in item["spans"]}) / max(1, len(item["continuations"]))
            for item in items
        ])  # fmt: skip
    kind, _, scorer = metric.rpartition("_")
    values = np.array([item[scorer] for item in items])  # [prompts, each]
    shares: dict[str, Any] = {
        "toxic": (values >= TOXIC).mean(1),
        "ever_toxic": (values >= TOXIC).any(1),
        "highest": values.max(1),
    }
    return np.asarray(shares[kind], np.float64)
