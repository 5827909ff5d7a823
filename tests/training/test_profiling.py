"""`stablelm train --profile N`: a trace of N steps, and the same losses."""

import gzip
import json
from pathlib import Path

import pytest

from stablelm.training import train
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder


def losses(run):
    return [(r["loss"], r["grad_norm"]) for r in read_metrics(run) if "kind" not in r]


def steps_in(path):
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = sorted({e["name"] for e in events if e.get("name", "").startswith("ProfilerStep")})
    assert sum("mm" in e.get("name", "") for e in events) > 10 * len(steps)  # what ran in them is there
    return len(steps)


def test_a_trace_of_two_steps_changes_no_loss(make_config):
    console = Recorder()
    run = train(make_config(), console=console, profile=2)
    assert losses(run) == losses(train(make_config("plain"), console=Recorder()))
    (trace,) = (run / "profile").iterdir()
    assert trace.name == "steps-5-to-6.json.gz" and steps_in(trace) == 2
    assert [m for m in console.messages if str(trace) in m and "ui.perfetto.dev" in m]


def test_what_is_left_of_a_run_is_recorded(make_config):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop):
        train(make_config(), console=Recorder({7: stop}), profile=100)
    (trace,) = (Path(make_config().out) / "profile").iterdir()
    assert steps_in(trace) >= 1
    trace.unlink()
    console = Recorder()
    run = train(make_config(), resume=True, console=console, profile=100)  # steps 7 and 8 warm up
    (trace,) = (run / "profile").iterdir()
    assert trace.name == "steps-9-to-10.json.gz" and steps_in(trace) == 2


def test_a_profile_that_cannot_be_written_or_has_no_step_is_told(make_config):
    config = make_config()
    console = Recorder()
    run = Path(config.out)
    short = make_config("short", steps=2)
    train(short, console=console, profile=1)
    assert [m for m in console.messages if "no step is left to record" in m]
    console = Recorder({1: (run / "profile").touch})
    train(config, console=console, profile=1)
    assert [m for m in console.messages if "could not be written" in m]
    assert len(losses(train(config, resume=True, console=Recorder()))) == 10
