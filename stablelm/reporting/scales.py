"""Axes: the range a chart shows, its 1-2-5 ticks, and where a value lies on it.

Values beyond ±1e300 are treated as infinite, and so are those beyond 1e±140 on a logarithmic axis, so that no
difference and no ratio of two values overflows."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stablelm.reporting.text import log_labels, tick_labels

Array = npt.NDArray[np.float64]
LARGEST, LARGEST_LOG = 1e300, 1e140


def drawable(values: Array, log: bool = False) -> npt.NDArray[np.bool_]:
    """Which values have a place on an axis: finite, and above 0 on a logarithmic one."""
    with np.errstate(invalid="ignore"):
        if log:
            return (values > 1 / LARGEST_LOG) & (values < LARGEST_LOG)
        return np.asarray(np.abs(values) < LARGEST)  # false for NaN


@dataclass(frozen=True)
class Scale:
    """One axis: the values `low` … `high` onto the pixels `start` … `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    any: bool = True  # whether there is a value to show at all

    def place(self, values: Array) -> Array:
        """Pixel positions of values; they must be drawable."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        share = ((np.log10(values) if self.log else values) - low) / (high - low)
        return np.asarray(self.start + share * (self.end - self.start), dtype=np.float64)

    def ticks(self, about: int) -> list[tuple[float, str]]:
        """About `about` (position, label) pairs at round values inside the range."""
        if not self.any:
            return []
        values = (
            log_ticks(self.low, self.high, about) if self.log else round_ticks(self.low, self.high, about)
        )
        labels = log_labels(values) if self.log else tick_labels(values)
        return list(zip(self.place(np.array(values)).tolist(), labels, strict=True))


def fit(
    values: Array, start: float, end: float, *, log: bool = False, zero: bool = False, margin: float = 0.0
) -> Scale:
    """The scale that shows all drawable `values`, with a relative margin; `zero` makes 0 part of it."""
    values = values[drawable(values, log)]
    if not values.size:
        return Scale(1.0, 10.0, start, end, log, any=False)
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = (low / 2, high * 2) if high / low < 1.0001 else (low, high)
        return Scale(low / (high / low) ** margin, high * (high / low) ** margin, start, end, True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= max(1e-12 * max(abs(low), abs(high)), 1e-290):  # one value: give it room on both sides
        room = 0.05 * abs(low) if abs(low) > 1e-280 else 1.0
        low, high = low - room, high + room
    room = margin * (high - low)
    return Scale(low - room, high + room, start, end)


def round_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high], nearest to `about` of them."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / about))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda s: abs(span / s - about))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def log_ticks(low: float, high: float, about: int) -> list[float]:
    """Powers of ten in [low, high], with 1-2-5 steps between few of them; linear within less than a
    decade."""
    decades = math.log10(high / low)
    if decades < 0.8:
        return [tick for tick in round_ticks(low, high, about) if tick > 0]
    factors = (1, 2, 5) if decades < about / 2 else (1,)
    every = max(1, round(decades / about))
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    candidates = (float(f"{f}e{k}") for k in range(first - first % every, last + 1, every) for f in factors)
    return [tick for tick in candidates if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
