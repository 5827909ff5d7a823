"""Bands and rows, and the curves they promise."""

import numpy as np
import pytest

from stablelm.config.deduplication import NearDeduplication
from stablelm.data.deduplication.bands import (
    bands_of,
    choose_bands,
    curve_table,
    s_curve,
    verified_curve,
)


def test_the_curve_at_published_points():
    """datatrove's documentation gives 0.924 for 14 bands of 8 at 0.8; the curve turns at (1/b)^(1/r)."""
    assert s_curve(14, 8, 0.8) == pytest.approx(0.924, abs=5e-4)
    assert s_curve(14, 8, [0, 1]).tolist() == [0, 1]
    assert s_curve(450, 20, (1 / 450) ** (1 / 20)) == pytest.approx(1 - np.exp(-1), abs=1e-3)


@pytest.mark.parametrize("s", [0.45, 0.6, 0.7, 0.85])
def test_the_curves_are_those_of_random_signatures(s):
    bands, rows, hashes, threshold, trials = 12, 4, 60, 0.62, 40_000
    agree = np.random.default_rng(7).random((trials, hashes)) < s
    met = agree[:, : bands * rows].reshape(trials, bands, rows).all(2).any(1)
    taken = met & (agree.sum(1) >= threshold * hashes)
    for simulated, promised in (
        (met, s_curve(bands, rows, s)),
        (taken, verified_curve(bands, rows, hashes, threshold, s)),
    ):
        error = 4.5 * np.sqrt(promised * (1 - promised) / trials) + 1e-9
        assert simulated.mean() == pytest.approx(float(promised), abs=float(error))


def test_the_verified_curve_at_its_ends():
    assert verified_curve(4, 3, 12, 0.5, [0.0, 1.0]).tolist() == pytest.approx([0, 1])
    every = verified_curve(4, 3, 12, 1e-6, np.linspace(0.05, 0.95, 7))
    assert every == pytest.approx(s_curve(4, 3, np.linspace(0.05, 0.95, 7)))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("misses", [0.2, 0.5, 0.8])
def test_the_bands_are_the_best_ones(threshold, misses):
    """Against sums over a fine grid, for every way to cut 24 hashes."""
    grid = (np.arange(20_000) + 0.5) / 20_000
    below = grid < threshold

    def error(bands, rows):
        curve = 1 - (1 - grid**rows) ** bands
        return ((1 - misses) * curve[below].sum() + misses * (1 - curve[~below]).sum()) / len(grid)

    bands, rows = choose_bands(threshold, 24, misses)
    assert bands * rows <= 24
    least = min(error(b, r) for r in range(1, 25) for b in range(1, 24 // r + 1))
    assert error(bands, rows) == pytest.approx(least, abs=1e-5)


def test_missing_less_means_meeting_more():
    met = [float(s_curve(*choose_bands(0.7, 128, misses), 0.75)) for misses in (0.1, 0.5, 0.9)]
    assert met == sorted(met) and met[0] < 0.6 < 0.9 < met[2]


def test_given_bands_are_kept():
    assert bands_of(NearDeduplication(bands=14, rows=8)) == (14, 8)
    assert bands_of(NearDeduplication(threshold=0.6)) == (23, 5)


def test_the_curve_is_printed():
    text = curve_table(NearDeduplication(threshold=0.6))
    assert "23 bands of 5 rows, threshold 0.6" in text and "0.60   0.8446" in text
    loose = curve_table(NearDeduplication(threshold=0.6, verify=False))
    assert all(line.split()[1] == line.split()[2] for line in loose.splitlines()[2:])
