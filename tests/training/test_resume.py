"""Interrupted runs go on bit for bit, and what is damaged or different is refused by name."""

import json
import os
import shlex
import shutil
import signal
import subprocess

import pytest
import torch

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.interchange import open_path
from stablelm.interchange.native import finished_checkpoints as checkpoints
from stablelm.storage import DiskFullError
from stablelm.training import train
from stablelm.training.metrics import METRICS, read_metrics
from tests.training.conftest import Recorder


class Crash(Exception):
    pass


def crash():
    raise Crash


def results(run):
    kept = ("step", "kind", "source", "loss", "lr", "grad_norm", "tokens", "bits_per_byte")
    return [{key: record[key] for key in kept if key in record} for record in read_metrics(run)]


def weights(run):
    return open_path(run)[0].state_dict()


@pytest.fixture(scope="module")
def undisturbed():
    """What `whole` found, once."""
    return []


@pytest.fixture
def whole(make_config, undisturbed):
    if not undisturbed:
        run = train(make_config("whole"), console=Recorder())
        undisturbed.append((results(run), weights(run)))
    return undisturbed[0]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 9, 10])
def test_a_crash_at_any_step_changes_nothing(make_config, whole, step):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({step: crash}))
    console = Recorder()
    run = train(make_config(), resume=True, console=console)
    assert console.done == (step - 1) // 3 * 3  # the newest checkpoint before the crash
    assert results(run) == whole[0]
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), whole[1].values(), strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_asked_to_stop_saves_first(make_config, whole, number):
    with pytest.raises(
        RunError, match=r"stopped after step 5, saved as .*step-000005; continue with --resume"
    ):
        train(make_config(), console=Recorder({5: lambda: os.kill(os.getpid(), number)}))
    console = Recorder()
    assert results(train(make_config(), resume=True, console=console)) == whole[0]
    assert console.done == 5


def test_a_metrics_line_cut_by_a_kill_is_dropped(make_config, whole):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({8: crash}))
    run = checkpoints_of(make_config())
    with (run / METRICS).open("a") as file:
        file.write('{"step": 9, "lo')
    assert results(train(make_config(), resume=True, console=Recorder())) == whole[0]


def checkpoints_of(config):
    from pathlib import Path

    return Path(config.out)


def test_leftovers_of_a_killed_save_are_ignored_and_removed(make_config, whole):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({8: crash}))
    folder = checkpoints_of(make_config()) / "checkpoints"
    shutil.copytree(folder / "step-000006", folder / "step-000009.tmp-123")
    (folder / "step-000009.tmp-123" / "manifest.json").unlink()
    shutil.copytree(folder / "step-000006", folder / "step-000008")
    (folder / "step-000008" / "manifest.json").unlink()  # a directory that never got its commit mark
    console = Recorder()
    assert results(train(make_config(), resume=True, console=console)) == whole[0]
    assert console.done == 6
    assert any("step-000009.tmp-123" in message for message in console.messages)
    assert not (folder / "step-000009.tmp-123").exists()


@pytest.mark.parametrize("part", ["model", "optimizer", "state.json", "tokenizer.json"])
def test_one_flipped_byte_is_refused_by_name(make_config, part):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({8: crash}))
    newest = checkpoints(checkpoints_of(make_config()))[-1]
    path = next((newest / part).glob("*")) if (newest / part).is_dir() else newest / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"{path.name}.*sha256.*The checkpoint before it is step-000003; .* mv "
    ) as refused:
        train(make_config(), resume=True, console=Recorder())
    command = str(refused.value).split("from there: ")[1].split(", then")[0]
    subprocess.run(shlex.split(command), check=True)
    console = Recorder()
    train(make_config(), resume=True, console=console)
    assert console.done == 3


def test_a_truncated_checkpoint_is_refused_by_name(make_config):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({4: crash}))
    path = next((checkpoints(checkpoints_of(make_config()))[-1] / "optimizer").glob("*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{path.name}: truncated or changed"):
        train(make_config(), resume=True, console=Recorder())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"lr": 1e-3}}, r"optimizer.lr = 0.005, this run says 0.001"),
        ({"batch": {"sequences": 5}}, r"batch.sequences = 4, this run says 5"),
        ({"seed": 7}, r"seed = 1234, this run says 7"),
        ({"data": {"epochs": {"tales": 1, "notes": 1}}}, r"data.epochs.tales = 2"),
        ({"model": {"layer_norm_eps": 1e-6}}, r"model.layer_norm_eps = 1e-05"),
    ],
)
def test_another_configuration_is_refused_by_its_key(make_config, changes, message):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({4: crash}))
    with pytest.raises(InputError, match=message):
        train(make_config(**changes), resume=True, console=Recorder())


def test_what_does_not_change_the_steps_may_change(make_config, whole):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({4: crash}))
    changed = make_config(logging={"every": 1}, checkpoint={"every": 5, "keep": 1})
    run = train(changed, resume=True, console=Recorder())
    assert results(run) == whole[0]
    assert [path.name for path in checkpoints(run)] == ["step-000010"]


def test_other_data_is_refused(make_config, dataset_path, tmp_path):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({4: crash}))
    state = checkpoints(checkpoints_of(make_config()))[-1] / "state.json"
    content = json.loads(state.read_text())
    content["data_fingerprint"] = "0" * 64
    state.write_text(json.dumps(content))
    from stablelm.storage import MANIFEST, write_manifest

    (state.parent / MANIFEST).unlink()
    write_manifest(state.parent, {"format": "stablelm-checkpoint", "version": 1, "step": 3})
    with pytest.raises(InputError, match="another dataset or mixture"):
        train(make_config(), resume=True, console=Recorder())


def test_a_full_disk_says_so_and_keeps_the_last_checkpoint(make_config, whole, monkeypatch):
    def fill_disk():
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))

    with pytest.raises(DiskFullError, match="1,000 free"):
        train(make_config(), console=Recorder({5: fill_disk}))
    run = checkpoints_of(make_config())
    assert [path.name for path in checkpoints(run)] == ["step-000003"]
    monkeypatch.undo()
    assert results(train(make_config(), resume=True, console=Recorder())) == whole[0]
