"""Two models on the same items: is the difference more than noise?

Items that both get right or both get wrong say nothing, so the differences are taken item by item: their
mean, its standard error (sample deviation / √n) and a 95 % interval. Two models that share most answers have
a far smaller interval than their separate standard errors suggest (Miller, 2024, "Adding error bars to
evals", section 4.2). Where items are right or wrong, the interval is that of Agresti & Min (2005): half an
item is added to each of the four outcomes, then mean ± 1.96 standard errors. Without it, no changed answer
among n items would make an interval of width 0, as if nothing could ever change."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stablelm.config import InputError
from stablelm.evaluation.published import README_RULE

Z = 1.959964  # two-sided 95 %


@dataclasses.dataclass(frozen=True)
class Difference:
    """Second model minus first, in percent points."""

    task: str
    metric: str
    items: int
    first: float
    second: float
    difference: float
    stderr: float
    changed: int
    """Items whose value differs."""
    interval: tuple[float, float]
    """95 % confidence; its middle is a little nearer to 0 than the difference."""
    ordered: bool = True
    """Whether more is better."""

    @property
    def verdict(self) -> str:
        """What may be said: better, worse (higher, lower where there is no such order), or unclear where 0
        lies within the interval."""
        low, high = self.interval
        up, down = ("better", "worse") if self.ordered else ("higher", "lower")
        return up if low > 0 else down if high < 0 else "unclear"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def metric_of(task: str, items: Sequence[Mapping[str, Any]]) -> str:
    """The metric a task is compared by: that of the published table where it is in it."""
    wanted = README_RULE.metric(task)
    for name in (wanted, "acc", "exact_match", "acc_norm"):
        if items and name in items[0]:
            return name
    raise InputError(
        f"{task}: its items have no accuracy to compare ({', '.join(items[0]) if items else 'none'})."
    )


def compare(
    first: Mapping[str, Sequence[Mapping[str, Any]]], second: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Difference]:
    """Differences per task between two models' samples, then their average over tasks (tasks independent).

    `InputError` when the items are not the same."""
    found = []
    for task, items in first.items():
        others = second.get(task)
        if others is None:
            raise InputError(f"{task}: only one of the two models was evaluated on it.")
        metric = metric_of(task, items)
        values = _by_item(task, items, metric)
        other_values = _by_item(task, others, metric)
        if values.keys() != other_values.keys():
            raise InputError(f"{task}: the two models were not evaluated on the same items.")
        a = np.array(list(values.values()))
        b = np.array([other_values[key] for key in values])
        found.append(difference(task, metric, a, b))
    if len(found) > 1:
        found.append(_average(found))
    return found


def difference(task: str, metric: str, a: np.ndarray, b: np.ndarray, *, bounded: bool = False) -> Difference:
    """The paired difference of per-item values [n]. `bounded`: shares from 0 to 1 of which neither side is
    the better; the rule of right and wrong items is taken for them too."""
    d, n = 100 * (b - a), len(a)
    mean, spread = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    middle, half = mean, Z * spread
    if bounded or set(np.unique([a, b])) <= {0.0, 1.0}:
        total, squares, pairs = float((b - a).sum()), float(((b - a) ** 2).sum()) + 1, n + 2
        middle = 100 * total / pairs
        half = 100 * Z * math.sqrt(squares - total**2 / pairs) / pairs
    return Difference(
        task, metric, n, 100 * float(a.mean()), 100 * float(b.mean()), mean, spread,
        int((a != b).sum()), (middle - half, middle + half), not bounded,
    )  # fmt: skip


def _average(parts: Sequence[Difference]) -> Difference:
    k = len(parts)
    middle = sum(sum(part.interval) / 2 for part in parts) / k
    half = math.sqrt(sum(((part.interval[1] - part.interval[0]) / 2) ** 2 for part in parts)) / k
    return Difference(
        "average", "mean", sum(part.items for part in parts), sum(part.first for part in parts) / k,
        sum(part.second for part in parts) / k, sum(part.difference for part in parts) / k,
        math.sqrt(sum(part.stderr**2 for part in parts)) / k, sum(part.changed for part in parts),
        (middle - half, middle + half),
    )  # fmt: skip


def _by_item(task: str, items: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    return {f"{item['doc_id']}-{item.get('doc_hash', '')}": float(item[metric]) for item in items}
