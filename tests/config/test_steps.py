"""Steps and positions are each other's inverse, whatever the phases say of batch and context."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.run import run_config, steps_of

DATA = {"path": "prepared", "epochs": {"web": 4}}


def configured(phases, **batch):
    batch = {"sequences": 8, "sequence_length": 64, "micro_sequences": 2, **batch}
    return run_config({"data": {**DATA, "phases": phases}, "batch": batch})


@st.composite
def listed(draw):
    """Phases as a user lists them, and how many windows each of their steps reads."""
    until, phases, windows = 0, [], []
    for _ in range(draw(st.integers(1, 5))):
        until += draw(st.integers(1, 9))
        pieces, count = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 6))
        phases.append({"until_step": until, "sequence_length": 64 // pieces, "sequences": pieces * count})
        windows.append((until, count, pieces))
    del phases[-1]["until_step"]
    return phases, windows


@given(listed())
def test_every_window_is_read_once_by_the_step_that_says_so(case):
    phases, windows = case
    steps = steps_of(configured(phases))
    last, reading, position = windows[-1][0] + 3, [], 0
    for step in range(last):
        _, count, pieces = next((w for w in windows if step < w[0]), windows[-1])
        assert steps.span(step, 10**9) == (position, count, pieces)
        assert steps.position(step) == position
        reading += [step] * count
        position += count
    assert steps.reading(np.arange(position)).tolist() == reading
    for samples in range(1, position + 1):
        assert steps.count(samples) == reading[samples - 1] + 1
        assert sum(steps.span(step, samples).windows for step in range(steps.count(samples))) == samples
    assert steps.count(0) == 0


def test_without_phases_a_step_is_the_batch():
    steps = steps_of(run_config({"data": DATA}))
    assert (steps.position(955_000), steps.count(977_920_001)) == (977_920_000, 955_001)
    assert steps.batches == [(0, 1024, 4096)]


def test_a_ramp_as_it_is_listed():
    phases = [
        {"sequences": 2, "until_step": 10},
        {"sequences": 4, "until_step": 20},
        {"document_boundaries": True, "sequences": 4, "until_step": 30},
        {"sequence_length": 16},
    ]
    steps = steps_of(configured(phases))
    assert steps.batches == [(0, 2, 64), (10, 4, 64), (30, 8, 16)]
    assert [steps.position(step) for step in (10, 20, 30, 31)] == [20, 60, 100, 102]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (
            [{"sequence_length": 48}],
            "phases.0.sequence_length 48 does not divide batch.sequence_length 64",
        ),
        ([{"sequence_length": 128}], "data.phases.0.sequence_length 128 does not divide"),
        (
            [{"sequence_length": 16, "sequences": 6}],
            "phases.0.sequences 6 × 16 tokens .* a multiple of 4",
        ),
        ([{"sequence_length": 4}], "batch.sequences 8 × 4 tokens .* a multiple of 16"),
        ([{"until_step": 5}, {"until_step": 5}], "data.phases.1.until_step 5 is not after step 5"),
        ([{}, {"sequences": 4}], "phases.0: without epochs of its own it needs until_step"),
        ([{"sequences": 0}], "data.phases.0.sequences"),
        ([{"lr": 0}], "data.phases.0.lr"),
        ([{"schedule": {"warm_up": 1}}], "data.phases.0.schedule.warm_up: unknown key; did you mean"),
    ],
)
def test_phases_that_do_not_fit_are_refused_by_their_key(phases, message):
    with pytest.raises(InputError, match=message):
        configured(phases)


@pytest.mark.parametrize(
    "change", [{"sequences": 4}, {"sequence_length": 32}, {"lr": 1e-4}, {"schedule": {}}]
)
def test_a_change_that_happens_at_no_step_is_refused(change):
    phases = [{"epochs": {"web": 1}}, {"epochs": {"web": 1}, **change}]
    with pytest.raises(InputError, match=r"phases.1 changes the batch.*give data.phases.0 its until_step"):
        run_config({"data": {"path": "x", "phases": phases}})
