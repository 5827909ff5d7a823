"""`kill -9` of one of four workers under torchrun, again and again: it starts them anew, and the run is the
undisturbed one; then two workers finish it."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from stablelm.interchange.native import finished_checkpoints
from stablelm.training.metrics import read_metrics
from tests.training.conftest import dataset_path, make_config  # noqa: F401 (fixtures)

KILLS = 10
STEPS = 300


def start(config, out, workers, *more):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), *more]
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(
        [sys.executable, *command, "-m", "stablelm", "train", str(config), "--out", str(out)],
        stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def parent_of(pid):
    """Its parent, or None when it is gone or only waits to be buried."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[1])


def workers_of(agent):
    numbers = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]
    return [pid for pid in numbers if parent_of(pid) == agent.pid]


def end(agent):
    """Kills the agent and its workers, and comes back when none of them can write any more."""
    left = [agent.pid, *workers_of(agent)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):  # ended meanwhile
            os.kill(pid, signal.SIGKILL)
    agent.wait()
    while any(parent_of(pid) is not None for pid in left):
        time.sleep(0.01)


def results(run):
    keys = (
        "step",
        "kind",
        "source",
        "loss",
        "grad_norm",
        "lr",
        "bits_per_byte",
        "first_sample",
        "last_sample",
    )
    return [tuple(record.get(key) for key in keys) for record in read_metrics(run)]


def lines(run):
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(agent, out, condition, what):
    until = time.monotonic() + 240
    while not condition():
        said = (out.parent / f"{out.name}.log").read_text()[-3000:]
        assert agent.poll() is None, f"ended by itself before {what}: {said}"
        assert time.monotonic() < until, f"no {what}: {said}"
        time.sleep(0.002)


@pytest.fixture
def config(make_config, tmp_path):  # noqa: F811
    made = make_config(
        data={"epochs": {"tales": 60, "notes": 30}},
        batch={"micro_sequences": 1},
        checkpoint={"every": 3, "keep": 3},
        evaluation={"every": 50, "windows": 4, "copying": 0, "cloze": 0},
    )
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    return path


def test_workers_killed_again_and_again(config, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert start(config, whole, 4).wait(timeout=600) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    expected = results(whole)
    assert len([r for r in expected if r[1] is None]) == STEPS
    moment = random.Random(0)
    agent = start(config, out, 4, "--max-restarts", str(KILLS + 2))
    try:
        for kill in range(KILLS):
            begun = lines(out)
            more = moment.randint(2, 12)
            # A restart drops the lines after its checkpoint first.
            wait_for(agent, out, lambda a=begun, b=more: lines(out) >= a + b, f"steps before kill {kill}")
            if kill % 2:
                saving = out / "checkpoints"
                wait_for(agent, out, lambda s=saving: any(s.glob("step-*.tmp*")), f"save {kill}")
                time.sleep(moment.random() * 0.01)
            else:
                time.sleep(moment.random() * 0.1)
            pids = workers_of(agent)
            assert len(pids) == 4
            os.kill(moment.choice(pids), signal.SIGKILL)
            wait_for(agent, out, lambda p=pids: not set(p) & set(workers_of(agent)), "end of the others")
        begun = lines(out)
        wait_for(agent, out, lambda: lines(out) >= begun + 4, "steps after the last kill")
    finally:
        end(agent)
    log = (tmp_path / "killed.log").read_text()
    assert log.count("resumed ") >= KILLS - 1 and "Traceback" not in log.split("resumed")[0]
    done = len([r for r in results(out) if r[1] is None])
    assert done < STEPS, "nothing is left for two workers"
    # A save is written beside the next steps: on a slow disk up to six lie after the newest that is whole.
    saved = int(finished_checkpoints(out)[-1].name.removeprefix("step-"))
    assert done - saved <= 6
    last = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
         "stablelm", "train", str(config), "--out", str(out), "--resume"],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert last.returncode == 0, last.stdout + last.stderr
    found = results(out)
    assert [(r[0], *r[1:3], r[5], *r[7:]) for r in found] == [(r[0], *r[1:3], r[5], *r[7:]) for r in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine[3:5], theirs[3:5], strict=True):
            assert a == b if a is None or b is None else abs(a - b) <= 1e-4
    before = [pair for pair in zip(found, expected, strict=True) if pair[0][0] <= saved]
    assert all(a == b for a, b in before), "four workers, killed or not, give the same bits"
    state = json.loads((out / "checkpoints" / f"step-{STEPS:06}" / "state.json").read_text())
    assert state["step"] == STEPS and not list((out / "checkpoints").glob("*.tmp*"))
