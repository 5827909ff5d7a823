"""Saved on one mesh, continued on another; processes killed in the middle of a save."""

import errno
import json
import shutil
import threading

import pytest
import torch

from stablelm.config import InputError
from stablelm.config.run import CheckpointConfig
from stablelm.interchange import open_path
from stablelm.interchange.checkpoints import verify
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import MANIFEST, DiskFullError, write_manifest
from stablelm.training import checkpoint, saving
from stablelm.training.agreement import Ranks
from stablelm.training.checkpoint import load_checkpoint, read_state
from stablelm.training.saving import Checkpoints
from tests.distributed.sharded import MESHES, Setup, die, digest, processes, tokenizer, values


def checkpoints(run, **keys):
    return Checkpoints(run, CheckpointConfig(**{"keep": 9, **keys}), message=lambda text: None)


def train_and_save(rank, run, mesh, dtype, asynchronous):
    """Three steps, a save, three more while it goes on: not a byte is written before the first of them."""
    setup, trained, write = Setup(mesh, dtype), threading.Event(), saving.write_checkpoint
    if asynchronous:
        saving.write_checkpoint = lambda *given: (trained.wait(60), write(*given))
    setup.train(3)
    with checkpoints(run, asynchronous=asynchronous) as saves:
        save(saves, setup)
        assert bool(finished_checkpoints(run)) != asynchronous
        losses = setup.train(1)
        trained.set()
        return losses + setup.train(2)


def save(saves, setup):
    return saves.save(setup.model, setup.optimizer, setup.state(), {}, tokenizer())


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
    """A run with one checkpoint for each case: a mesh, saved asynchronously in float64, unless it says."""
    runs = {}

    def get(name):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("saved") / "run"
            mesh, dtype = MESHES[name.split()[0]], torch.float32 if "float32" in name else torch.float64
            values(processes(world(mesh), train_and_save, runs[name], mesh, dtype, "sync" not in name))
        return runs[name]

    return get


def close(losses, expected, bound):
    return max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= bound


@pytest.mark.parametrize(
    ("first", "then"),
    [("(2,2)", name) for name in MESHES]
    + [(name, "(2,2)") for name in MESHES if name != "(2,2)"]
    + [("(2,2) sync", name) for name in ("(1,1)", "HSDP")]
    + [("(2,2) float32", name) for name in ("(1,1)", "(4,1)")],
)
def test_any_mesh_continues_any_other(saved, undisturbed, first, then):
    mesh, dtype = MESHES[then], torch.float32 if "float32" in first else torch.float64
    ids, expected = undisturbed
    run = saved(first)
    expected_weights = digest(open_path(run)[0])
    for losses, found, weights in values(processes(world(mesh), load_and_train, run, mesh, dtype)):
        assert close(losses, expected, 1e-12 if dtype == torch.float64 else 1e-5)
        assert found == ids
        assert weights == expected_weights


MOMENTS_OF_DEATH = {
    "writing": (1, checkpoint.HuggingFaceStorageWriter, "write_data"),
    "hashing": (3, checkpoint, "_own_files"),
    "renaming": (0, checkpoint, "commit_directory"),
}


def killed_while_saving(rank, run, moment):
    """A whole save at step 2; in the one at step 3 one rank is killed."""
    victim, place, name = MOMENTS_OF_DEATH[moment]
    setup = Setup(MESHES["(2,2)"])
    setup.train(2)
    saves = checkpoints(run)
    save(saves, setup)
    setup.train(1)
    saves.finish()
    if rank == victim:
        setattr(place, name, lambda *given, **named: die())
    target = save(saves, setup)
    try:
        saves.finish()
    finally:
        assert not target.exists()


@pytest.mark.parametrize("moment", list(MOMENTS_OF_DEATH))
def test_a_rank_killed_in_a_save_stops_the_others_and_loses_nothing(tmp_path, undisturbed, moment):
    run, victim = tmp_path / "run", MOMENTS_OF_DEATH[moment][0]
    results = processes(4, killed_while_saving, run, moment)
    assert results[victim] == (None, None)
    for rank, (_, error) in enumerate(results):
        if rank != victim:
            assert error[0] == "RunError", error[2]
            assert "a process of this run is gone" in error[1]
    folder = run / "checkpoints"
    assert [path.name for path in finished_checkpoints(run)] == ["step-000002"]
    assert (folder / "latest").read_text() == "step-000002\n"
    assert (victim == 0) == any("tmp" in path.name for path in folder.iterdir())
    list(verify(run))
    expected = Setup()
    expected.train(2)
    losses = expected.train(2)
    for mesh in [(1, 1, 1), (2, 2, 1)] if moment == "writing" else [(1, 1, 1)]:
        for found, _, _ in values(processes(world(mesh), load_and_train, run, mesh, torch.float64, 2)):
            assert close(found, losses, 1e-12)
    if victim == 0:
        assert len(checkpoint.clear_leftovers(run)) == 1


def full_disk(rank, run, times):
    """Five saves, one a step; rank 2's disk refuses those at `times`."""
    setup, told, kept = Setup(MESHES["(2,2)"]), [], []
    saves = Checkpoints(run, CheckpointConfig(keep=9), told.append)
    write = checkpoint.HuggingFaceStorageWriter.write_data

    def refuse(*given):
        if rank == 2 and setup.step in times:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*given)

    checkpoint.HuggingFaceStorageWriter.write_data = refuse
    error = None
    try:
        with saves:
            for _ in range(5):
                setup.train(1)
                save(saves, setup)
                saves._thread.join()
                kept.append(len(finished_checkpoints(run)))
    except DiskFullError as caught:
        error = str(caught)
    return kept, told, error


def test_a_disk_that_fills_on_one_rank_is_told_and_the_run_goes_on(tmp_path):
    for kept, told, error in values(processes(4, full_disk, tmp_path / "run", (2,))):
        assert (kept, error) == ([1, 1, 2, 3, 4], None)
        assert len(told) == 1
        assert "step-000002: the disk is full" in told[0]
        assert told[0].endswith("the newest checkpoint is " + str(tmp_path / "run/checkpoints/step-000001"))
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp*"))


@pytest.mark.parametrize("times", [(2, 3), (5,)])
def test_two_refused_saves_in_a_row_or_the_last_stop_the_run(tmp_path, times):
    for kept, told, error in values(processes(4, full_disk, tmp_path / "run", times)):
        assert kept == ([1, 1, 1] if len(times) == 2 else [1, 2, 3, 4, 4])
        assert f"step-00000{times[-1]}: the disk is full" in error
        assert len(told) == len(times)


def refused(rank, run, mesh):
    load_and_train(rank, run, mesh, torch.float64)


@pytest.mark.parametrize("damage", ["flipped", "missing", "torn"])
def test_a_damaged_shard_is_named_by_every_rank(saved, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(saved("(2,2)"), run)
    (shard,) = (run / "checkpoints" / "step-000003" / "optimizer").glob("shard-00003-*")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content if damage == "flipped" else content[:-5])
    if damage == "missing":
        shard.unlink()
    message = {"flipped": "corrupt", "missing": "missing", "torn": "truncated"}[damage]
    for _, error in processes(4, refused, run, MESHES["HSDP"]):
        assert error[0] == "InputError"
        assert error[1].startswith(f"{shard}: {message}")


def spoiled(rank, run):
    """One rank's shard of one weight is not finite."""
    setup = Setup(MESHES["(2,2)"])
    if rank == 3:
        next(setup.model.parameters()).to_local().data[0, 0] = torch.nan
    save(checkpoints(run), setup)


def test_weights_that_are_not_finite_on_one_rank_are_saved_by_none(tmp_path):
    for _, error in processes(4, spoiled, tmp_path / "run"):
        assert error[0] == "NotFinite"  # a RunError
        assert error[1].startswith("step 0: the weights are not finite (tensor 'model.embed_tokens.weight')")
        assert "not saved" in error[1]
    assert not finished_checkpoints(tmp_path / "run")


def test_a_lost_file_of_one_process_is_found_without_the_manifest_too(saved, tmp_path):
    """A manifest that fits, over files of which one rank's are gone: no gap is loaded silently."""
    run = tmp_path / "run"
    shutil.copytree(saved("(2,2)"), run)
    newest = finished_checkpoints(run)[-1]
    for file in newest.glob("*/shard-00002-*"):
        file.unlink()
    (newest / MANIFEST).unlink()
    write_manifest(newest, {})
    setup = Setup()
    with pytest.raises(InputError, match="do not fill it|does not hold this model's tensors"):
        load_checkpoint(newest, setup.model, setup.optimizer, Ranks())
    with pytest.raises(InputError, match="do not fill it|wants"):
        open_path(run)


def test_many_files_a_process_open_as_one(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 20_000)
    setup = Setup(dtype=torch.float32)
    with checkpoints(tmp_path) as saves:
        target = save(saves, setup)
    assert len(list((target / "model").iterdir())) > 5
    assert json.loads((target / "manifest.json").read_text())["step"] == 0
    list(verify(tmp_path))
    assert digest(open_path(tmp_path)[0]) == digest(setup.model)
    other = Setup(dtype=torch.float32, seed=5)
    load_checkpoint(target, other.model, other.optimizer, Ranks())
    assert digest(other.model) == digest(setup.model)
