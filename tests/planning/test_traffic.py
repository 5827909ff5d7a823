"""Bytes over the network in one step."""

import pytest

from stablelm.config import preset
from stablelm.planning.layout import make_layout
from stablelm.planning.traffic import traffic_of

SEED = preset("stablelm-3b-4e1t")
N = 2_795_443_200


def rows(world=256, **keys):
    batch = {"sequences": 1024, "micro_sequences": 4, "sequence_length": 4096}
    found = traffic_of(SEED, make_layout(SEED, world, **{**batch, **keys}))
    return {(row.axis, row.kind, row.what): row for row in found}


def test_the_original_setting():
    found = rows()
    assert set(found) == {("shard", "all-gather", "weights"), ("shard", "reduce-scatter", "gradients")}
    gather, scatter = found.values()
    assert (gather.calls, scatter.calls) == (33, 33)
    assert gather.sent == pytest.approx(2 * N * 255 / 256, abs=1)
    assert scatter.sent == pytest.approx(4 * N * 255 / 256, abs=1)
    assert gather.node_sent == gather.sent  # one ring through all nodes


def test_stage_3_gathers_twice_a_pass_and_stage_2_reduces_each_pass():
    third = rows(zero=3, micro_sequences=2)
    assert third["shard", "all-gather", "weights"].calls == 2 * 2 * 33
    assert third["shard", "reduce-scatter", "gradients"].calls == 2 * 33
    second, first = rows(zero=2, micro_sequences=2), rows(zero=1, micro_sequences=2)
    assert second["shard", "all-gather", "weights"].calls == 33
    assert second["shard", "reduce-scatter", "gradients"].sent == pytest.approx(
        2 * first["shard", "reduce-scatter", "gradients"].sent, abs=2
    )


def test_replicas_reduce_their_shards_between_nodes():
    found = rows(replicate=32)
    assert found["shard", "all-gather", "weights"].node_sent == 0  # 8 devices: one node
    between = found["replicate", "all-reduce", "gradients"]
    assert between.sent == pytest.approx(2 * 4 * N / 8 * 31 / 32, abs=1)
    assert between.node_sent == 8 * between.sent  # 22 GB, as eight rings


def test_tensor_groups_stay_in_a_node():
    found = rows(tensor=4, micro_sequences=16)
    assert found["tensor", "all-gather", "activations"].calls == 130
    assert found["tensor", "reduce-scatter", "activations"].calls == 129
    assert found["tensor", "all-reduce", "gradients of norms"].calls == 130
    assert all(row.node_sent == 0 for key, row in found.items() if key[0] == "tensor")
    assert (
        found["shard", "all-gather", "weights"].node_sent == 4 * found["shard", "all-gather", "weights"].sent
    )
    again = rows(tensor=4, micro_sequences=16, recompute="full")  # o's result once more, down's not
    assert again["tensor", "all-gather", "activations"].calls == 130 + 64
    assert again["tensor", "reduce-scatter", "activations"].calls == 129 + 32
    plain = rows(tensor=4, micro_sequences=16, sequence_parallel=False)
    assert ("tensor", "reduce-scatter", "activations") not in plain
    assert plain["tensor", "all-reduce", "activations"].calls == 32 * 7 + 1


def test_one_device_sends_nothing():
    assert rows(1) == {}
