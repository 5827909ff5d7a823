"""The learning rate against golden values of the original run and against its formulas written anew."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.optimization import ScheduleConfig
from stablelm.config.run import run_config
from stablelm.planning import make_plan
from stablelm.planning.schedule import Schedule, learning_rate

DATA = {"path": "prepared", "epochs": {"web": 4}}
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


def rates(steps=1000, peak=1.0, **config):
    schedule = Schedule(ScheduleConfig(**config), peak, steps)
    return [schedule.rate(step) for step in range(steps + 1)]


def test_the_seeds_golden_rates_through_the_configuration():
    """GPT-NeoX's formula in 60 digits, the cosine by its series."""
    schedule = Schedule(ScheduleConfig(), 3.2e-4, 955_000)
    golden = {
        0: 6.701570680628272e-08, 1: 6.701570680628272e-08, 4_775: 3.2e-4,
        477_500: 0.00016761242115733197, 955_000: 1.28e-5,
    }  # fmt: skip
    for step, rate in golden.items():
        assert schedule.rate(step) == pytest.approx(rate, rel=1e-14), step
    assert schedule.turning_points() == [(step, schedule.rate(step)) for step in (0, 4_775, 955_000)], (
        "what the plan shows"
    )


@given(st.integers(0, 60), st.integers(1, 200), st.floats(0, 1))
def test_the_default_is_bit_equal_to_the_plain_formula(warmup, steps, floor):
    config = ScheduleConfig(warmup_steps=min(warmup, steps), floor=floor)
    schedule = Schedule(config, 3e-4, steps)
    for step in range(steps + 1):
        assert schedule.rate(step) == learning_rate(step, 3e-4, 3e-4 * floor, min(warmup, steps), steps)


def test_wsd_is_constant_and_cooldown():
    wsd = rates(warmup=0.1, shape="constant", cooldown=0.2)
    assert wsd[:101] == pytest.approx([max(1, i) / 100 for i in range(101)])
    assert set(wsd[100:801]) == {1.0}
    assert wsd[800:] == pytest.approx([1 - i / 200 for i in range(201)], abs=1e-12) and wsd[-1] == 0
    root = rates(
        warmup=0.1, shape="constant", cooldown_steps=200, cooldown_shape="1-sqrt", cooldown_floor=0.1
    )
    assert root[:801] == wsd[:801]
    assert root[800:] == pytest.approx([0.1 + 0.9 * (1 - math.sqrt(i / 200)) for i in range(201)])


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "inverse_sqrt"])
def test_a_cooldown_changes_nothing_before_it_and_starts_where_the_shape_is(shape):
    plain, cut = rates(shape=shape, warmup=0.05), rates(shape=shape, warmup=0.05, cooldown=0.25)
    assert cut[:751] == plain[:751]
    assert cut[750:] == pytest.approx([plain[750] * (1 - i / 250) for i in range(251)], abs=1e-12)


def test_linear_and_inverse_sqrt_by_their_formulas():
    line = rates(shape="linear", warmup_steps=100, floor=0.1)
    assert line[100:] == pytest.approx([1 - 0.9 * i / 900 for i in range(901)])
    root = rates(shape="inverse_sqrt", warmup_steps=100, floor=0)
    assert root[100:] == pytest.approx([math.sqrt(100 / i) for i in range(100, 1001)])
    offset = rates(shape="inverse_sqrt", warmup_steps=100, floor=0.5, inverse_sqrt_offset=50)
    assert offset[100:] == pytest.approx([max(0.5, math.sqrt(150 / (i + 50))) for i in range(100, 1001)])
    assert offset[-1] == 0.5


@pytest.mark.parametrize("horizon", [0.6, 1.0, 2.5])
def test_after_a_cosine_the_inverse_sqrt_has_its_value_and_slope(horizon):
    """alpha / sqrt(step + beta), alpha and beta from the value and the slope at the joint."""
    steps, peak, floor, warmup = 100_000, 1e-3, 1e-4, 1800
    schedule = Schedule(
        ScheduleConfig(
            shape="inverse_sqrt", warmup_steps=warmup, floor=0.1, inverse_sqrt_start=0.25,
            cosine_horizon=horizon,
        ), peak, steps,
    )  # fmt: skip
    joint, end = 25_000, round(horizon * steps)
    for step in (warmup, 10_000, joint - 1):
        assert schedule.rate(step) == learning_rate(step, peak, floor, warmup, end)
    value = learning_rate(joint, peak, floor, warmup, end)
    before = value - learning_rate(joint - 1, peak, floor, warmup, end)
    assert schedule.rate(joint) == pytest.approx(value, rel=1e-12)
    assert schedule.rate(joint + 1) - value == pytest.approx(before, rel=1e-3), "no kink"
    beta = -value / (2 * before) - joint  # from a difference: near, not exact
    alpha = value * math.sqrt(joint + beta)
    for step in (30_000, 60_000, 99_999):
        assert schedule.rate(step) == pytest.approx(alpha / math.sqrt(step + beta), rel=1e-3)
    assert [step for step, _ in schedule.turning_points()] == [0, warmup, joint, steps]


@given(
    shape=st.sampled_from(["cosine", "linear", "constant", "inverse_sqrt"]), warmup=st.integers(0, 20),
    cooldown=st.integers(0, 20), steps=st.integers(40, 90), floor=st.floats(0, 1), sqrt=st.booleans(),
)  # fmt: skip
def test_no_rate_is_above_the_peak_or_negative(shape, warmup, cooldown, steps, floor, sqrt):
    found = rates(
        steps, 2e-3, shape=shape, warmup_steps=warmup, cooldown_steps=cooldown, floor=floor,
        cooldown_shape="1-sqrt" if sqrt else "linear",
    )  # fmt: skip
    assert all(0 <= rate <= 2e-3 * (1 + 1e-12) for rate in found)
    assert found[warmup:] == sorted(found[warmup:], reverse=True) or floor > 0.99


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"warmup_steps": 11}, "11 steps of warm-up and 0 of cooldown do not fit into 10 steps"),
        ({"warmup": 0.5, "cooldown_steps": 6}, "5 steps of warm-up and 6 of cooldown do not fit"),
        (
            {"warmup": 0.5, "shape": "inverse_sqrt", "inverse_sqrt_start": 0.4},
            "starts at step 4, within the warm-up of 5",
        ),
    ],
)
def test_parts_that_do_not_fit_into_the_run(config, message):
    with pytest.raises(InputError, match=message):
        make_plan(run_config({"data": DATA, "schedule": config, "steps": 10}), 10_240, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shape": "cosin"}, "schedule.shape"),
        ({"inverse_sqrt_offset": 3}, "inverse_sqrt_offset belongs to shape: inverse_sqrt, not to cosine"),
        ({"shape": "inverse_sqrt", "cosine_horizon": 0.5}, "cosine_horizon wants inverse_sqrt_start"),
        (
            {"shape": "inverse_sqrt", "inverse_sqrt_start": 0.5, "cosine_horizon": 0.5},
            "0.5 is not before cosine_horizon 0.5",
        ),
        (
            {"shape": "inverse_sqrt", "inverse_sqrt_start": 0.5, "inverse_sqrt_offset": 9},
            "are both given; keep one",
        ),
        ({"shape": "inverse_sqrt", "inverse_sqrt_start": 0.5, "floor": 1}, "floor 1 makes the cosine flat"),
        ({"cooldown": 1.5}, "schedule.cooldown"),
        ({"cooldown_steps": -1}, "schedule.cooldown_steps"),
    ],
)
def test_schedules_that_say_nothing_clear(config, message):
    with pytest.raises(InputError, match=message):
        run_config({"data": DATA, "schedule": config})


def test_the_plan_shows_the_turning_points():
    config = run_config({
        "data": DATA, "steps": 1000, "optimizer": {"lr": 1e-3},
        "schedule": {"shape": "constant", "warmup_steps": 50, "cooldown_steps": 100},
    })  # fmt: skip
    plan = make_plan(config, 1_024_000, {})
    assert (plan.warmup_steps, plan.cooldown_steps) == (50, 100)
    told = "\n".join(plan.lines())
    assert "1,000 steps (50 warm-up, 100 cooldown)" in told
    assert "learning rate 2e-05 at step 0, 0.001 at step 50, 0.001 at step 900, 0 at step 1,000" in told
