"""Ranks as torchrun and srun tell them; what is missing is said within the time."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.training.parallel import finish, start
from stablelm.training.parallel.launch import Place, discover, first_node


def test_a_plain_process_is_alone():
    assert discover({}) == Place(0, 1, 0)
    assert discover({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == Place(0, 1, 0)  # a batch script, no srun
    assert start(torch.device("cpu"), 1) == (torch.device("cpu"), False)
    finish(False)
    assert not torch.distributed.is_initialized()


def test_torchrun():
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "77"}
    assert discover(given) == Place(5, 8, 1, "n1", 77)
    assert discover({**given, "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}).rank == 5  # inside srun


def test_srun():
    given = {
        "SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
        "SLURM_STEP_NODELIST": "gpu[003-004]",
    }  # fmt: skip
    assert discover(given) == Place(9, 16, 1, "gpu003", 20_000 + 123456 % 20_000)
    assert discover({**given, "MASTER_ADDR": "here", "MASTER_PORT": "9"}) == Place(9, 16, 1, "here", 9)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu[003-010,12],x", "gpu003"),
        ("a[1,3]b-c,x", "a1b-c"),
        ("x-y-2,z[1-2]", "x-y-2"),
        ("rack[1-2]n[01-04]", "rack1n01"),
    ],
)
def test_the_first_node(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "two", "WORLD_SIZE": "4"}, "RANK is 'two'; a whole number"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK 4 is not below WORLD_SIZE 4"),
    ],
)
def test_wrong_ranks(environment, message):
    with pytest.raises(InputError, match=message):
        discover(environment)


def first_of_two(monkeypatch, port):
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)


def test_a_port_in_use_is_told_at_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first_of_two(monkeypatch, port)
        told = rf"process 0 of 2: port {port} of 127.0.0.1, .* is in use by another program.*MASTER_PORT"
        with pytest.raises(RunError, match=told):
            start(torch.device("cpu"), 60)
    assert not torch.distributed.is_initialized()


def test_a_missing_process_is_told_within_the_time(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first_of_two(monkeypatch, port)
    began = time.monotonic()
    with pytest.raises(RunError, match=r"process 0 of 2: not all of them came to 127.0.0.1:\d+ within 1 s"):
        start(torch.device("cpu"), 1)
    assert time.monotonic() - began < 15
    assert not torch.distributed.is_initialized()


def test_importing_starts_nothing():
    code = "import stablelm.training.parallel, torch; print(torch.distributed.is_initialized())"
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == "False", found.stderr
