"""One writer per directory, across processes; a dead writer's lock is gone with it."""

import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from stablelm.config import InputError
from stablelm.storage import directory_lock

HOLD = """
import sys
from stablelm.storage import directory_lock
with directory_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


def test_a_second_process_is_refused_and_told_who(tmp_path, holder):
    with (
        pytest.raises(InputError, match=f"run: in use by process {holder.pid} on "),
        directory_lock(tmp_path / "run"),
    ):
        pytest.fail("the block must not run")


def test_the_lock_ends_with_a_killed_holder(tmp_path, holder):
    holder.kill()
    holder.wait(60)
    with directory_lock(tmp_path / "run"):
        pass


def test_a_refused_one_does_not_break_the_lock(tmp_path, holder):
    """Being refused twice: the first refusal must neither release nor rename the holder."""
    for _ in range(2):
        with pytest.raises(InputError, match=f"process {holder.pid} "), directory_lock(tmp_path / "run"):
            pytest.fail("the block must not run")


def test_again_after_release_and_after_an_error(tmp_path):
    with pytest.raises(KeyError), directory_lock(tmp_path):
        raise KeyError("x")
    with directory_lock(tmp_path):
        pass
    with directory_lock(tmp_path / "a"), directory_lock(tmp_path / "b"):
        assert (tmp_path / "a" / ".lock").is_file()


@pytest.fixture
def no_flock(monkeypatch):
    def unsupported(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)


def test_without_the_systems_lock_the_file_is_the_lock(tmp_path, no_flock):
    (tmp_path / ".lock").write_text(f"process {os.getppid()} on {socket.gethostname()}\n")
    with pytest.raises(InputError, match=f"in use by process {os.getppid()} on"), directory_lock(tmp_path):
        pytest.fail("the block must not run")
    (tmp_path / ".lock").write_text("process 7 on elsewhere\n")
    with pytest.raises(InputError, match="in use by process 7 on elsewhere"), directory_lock(tmp_path):
        pytest.fail("the block must not run")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(60)
    (tmp_path / ".lock").write_text(f"process {dead.pid} on {socket.gethostname()}\n")
    for _ in range(2):
        with directory_lock(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on")
