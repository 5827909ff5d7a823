"""Loss by how much of the text came before: whether a long context helps, and where a model stops reading.

A window is cut into equal parts. Only windows that are full count, so that all parts hold the same texts:
else the late ones would hold only long documents, which are of another kind. The standard error is over
documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Positions:
    """−ln p in each part of the window, for each document that fills one."""

    window: int
    """Tokens."""
    parts: int
    nats: list[NDArray[np.float64]] = field(default_factory=list)
    """Of a document, summed over its full windows, [parts]."""
    windows: list[int] = field(default_factory=list)
    """Its full windows."""

    def __add__(self, other: "Positions") -> "Positions":
        assert (self.window, self.parts) == (other.window, other.parts)
        return Positions(self.window, self.parts, self.nats + other.nats, self.windows + other.windows)

    @property
    def edges(self) -> NDArray[np.int64]:
        """Tokens before each part, and in all: [parts + 1]."""
        return np.arange(self.parts + 1) * self.window // self.parts

    def sums(self, nats: NDArray[Any]) -> NDArray[np.float64]:
        """−ln p of the tokens of one full window [window] → of its parts [parts]."""
        return np.add.reduceat(nats.astype(np.float64), self.edges[:-1])

    def add(self, nats: NDArray[np.float64], windows: int) -> None:
        """Counts a document with so many full windows, if any."""
        if windows:
            self.nats.append(nats)
            self.windows.append(windows)

    def as_dicts(self) -> list[dict[str, Any]]:
        """A row for each part, for JSON: first and last position (from 1), documents, tokens, loss, its
        standard error (null for one document)."""
        if not self.windows:
            return []
        rows = []
        for part, (first, last) in enumerate(zip(self.edges, self.edges[1:], strict=False)):
            tokens = [count * int(last - first) for count in self.windows]
            loss, error = ratio([float(nats[part]) for nats in self.nats], tokens)
            rows.append({
                "first": int(first) + 1, "last": int(last), "documents": len(tokens), "tokens": sum(tokens),
                "loss": loss, "loss_standard_error": error,
            })  # fmt: skip
        return rows


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float | None]:
    """Σ over / Σ under and its standard error, both over the same documents; None for a single one."""
    total, count = sum(under), len(under)
    value = math.fsum(over) / total
    if count < 2:
        return value, None
    squares = math.fsum((a - value * b) ** 2 for a, b in zip(over, under, strict=True))
    return value, math.sqrt(squares * count / (count - 1)) / total
