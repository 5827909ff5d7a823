"""Damaged run directories, refused starts, a disk that fills, a reader that goes away."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from stablelm.config import InputError
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import MANIFEST, DiskFullError, write_manifest
from stablelm.training import checkpoint, train
from stablelm.training.agreement import Ranks
from stablelm.training.console import PlainConsole
from stablelm.training.metrics import METRICS, Metrics, read_metrics
from stablelm.training.report import run_page
from tests.training.conftest import Recorder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]\n", "line 1: not a record of a step"),
        (b'{"step": 1, "loss": 2}\n{"loss": 2}\n', "line 2: not a record"),
        (b'{"step": 1}\n{"st\n{"step": 2}\n', "line 2: not valid JSON"),
        (b"\xff\xfe\x00", "byte 0 is not UTF-8"),
    ],
)
def test_damaged_metrics_are_named(tmp_path, content, message):
    (tmp_path / METRICS).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_metrics(tmp_path)


@pytest.mark.parametrize("file", ["plan.json", "run.json", "accounting.json"])
def test_a_report_of_a_damaged_run_is_refused(make_config, file):
    run = train(make_config(), console=Recorder())
    (run / file).write_text("[]")
    with pytest.raises(InputError, match="a file of this run .* is damaged"):
        run_page(run)


def test_a_refused_start_leaves_nothing(make_config):
    config = make_config(steps=10_000)
    with pytest.raises(InputError, match="asks for"):
        train(config, console=Recorder())
    assert not Path(config.out).exists()


def test_a_disk_too_small_for_a_checkpoint_is_told_before_the_first_step(make_config, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    console = Recorder()
    with pytest.raises(DiskFullError, match="a checkpoint needs"):
        train(make_config(), console=console)
    assert console.records == []


def test_a_disk_that_fills_under_the_metrics_names_them(tmp_path):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    with Metrics(tmp_path, 0) as metrics:
        metrics.needed[0]._file.close()
        metrics.needed[0]._file = Full()
        with pytest.raises(DiskFullError, match=METRICS):
            metrics.write({"step": 1})


def test_ctrl_c_inside_the_writer_is_ctrl_c(tmp_path, monkeypatch):
    def interrupted(*given, **named):
        raise CheckpointException("save", {0: (KeyboardInterrupt(), None)})

    monkeypatch.setattr(checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint._write_tensors(tmp_path / "model", {}, Ranks())


def test_a_checkpoint_from_before_a_key_existed_resumes(make_config):
    run = train(make_config(steps=6), console=Recorder())
    newest = finished_checkpoints(run)[-1]
    state = json.loads((newest / "state.json").read_text())
    del state["config"]["model"]["num_key_value_heads"]
    (newest / "state.json").write_text(json.dumps(state))
    (newest / MANIFEST).unlink()
    write_manifest(newest, {"format": "stablelm-checkpoint", "version": 1, "step": 6})
    console = Recorder()
    train(make_config(steps=6), resume=True, console=console)
    assert any("all 6 steps are done already" in message for message in console.messages)


def test_a_reader_that_goes_away_does_not_end_the_run(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        os.close(reading)
        console = PlainConsole()
        console.message("x" * 100_000)  # more than a pipe holds
        assert console.message("and on") is None
        monkeypatch.undo()
