"""Axes: round ticks inside the range for any data, and every value placed where it belongs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.reporting.scales import drawable, fit, log_ticks, round_ticks

anything = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize(
    ("low", "high", "about", "ticks"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (2.6, 8.3, 5, [3, 4, 5, 6, 7, 8]),
        (-3, 2, 5, [-3, -2, -1, 0, 1, 2]), (0, 480, 7, [0, 100, 200, 300, 400]),
        (0.1, 0.3, 4, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (955_000, 956_000, 4, [955_000, 955_200, 955_400, 955_600, 955_800, 956_000]),
    ],
)  # fmt: skip
def test_round_ticks(low, high, about, ticks):
    assert round_ticks(low, high, about) == ticks


@pytest.mark.parametrize(
    ("low", "high", "about", "ticks"),
    [
        (1, 1000, 4, [1, 10, 100, 1000]), (1, 10, 6, [1, 2, 5, 10]),
        (1e-5, 3e-4, 6, [1e-5, 2e-5, 5e-5, 1e-4, 2e-4]),
        (2.0, 8.0, 4, [2, 4, 6, 8]), (1, 1e12, 4, [1, 1e3, 1e6, 1e9, 1e12]), (3, 70, 3, [5, 10, 20, 50]),
    ],
)  # fmt: skip
def test_log_ticks(low, high, about, ticks):
    assert log_ticks(low, high, about) == pytest.approx(ticks)


@given(st.lists(anything, max_size=20), st.booleans(), st.booleans())
def test_any_data_has_an_axis(values, log, zero):
    """Also one value, none, infinities, denormals and differences beyond what a float can hold."""
    y = np.array(values, dtype=np.float64)
    scale = fit(y, 300.0, 20.0, log=log, zero=zero and not log, margin=0.04)
    ticks = scale.ticks(5)
    shown = y[drawable(y, log)]
    assert np.isfinite([scale.low, scale.high]).all()
    assert scale.low < scale.high
    places = scale.place(shown)
    assert ((places >= 19.9) & (places <= 300.1)).all()
    assert len(ticks) <= 40
    assert all(19.9 <= place <= 300.1 and label for place, label in ticks)
    if shown.size and not log:
        assert len(ticks) >= 2
    order = np.argsort(shown)
    assert (np.diff(places[order]) <= 1e-9).all()  # up is more


def test_a_constant_lies_in_the_middle():
    for value in (5.0, -3.0, 0.0, 1e15):
        scale = fit(np.array([value, value]), 0.0, 100.0)
        assert scale.place(np.array([value]))[0] == pytest.approx(50, abs=0.5)


def test_nearly_constant_numbers_do_not_loop_for_ever():
    scale = fit(np.array([1e16, 1e16 + 2]), 0.0, 100.0)
    assert 2 <= len(scale.ticks(5)) < 20


def test_bars_start_at_zero():
    assert fit(np.array([5.0, 9.0]), 100.0, 0.0, zero=True).low == 0
    assert fit(np.array([-5.0, -9.0]), 100.0, 0.0, zero=True).high == 0
    assert drawable(np.array([1.0, 0.0, -1.0, np.nan, np.inf, 1e301])).tolist() == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert drawable(np.array([1.0, 0.0, -1.0, np.nan]), log=True).tolist() == [True, False, False, False]
