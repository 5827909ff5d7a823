"""The learning rate against golden values of the original run and against its formula written anew."""

import math

import pytest

from stablelm.training.schedule import learning_rate

PEAK, FLOOR, WARMUP, STEPS = 3.2e-4, 1.28e-5, 4_775, 955_000


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 3.2e-4 / 4775),
        (1, 3.2e-4 / 4775),
        (2387, 3.2e-4 * 2387 / 4775),
        (4775, 3.2e-4),
        (477_500, 1.28e-5 + (3.2e-4 - 1.28e-5) / 2 * (1 + math.cos(math.pi * 472_725 / 950_225))),
        (955_000, 1.28e-5),
        (2_000_000, 1.28e-5),
    ],
)
def test_the_original_runs_schedule(step, expected):
    assert learning_rate(step, PEAK, FLOOR, WARMUP, STEPS) == pytest.approx(expected, rel=1e-12)


def test_it_rises_then_falls_and_stays_between_floor_and_peak():
    rates = [learning_rate(step, 1.0, 0.1, 20, 200) for step in range(201)]
    assert rates[1:21] == sorted(rates[1:21]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) == 1.0 and rates[-1] == pytest.approx(0.1) and min(rates) == rates[0] == 1 / 20


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_short_runs_and_no_warmup(warmup):
    rates = [learning_rate(step, 1.0, 0.0, warmup, 5) for step in range(6)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert warmup > 0 or rates[0] == 1.0
