"""Whether a model is right as often as it is sure (Guo et al., 2017, "On calibration of modern networks").

Predicted tokens are put into bins of equal width by the probability of the likeliest token. In each bin the
mean of that probability (confidence) stands beside how often that token came (accuracy); the expected
calibration error is the mean gap, each bin weighed by its tokens:

    ECE = Σ_b (n_b / n) · |accuracy_b − confidence_b|

Three sums a bin are all that is kept, whatever the number of tokens."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

BINS = 15
"""As in the paper."""


def _nothing() -> Tensor:
    return torch.zeros(3, BINS, dtype=torch.float64)


@dataclasses.dataclass(eq=False)
class Calibration:
    """Sums by bin; bin b holds confidences in (b / 15, (b + 1) / 15], the first also 0."""

    sums: Tensor = dataclasses.field(default_factory=_nothing)
    """[3, bins] float64: tokens, their summed confidence, how often the likeliest token came."""

    def add(self, told: Tensor) -> None:
        """Counts tokens, [3, N] as `model.predictions` gives them."""
        confidence, right = told[1].double().exp().clamp(max=1.0).cpu(), told[2].double().cpu()
        bins = ((confidence * BINS).ceil().long() - 1).clamp(min=0)
        for row, values in zip(self.sums, (torch.ones_like(right), confidence, right), strict=True):
            row += torch.bincount(bins, values, minlength=BINS)

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(self.sums + other.sums)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and torch.equal(self.sums, other.sums)

    __hash__ = None  # type: ignore[assignment]  # it grows

    @property
    def tokens(self) -> int:
        """All that were counted."""
        return round(float(self.sums[0].sum()))

    @property
    def error(self) -> float:
        """The expected calibration error, from 0 to 1."""
        return float((self.sums[1] - self.sums[2]).abs().sum()) / max(1, self.tokens)

    @property
    def accuracy(self) -> float:
        """How often the likeliest token came."""
        return float(self.sums[2].sum()) / max(1, self.tokens)

    def table(self) -> list[dict[str, Any]]:
        """The reliability table: a row for each bin that holds a token."""
        rows = []
        for number, (tokens, confidence, right) in enumerate(self.sums.T.tolist()):
            if tokens:
                rows.append({
                    "above": number / BINS, "up_to": (number + 1) / BINS, "tokens": round(tokens),
                    "confidence": confidence / tokens, "accuracy": right / tokens,
                })  # fmt: skip
        return rows

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ece": self.error, "accuracy": self.accuracy, "bins": self.table()}
