"""Saved on one mesh, continued on another; processes killed in the middle of a save."""

import json
import os
import shutil
import time

import pytest
import torch

from stablelm.config import InputError
from stablelm.config.run import CheckpointConfig
from stablelm.interchange import open_path
from stablelm.interchange.checkpoints import verify
from stablelm.interchange.native import finished_checkpoints
from stablelm.training import checkpoint, saving
from stablelm.training.agreement import Ranks
from stablelm.training.checkpoint import load_checkpoint, read_state
from stablelm.training.saving import Checkpoints
from tests.distributed.sharded import MESHES, Setup, die, digest, processes, tokenizer, values

def checkpoints(run, **keys):
    return Checkpoints(run, CheckpointConfig(**{"keep": 9, **keys}), message=lambda text: None)


def train_and_save(rank, run, mesh, dtype, asynchronous, before=3, after=3):
    """Trains, saves, and trains on while the save goes on; the losses after, and the ids at the save."""
    setup = Setup(mesh, dtype)
    setup.train(before)
    ids = setup.greedy()
    with checkpoints(run, asynchronous=asynchronous) as saves:
        saves.save(setup.model, setup.optimizer, setup.state(), {}, tokenizer())
        losses = setup.train(after)
    return losses, ids


def load_and_train(rank, run, mesh, dtype, after=3):
    setup = Setup(mesh, dtype, seed=2)
    setup.spoil()
    newest = finished_checkpoints(run)[-1]
    load_checkpoint(newest, setup.model, setup.optimizer, Ranks())
    setup.step = read_state(newest)["step"]
    ids = setup.greedy()
    loaded = setup.digest()
    return setup.train(after), ids, loaded


def world(mesh):
    return mesh[0] * mesh[1] * mesh[2]


@pytest.fixture(scope="module")
def undisturbed():
    """The losses of one process, and its ids after three steps."""
    plain = Setup(seed=1)
    plain.train(3)
    return plain.greedy(), plain.train(3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with one checkpoint for each mesh, saved asynchronously, float64."""
    runs = {}
    for name, mesh in MESHES.items():
        runs[name] = tmp_path_factory.mktemp("saved") / "run"
        values(processes(world(mesh), train_and_save, runs[name], mesh, torch.float64, True))
    return runs


def close(losses, expected, bound):
    return max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= bound


@pytest.mark.parametrize(
    ("first", "then"),
    [("(2,2)", name) for name in MESHES] + [(name, "(2,2)") for name in MESHES if name != "(2,2)"],
)
def test_any_mesh_continues_any_other(saved, undisturbed, first, then):
    mesh = MESHES[then]
    ids, expected = undisturbed
    expected_weights = digest(open_path(saved[first])[0])
    for losses, found, weights in values(
        processes(world(mesh), load_and_train, saved[first], mesh, torch.float64)
    ):
        assert close(losses, expected, 1e-12)
        assert found == ids
        assert weights == expected_weights
