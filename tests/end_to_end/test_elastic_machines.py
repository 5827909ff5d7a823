"""Machines that go and come under `torchrun --nnodes 1:2`: two agents on this machine stand for them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from stablelm.interchange.native import finished_checkpoints
from stablelm.training import train
from tests.end_to_end.test_elastic import config, results, wait_for, workers_of  # noqa: F401 (fixture)
from tests.training.conftest import Recorder, dataset_path, make_config  # noqa: F401 (fixtures)

QUICK = "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=5,join_timeout=120"
"""Seconds that a machine waits for others, and after which one that is silent is gone."""


def agent(config, out, port, host):  # noqa: F811
    """One machine's torchrun, with one worker; that of `host` keeps the store."""
    command = [
        "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "machines", "--local-addr", "127.0.0.1",
        "--rdzv-conf", f"{QUICK},is_host={int(host)}", "--max-restarts", "3",
    ]  # fmt: skip
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(
        [sys.executable, *command, "-m", "stablelm", "train", str(config), "--out", str(out)],
        stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def processes_of(run):
    """How many processes wrote the newest checkpoint."""
    newest = finished_checkpoints(run)
    return json.loads((newest[-1] / "about.json").read_text())["hardware"]["processes"] if newest else 0


def test_a_machine_goes_and_another_comes(config, make_config, tmp_path):  # noqa: F811
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
        assert agents[0].wait(timeout=240) == 0, (tmp_path / "run.log").read_text()[-3000:]
    finally:
        for each in agents:
            for pid in [each.pid, *workers_of(each)] if each.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            each.wait()
    assert (tmp_path / "run.log").read_text().count("resumed ") == 2
    given = json.loads((out / "run.json").read_text())
    same = {key: given[key] for key in ("data", "batch", "evaluation", "checkpoint")}
    whole = train(make_config("whole", **same), console=Recorder())
    found, expected = results(out), results(Path(whole))
    assert [(r[0], *r[1:3], r[5], *r[7:]) for r in found] == [(r[0], *r[1:3], r[5], *r[7:]) for r in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine[3:5], theirs[3:5], strict=True):
            assert a == b if a is None or b is None else abs(a - b) <= 1e-4
