"""How many bands of how many rows: which similarity makes two documents meet, and which makes them one.

With b bands of r rows, two documents of similarity s have an equal band with probability 1 − (1 − sʳ)ᵇ
(Leskovec, Rajaraman & Ullman, chapter 3). Where the whole signatures are compared too, they are one when they
also agree in at least threshold × k of all k values: an exact sum over the number of agreements."""

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stablelm.config.deduplication import NearDeduplication


def s_curve(bands: int, rows: int, similarity: ArrayLike) -> NDArray[np.float64]:
    """Probability that documents of these Jaccard similarities have an equal band."""
    s = np.asarray(similarity, np.float64)
    return np.asarray(1 - (1 - s**rows) ** bands)


def verified_curve(
    bands: int, rows: int, hashes: int, threshold: float, similarity: ArrayLike
) -> NDArray[np.float64]:
    """Probability that they have an equal band and agree in at least threshold × hashes values."""
    wanted = agreements(threshold, hashes)
    result = []
    for s in np.asarray(similarity, np.float64).reshape(-1):
        all_ways, unmet = _binomial(hashes, s), np.ones(1)
        band = _binomial(rows, s)
        band[rows] = 0  # the band is not equal
        for _ in range(bands):
            unmet = np.convolve(unmet, band)
        unmet = np.convolve(unmet, _binomial(hashes - bands * rows, s))
        result.append(max(0.0, float(all_ways[wanted:].sum() - unmet[wanted:].sum())))
    return np.array(result).reshape(np.shape(similarity))


def agreements(threshold: float, hashes: int) -> int:
    """How many of the values must agree for an estimate of at least `threshold`."""
    return math.ceil(threshold * hashes - 1e-9)


@cache
def choose_bands(threshold: float, hashes: int, misses: float = 0.5) -> tuple[int, int]:
    """(bands, rows), bands × rows ≤ hashes, of least weighted error.

    The error is the area under the curve below the threshold (compared in vain), weighing 1 − misses, and
    above it up to 1 (missed), weighing `misses`. Of equals, the one with fewer rows."""
    below, above = np.linspace(0, threshold, 513), np.linspace(threshold, 1, 513)
    best, chosen = math.inf, (1, 1)
    for rows in range(1, hashes + 1):
        for bands in range(1, hashes // rows + 1):
            vain = float(np.trapezoid(s_curve(bands, rows, below), below))
            missed = float(np.trapezoid(1 - s_curve(bands, rows, above), above))
            error = (1 - misses) * vain + misses * missed
            if error < best - 1e-12:
                best, chosen = error, (bands, rows)
    return chosen


def bands_of(settings: NearDeduplication) -> tuple[int, int]:
    """(bands, rows) of the settings, chosen where they are not given."""
    if settings.bands and settings.rows:
        return settings.bands, settings.rows
    return choose_bands(settings.threshold, settings.hashes, settings.misses)


def curve_table(settings: NearDeduplication, steps: int = 20) -> str:
    """The S-curve as text: similarity, probability to be compared, probability to be taken as one."""
    bands, rows = bands_of(settings)
    similarity = np.arange(1, steps) / steps
    met = taken = s_curve(bands, rows, similarity)
    if settings.verify:
        taken = verified_curve(bands, rows, settings.hashes, settings.threshold, similarity)
    lines = [f"{bands} bands of {rows} rows, threshold {settings.threshold:g}", "similarity compared    one"]
    lines += [f"{s:10.2f} {m:8.4f} {t:6.4f}" for s, m, t in zip(similarity, met, taken, strict=True)]
    return "\n".join(lines)


def _binomial(n: int, p: float) -> NDArray[np.float64]:
    """Probabilities of 0 … n successes."""
    result = np.ones(1)
    step = np.array([1 - p, p])
    for _ in range(n):
        result = np.convolve(result, step)
    return result
