"""Machines that go and come under `torchrun --nnodes 1:2`: two agents on this machine stand for them."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import yaml

from stablelm.interchange.native import finished_checkpoints, step_of
from stablelm.training import train
from tests.end_to_end.test_elastic import results, wait_for, workers_of
from tests.training.conftest import Recorder, dataset_path, make_config  # noqa: F401 (fixtures)

QUICK = "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=5,join_timeout=120"
"""Seconds that a machine waits for others, and after which one that is silent is gone."""


def agent(config, out, port, host):
    """One machine's torchrun, with one worker; that of `host` keeps the store."""
    command = [
        "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "machines", "--local-addr", "127.0.0.1",
        "--rdzv-conf", f"{QUICK},is_host={int(host)}", "--max-restarts", "3",
    ]  # fmt: skip
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(
        [sys.executable, *command, "-m", "stablelm", "train", str(config), "--out", str(out)],
        stdout=log, stderr=log, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )  # fmt: skip


def processes_of(run):
    """How many processes wrote the newest checkpoint."""
    newest = finished_checkpoints(run)
    return json.loads((newest[-1] / "about.json").read_text())["hardware"]["processes"] if newest else 0


class Enough(Exception):
    pass


def enough():
    raise Enough


def test_a_machine_goes_and_another_comes(make_config, tmp_path):  # noqa: F811
    """Far more steps than are made: when the second machine has come, all is stopped and compared."""
    changes = {
        "data": {"epochs": {"tales": 1200, "notes": 600}}, "batch": {"micro_sequences": 1},
        "checkpoint": {"every": 3, "keep": 3},
        "evaluation": {"every": 10_000, "windows": 4, "copying": 0, "cloze": 0},
    }  # fmt: skip
    config = tmp_path / "run.yml"
    config.write_text(yaml.safe_dump(make_config(**changes).model_dump(mode="json")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "run"
    agents = [agent(config, out, port, host) for host in (True, False)]
    try:
        wait_for(agents[0], out, lambda: processes_of(out) == 2, "steps of two machines")
        gone = [agents[1].pid, *workers_of(agents[1])]  # a worker is in a session of its own
        assert len(gone) == 2
        for pid in gone:
            os.kill(pid, signal.SIGKILL)
        agents[1].wait()
        wait_for(agents[0], out, lambda: processes_of(out) == 1, "steps of the one that is left")
        agents.append(agent(config, out, port, False))
        wait_for(agents[0], out, lambda: processes_of(out) == 2, "steps of two machines again")
    finally:
        for each in agents:
            for pid in [each.pid, *workers_of(each)] if each.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            each.wait()
    assert (tmp_path / "run.log").read_text().count("resumed ") == 2
    last = step_of(finished_checkpoints(out)[-1])
    with pytest.raises(Enough):
        train(make_config("whole", **changes), console=Recorder({last + 1: enough}))
    found, expected = ([r for r in results(each) if r[0] <= last] for each in (out, tmp_path / "whole"))
    assert len(found) == last
    assert [(r[0], *r[1:3], r[5], *r[7:]) for r in found] == [(r[0], *r[1:3], r[5], *r[7:]) for r in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert all(abs(a - b) <= 1e-4 for a, b in zip(mine[3:5], theirs[3:5], strict=True))
