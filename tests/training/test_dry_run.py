"""Fake steps on meshes of many ranks, held against the plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stablelm.config import InputError
from stablelm.config.run import run_config
from stablelm.training.dry_run import dry_run

SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 256,
}  # fmt: skip
BATCH = {"sequences": 32, "micro_sequences": 4, "sequence_length": 256}
DATA = {"path": "nowhere", "epochs": {"web": 1}}


def done(world: int, rank: int, **config) -> dict:
    """The result of tests/training/fake_step.py."""
    wanted = json.dumps({"world": world, "rank": rank, "config": {"data": DATA, **config}})
    script = Path(__file__).with_name("fake_step.py")
    said = subprocess.run([sys.executable, script, wanted], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("world", "rank", "keys"),
    [
        (8, 7, {"parallel": {"zero": 3}, "recompute": "full"}),
        (4, 1, {"parallel": {"zero": 2, "replicate": 2}}),
        (2, 1, {"parallel": {"zero": 0}, "precision": "fp32"}),
    ],
)
def test_small_steps_are_as_planned(world, rank, keys):
    """Shards, moments and collectives exactly; the peak never much above the plan."""
    said = done(world, rank, model=SMALL, batch=BATCH, loss_chunk=64, **keys)
    assert said["faults"] == []
    assert said["weights"][0] == said["weights"][1] > 0 and said["moments"][0] == 2 * said["weights"][0]
    assert 0.85 * said["peak"][1] < said["peak"][0] <= 1.02 * said["peak"][1]


def test_the_original_step_on_256_gpus():
    """The whole model, micro-batch 4, everything recomputed; within a minute."""
    said = done(256, 0, recompute="full")
    assert said["faults"] == [] and said["seconds"] < 60
    assert said["weights"][0] == 43_689_040
    assert said["collectives"] == {"all-gather": [33, 33], "reduce-scatter": [33, 33]}
    assert 0.93 < said["peak"][0] / said["peak"][1] <= 1.0


def test_mistakes():
    small = run_config({"model": SMALL, "batch": BATCH, "data": DATA})
    with pytest.raises(InputError, match="does not divide over 3 data-parallel ranks"):
        dry_run(small, 3)
    with pytest.raises(InputError, match="rank 8: a number from 0 to 7"):
        dry_run(small, 8, 8)
