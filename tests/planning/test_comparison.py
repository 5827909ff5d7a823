"""A step that is not as planned says where."""

import json

import pytest

from stablelm.config import preset
from stablelm.planning import make_layout, memory_of
from stablelm.planning.comparison import compare
from stablelm.planning.memory import local_numbers, parameter_shapes

SEED = preset("stablelm-3b-4e1t")
LAYOUT = make_layout(SEED, 256, sequences=1024, micro_sequences=4, sequence_length=4096, recompute="full")


def compared(rank=0, sizes=None, **keys):
    planned = {name: local_numbers(shape, cut, LAYOUT, rank) for name, shape, cut in parameter_shapes(SEED)}
    held = 4 * sum(planned.values())
    done = {
        "weight_bytes": held, "moment_bytes": 2 * held, "peak": memory_of(SEED, LAYOUT).total,
        "collectives": {"all-gather": 33, "reduce-scatter": 33}, "seconds": 1.0,
    }  # fmt: skip
    return compare(SEED, LAYOUT, rank, {**planned, **(sizes or {})}, **{**done, **keys})


@pytest.mark.parametrize("rank", [0, 100, 255])
def test_as_planned(rank):
    result = compared(rank)
    assert result.faults == () and "as planned" in "\n".join(result.lines())
    json.dumps(result.as_dict())


def test_the_last_rank_holds_less():
    assert compared(255).weights[0] < compared(0).weights[0] == 43_689_040


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"sizes": {"model.norm.weight": 2560}}, "model.norm.weight: 2,560 numbers on this rank, planned 10"),
        ({"sizes": {"model.norm.scale": 10}}, "model.norm.scale: 10 numbers on this rank, planned 0"),
        ({"weight_bytes": 5}, "weights: 5 bytes, planned 43,689,040"),
        ({"moment_bytes": 5}, "moments: 5 bytes, planned 87,378,080"),
        ({"peak": 2**40}, "peak: 1,099,511,627,776 bytes"),
        ({"collectives": {"all-gather": 66, "reduce-scatter": 33}}, "all-gather: 66 calls, planned 33"),
        (
            {"collectives": {"all-gather": 33, "reduce-scatter": 33, "all-reduce": 1}},
            "all-reduce: 1 calls, planned 0",
        ),
        ({"collectives": {"all-gather": 33}}, "reduce-scatter: 0 calls, planned 33"),
    ],
)
def test_not_as_planned(keys, fault):
    result = compared(**keys)
    assert any(fault in said for said in result.faults)
    assert f"NOT AS PLANNED: {result.faults[0]}" in "\n".join(result.lines())
