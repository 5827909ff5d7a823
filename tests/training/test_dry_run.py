"""Fake steps on meshes of many ranks, placed as the trainer places them, held against the plan."""

import pytest

from stablelm.config import InputError
from stablelm.config.run import run_config
from stablelm.planning import layout_of, memory_of
from stablelm.training.dry_run import dry_run

SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 256,
}  # fmt: skip
DATA = {"path": "nowhere", "epochs": {"web": 1}}
BATCH = {"sequences": 16, "micro_sequences": 2, "sequence_length": 256}


def small(**keys):
    return run_config({"model": SMALL, "batch": BATCH, "data": DATA, "loss_chunk": 64, **keys})


def original(**keys):
    return run_config({"data": DATA, "recompute": "full", **keys})


@pytest.mark.parametrize(
    ("world", "rank", "keys"),
    [
        (8, 0, {}),
        (8, 7, {"parallel": {"zero": 3}, "recompute": "full"}),
        (4, 1, {"parallel": {"zero": 2, "replicate": 2}, "ema": {"decay": 0.999}}),
        (8, 5, {"parallel": {"tensor": 4}}),
        (4, 0, {"parallel": {"tensor": 2, "sequence_parallel": False}, "recompute": 2}),
        (4, 3, {"parallel": {"zero": 0}, "precision": "fp32"}),
    ],
)
def test_small_steps_are_as_planned(world, rank, keys):
    done = dry_run(small(**keys), world, rank)
    assert done.faults == ()
    assert done.weights[0] == done.weights[1] > 0 and done.moments[0] == 2 * done.weights[0]
    assert 0.8 * done.peak[1] < done.peak[0] <= 1.02 * done.peak[1] + 4 * 2**20


@pytest.mark.parametrize(("tensor", "collectives"), [(1, (33, 33, 0))])
def test_the_original_model_on_256_gpus(tensor, collectives):
    """(256, 1), and (64, 4) in `tests/long/test_meshes.py`: one rank's whole step. There, of the tensor
    group's 194 all-gathers 64 are the recomputation's; of its 387 all-reduces 130 are the norms', 257 the
    loss's 128 chunks'."""
    config = original(parallel={"tensor": tensor}, batch={"micro_sequences": 4 * tensor})
    done = dry_run(config, 256)
    assert done.faults == ()
    assert done.weights[0] in range(41 * 2**20, 42 * 2**20)
    kinds = ("all-gather", "reduce-scatter", "all-reduce")
    assert tuple(done.collectives.get(kind, (0, 0))[0] for kind in kinds) == collectives
    assert done.peak[0] == pytest.approx(memory_of(config.model, layout_of(config, 256)).total, rel=0.1)


def test_mistakes():
    with pytest.raises(InputError, match="cannot be shared out evenly over 3 data-parallel"):
        dry_run(small(), 3)
    with pytest.raises(InputError, match="rank 8: a number from 0 to 7"):
        dry_run(small(), 8, 8)
    with pytest.raises(InputError, match="qk_layernorm has a norm for each head and cannot be cut"):
        dry_run(small(model={**SMALL, "qk_layernorm": True}, parallel={"tensor": 2}), 8)
