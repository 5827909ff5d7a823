"""When a run is saved, on one process: beside the training, never silently lost, the permanent for ever."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.interchange import open_path
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import DiskFullError
from stablelm.training import checkpoint, saving, train
from stablelm.training.metrics import read_metrics
from stablelm.training.trainer import Trainer
from tests.training.conftest import Recorder


def names(config):
    return [int(path.name[5:]) for path in finished_checkpoints(Path(config.out))]


def test_permanent_ones_stay_beside_the_newest(make_config):
    config = make_config(checkpoint={"every": 3, "keep": 2, "permanent_every": 4})
    train(config, console=Recorder())  # 10 steps
    assert names(config) == [4, 8, 9, 10]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_steps_go_on_while_files_are_written_unless_told_not_to(make_config, monkeypatch, asynchronous):
    made, write, moved = [], saving.write_checkpoint, threading.Event()

    def slow(target, tensors, files, step, ranks):
        if step == 3:
            moved.wait(30 if asynchronous else 0.1)  # until step 5 is made
        made.append((step, len(console.records)))
        write(target, tensors, files, step, ranks)

    monkeypatch.setattr(saving, "write_checkpoint", slow)
    config = make_config(checkpoint={"every": 3, "keep": 9, "asynchronous": asynchronous})
    console = Recorder({5: moved.set})
    run = train(config, console=console)
    assert made[0] == ((3, 5) if asynchronous else (3, 3))
    assert [step for step, _ in made] == [3, 6, 9, 10]
    monkeypatch.undo()
    whole = train(make_config("whole", checkpoint={"every": 3, "keep": 9, "asynchronous": False}))
    for a, b in zip(finished_checkpoints(run), finished_checkpoints(whole), strict=True):
        weights, expected = (open_path(path)[0].state_dict() for path in (a, b))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        states = [json.loads((path / "state.json").read_text()) for path in (a, b)]
        assert all(states[0][key] == states[1][key] for key in ("step", "samples", "data_fingerprint"))
        assert len(states[0]["evaluations"]) == states[0]["step"] // 4 * 2 + 2 * (states[0]["step"] == 10)
        moments = [load_file(next((path / "optimizer").iterdir())) for path in (a, b)]
        assert all(torch.equal(value, moments[1][name]) for name, value in moments[0].items())


def test_the_next_save_waits_for_the_former(make_config, monkeypatch):
    at_work, most, write = [], [], saving.write_checkpoint

    def slow(*given):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.05)
        write(*given)
        at_work.pop()

    monkeypatch.setattr(saving, "write_checkpoint", slow)
    config = make_config(checkpoint={"every": 1, "keep": 20})
    train(config, console=Recorder())
    assert most == [1] * 10
    assert names(config) == list(range(1, 11))


def refusing(monkeypatch, steps, error=None):
    save = checkpoint.save

    def refuse(*given, **named):
        step = next(iter(steps_seen))
        if step in steps:
            raise error or OSError(errno.ENOSPC, "No space left on device")
        return save(*given, **named)

    steps_seen = []
    write = saving.write_checkpoint

    def noting(target, tensors, files, step, ranks):
        steps_seen[:] = [step]
        write(target, tensors, files, step, ranks)

    monkeypatch.setattr(checkpoint, "save", refuse)
    monkeypatch.setattr(saving, "write_checkpoint", noting)


def test_one_refused_save_is_told_and_the_run_goes_on(make_config, monkeypatch):
    refusing(monkeypatch, {6})
    config, console = make_config(), Recorder()
    train(config, console=console)
    (told,) = [text for text in console.messages if "could not be saved" in text]
    assert "step-000006: the disk is full" in told
    assert told.endswith("step-000003")
    assert names(config) == [9, 10]
    assert not list(Path(config.out, "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("steps", [{3, 6}, {10}])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_two_in_a_row_or_the_last_stop_it(make_config, monkeypatch, steps, asynchronous):
    refusing(monkeypatch, steps)
    config = make_config(checkpoint={"every": 3, "keep": 9, "asynchronous": asynchronous})
    with pytest.raises(DiskFullError, match=f"step-0000{max(steps):02}: the disk is full"):
        train(config, console=Recorder())
    assert names(config) == ([] if 3 in steps else [3, 6, 9])
    monkeypatch.undo()
    train(config, resume=True, console=Recorder())
    assert names(config)[-1] == 10


def test_anything_else_that_fails_is_raised_when_the_run_ends(make_config, monkeypatch):
    refusing(monkeypatch, {9}, RuntimeError("Connection closed by peer"))
    with pytest.raises(RunError, match=r"a process of this run is gone .*--resume"):
        train(make_config(), console=Recorder())
    assert names(make_config()) == [3, 6]


def test_a_run_that_fails_still_finishes_the_save_at_hand(make_config, monkeypatch):
    write = saving.write_checkpoint
    monkeypatch.setattr(saving, "write_checkpoint", lambda *given: (time.sleep(0.3), write(*given)))

    def crash():
        raise KeyError("crash")

    with pytest.raises(KeyError):
        train(make_config(), console=Recorder({4: crash}))
    assert names(make_config()) == [3]


def test_weights_that_are_not_finite_are_not_saved(make_config):
    trainer = Trainer(make_config(), Recorder())
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = torch.inf
    with pytest.raises(RunError, match=r"step 0: .* not finite \(tensor 'lm_head.weight'\); not saved"):
        trainer._save()
    assert names(make_config()) == []


def test_all_keys_that_differ_are_named(make_config):
    train(make_config(steps=3), console=Recorder())
    changed = make_config(steps=3, optimizer={"lr": 1e-3}, model={"intermediate_size": 96})
    with pytest.raises(InputError) as refused:
        train(changed, resume=True, console=Recorder())
    assert "model.intermediate_size = 64, this run says 96" in str(refused.value)
    assert "Also different: optimizer.lr" in str(refused.value)


def other_data(make_config):
    return make_config(data={"windows": {"tales": 4, "notes": 20}, "epochs": {"tales": 1, "notes": 4}})


def test_other_data_is_refused_unless_forced(make_config):
    def crash():
        raise KeyError("crash")

    with pytest.raises(KeyError):
        train(make_config(), console=Recorder({7: crash}))
    with pytest.raises(InputError, match=r"was trained with data\."):
        train(other_data(make_config), resume=True, console=Recorder())
    console = Recorder()
    forced = other_data(make_config)
    forced = forced.model_copy(update={"steps": 10})
    run = train(forced, resume=True, force_data=True, console=console)
    assert console.done == 6
    assert [record["step"] for record in read_metrics(run) if "kind" not in record][-1] == 10


def test_what_a_kill_left_is_cleared_and_nothing_else(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in ("step-000002", "step-000004.tmp-77"):
        (folder / name).mkdir(parents=True)
    for name in ("latest", "latest.tmp-77", "notes.txt"):
        (folder / name).write_text("step-000002\n")
    assert checkpoint.clear_leftovers(tmp_path) == ["step-000004.tmp-77"]
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "notes.txt", "step-000002"]
