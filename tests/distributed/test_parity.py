"""One network, one stream of samples, any mesh: losses, gradient norms, every gradient and all weights are
those of one process, in float64 to 1e-12. Three steps of each, ten of one of each kind; ten of all of them
are in `tests/long/test_meshes.py`."""

import dataclasses
import functools

import numpy as np
import pytest

from tests.distributed.parity import Case, train

CASES = {
    "one process in a group": Case(),
    "(2,1) ZeRO 1": Case(shard=2),
    "(2,1) ZeRO 2, three passes": Case(shard=2, zero=2, passes=3),
    "(2,1) ZeRO 3, recomputed": Case(shard=2, zero=3, recompute="full"),
    "(2,1) ZeRO 0, three passes": Case(replicate=2, zero=0, passes=3),
    "(1,2)": Case(tensor=2, steps=10),
    "(1,2) whole sequences, three passes": Case(tensor=2, sequence_parallel=False, passes=3),
    "(1,2) recomputed": Case(tensor=2, recompute="full", passes=3),
    "(1,2) whole sequences, selective": Case(tensor=2, sequence_parallel=False, recompute="selective"),
    "(2,2) ZeRO 1, three passes": Case(shard=2, tensor=2, passes=3),
    "(2,2) ZeRO 2, whole sequences": Case(shard=2, tensor=2, zero=2, sequence_parallel=False, passes=3),
    "(2,2) ZeRO 3, selective": Case(shard=2, tensor=2, zero=3, passes=3, recompute="selective"),
    "(4,1) ZeRO 3, three passes": Case(shard=4, zero=3, passes=3, steps=10),
    "(1,4) three passes": Case(tensor=4, passes=3),
    "(1,4) whole sequences": Case(tensor=4, sequence_parallel=False),
    "HSDP 2x2, ZeRO 1": Case(replicate=2, shard=2, passes=3),
    "HSDP 2x2, ZeRO 2": Case(replicate=2, shard=2, zero=2, passes=3, recompute=2),
    "HSDP 2x2, ZeRO 3": Case(replicate=2, shard=2, zero=3, passes=3, steps=10),
    "(2,1,2) ZeRO 0": Case(replicate=2, tensor=2, zero=0, passes=3),
    "(2,1,2) ZeRO 2, whole sequences": Case(replicate=2, tensor=2, zero=2, sequence_parallel=False),
    "short last step": Case(shard=4, zero=3, short=5, passes=3),
    "short last step, a process without rows": Case(shard=4, zero=2, short=2, passes=3),
    "biases and grouped keys": Case(
        tensor=2, shard=2, model=(("use_qkv_bias", True), ("num_key_value_heads", 2)), passes=3
    ),
    "parallel residual": Case(tensor=2, shard=2, model=(("use_parallel_residual", True),)),
}


@functools.cache
def alone(case):
    """The same steps by one process without a group."""
    plain = dataclasses.replace(
        case, replicate=1, shard=1, tensor=1, zero=1, passes=1, recompute="none", compile=False
    )
    return _alone(plain)


@functools.cache
def _alone(case):
    return train(0, case)


def compare(found, wanted, tolerance):
    losses, norms, gradients, _, weights = found
    assert np.abs(np.array(losses) - wanted[0]).max() <= tolerance
    assert np.abs(np.array(norms) - wanted[1]).max() <= tolerance
    for mine, theirs in ((gradients, wanted[2]), (weights, wanted[4])):
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert np.abs(mine[name] - tensor).max() <= tolerance, name


@pytest.mark.parametrize("name", CASES)
def test_a_mesh_computes_what_one_process_computes(pool, name):
    agrees(pool, CASES[name])


def agrees(pool, case):
    found, wanted = pool.run(case.world, train, case), alone(case)
    assert wanted[1][0] > 1.0  # so clipping is at work
    assert all(other[:2] == found[0][:2] for other in found)  # the same numbers on every process
    compare(found[0], wanted, 1e-12)
    for key, tensor in wanted[3].items():
        assert np.array_equal(found[0][3][key], tensor), f"initial {key}"


@pytest.mark.parametrize(
    "case",
    [
        Case(shard=2, tensor=2, passes=3, precision="fp32"),
        Case(shard=4, zero=3, precision="fp32"),
        Case(replicate=2, tensor=2, zero=0, sequence_parallel=False, precision="fp32"),
    ],
)
def test_float32_stays_within_its_own_rounding(pool, case):
    found = pool.run(case.world, train, case)[0]
    compare((*found[:4], {}), (*alone(case)[:4], {}), 1e-5)  # AdamW makes a sign of a gradient near 0


@pytest.mark.parametrize(("sequence_parallel", "recompute"), [(True, "none")])
def test_compiled_blocks_keep_the_gradient_of_a_cut_embedding(pool, sequence_parallel, recompute):
    case = Case(tensor=2, compile=True, sequence_parallel=sequence_parallel, recompute=recompute, steps=2)
    found, wanted = pool.run(2, train, case, timeout=300)[0], alone(case)
    assert np.abs(wanted[2]["model.embed_tokens.weight"]).max() > 1e-3
    compare(found, wanted, 1e-12)


def test_bf16_with_float32_reduction_follows_one_process(pool):
    case = Case(shard=2, tensor=2, passes=3, precision="bf16")
    found, wanted = pool.run(4, train, case)[0], alone(case)
    assert np.abs(np.array(found[0]) - wanted[0]).max() < 0.01
    assert np.abs(np.array(found[1]) - wanted[1]).max() < 0.05
