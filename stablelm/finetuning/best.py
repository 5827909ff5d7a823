"""Which checkpoint of a run is the best, and when waiting for a better one has been long enough.

Both follow from the evaluations so far, which a checkpoint holds anyway: a resumed run decides as the
undisturbed one. The first of equally good ones is the best; a number that is not finite is never good."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stablelm.config.tuning_evaluation import LOSS

_LOWER = ("perplexity", "bits_per_byte", "loss")
"""What lm_eval's numbers are called when less is better; some have a word before."""


@dataclass(frozen=True)
class Best:
    """How a run is judged: by `metric`, and for how many evaluations a better one is waited for."""

    metric: str
    patience: int | None = None

    def values(self, evaluations: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float]]:
        """Step, number, and the number with its sign such that more is better, of each that can be told."""
        found = []
        for record in evaluations:
            task = record.get("tasks", {}).get(self.metric)
            value = task["value"] if task else record.get(self.metric)
            if value is not None and math.isfinite(value):
                name = task["metric"] if task else self.metric
                lower = name == LOSS or name.endswith(_LOWER)
                found.append((int(record["step"]), float(value), -value if lower else value))
        return found

    def of(
        self, evaluations: Sequence[Mapping[str, Any]], among: Collection[int] | None = None
    ) -> dict[str, Any] | None:
        """`metric`, `step` and `value` of the best evaluation, at the steps `among` others; None without."""
        found = [each for each in self.values(evaluations) if among is None or each[0] in among]
        if not found:
            return None
        step, value, _ = max(found, key=lambda each: (each[2], -each[0]))
        return {"metric": self.metric, "step": step, "value": value}

    def waited(self, evaluations: Sequence[Mapping[str, Any]]) -> int:
        """Evaluations since the best one; also those without a number count."""
        best = self.of(evaluations)
        return sum(best is None or record["step"] > best["step"] for record in evaluations)

    def stops(self, evaluations: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the patience is at its end."""
        return self.patience is not None and self.waited(evaluations) >= self.patience
