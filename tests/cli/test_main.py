"""From errors to exit codes and messages; and what only a process shows: signals, pipes, locales."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import torch

from stablelm.cli import main as cli
from stablelm.config.errors import InputError, RunError
from stablelm.storage import DiskFullError

COMMAND = [sys.executable, "-m", "stablelm"]
Disk = namedtuple("Disk", "total used free")


def no_space(*given):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a.yml: wrong."), 2, "error: a.yml: wrong.\n"),
        (RunError("step 5: stopped."), 1, "error: step 5: stopped.\n"),
        (DiskFullError(errno.ENOSPC, "out: the disk is full"), 1, "error: out: the disk is full.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device.\n"),
        (OSError(errno.EIO, "Input/output error", "a.bin"), 1, "error: a.bin: Input/output error.\n"),
        (PermissionError(errno.EACCES, "Permission denied", "d/out.tmp-12/x"), 2,
         "error: d/out/x: Permission denied. Change its permissions, or choose another path.\n"),
        (OSError(errno.EROFS, "Read-only file system", "d"), 2,
         "error: d: Read-only file system. Choose another path.\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2,
         "error: x: No such file or directory. Correct the path.\n"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), 2,
         "error: x: Is a directory. Name a file.\n"),
        (MemoryError(), 1, "error: out of memory (). Lower batch.micro_sequences, or use a smaller model.\n"),
        (torch.OutOfMemoryError("5 GB"), 1, "error: out of memory (5 GB). Lower batch.micro_sequences"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes."), 1,
         "error: out of memory ([enforce fail] DefaultCPUAllocator"),
        (ZeroDivisionError("division"), 1, "error: ZeroDivisionError: division\nThis is a bug; --debug"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
    ids=repr,
)  # fmt: skip
def test_an_error_is_one_message_and_a_code(run, monkeypatch, error, code, message):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(cli, "application", lambda: fails)
    said = run("train", "x")
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith(message)
    if isinstance(error, Exception):
        for place in (("--debug", "train"), ("train", "--debug", "x")):
            with pytest.raises(type(error)):
                run(*place)
        assert run("train", "--", "--debug").code == code, "after -- it is not an option"


def test_a_wrong_option_is_no_traceback_even_with_debug(run):
    said = run("train", "--debug")
    assert said.code == 2
    assert said.err == "error: Missing argument 'config'. stablelm train --help shows what is wanted.\n"


@pytest.mark.parametrize(
    ("line", "needs"),
    [
        ("data prepare {w}/recipe.yml --set out=new", "new: preparing this recipe needs"),
        ("export {w}/run new", "new: the model needs"),
        (
            "init new --preset stablelm-3b-4e1t",
            "new: the model needs 11,181,772,800 bytes, the disk has 9 free",
        ),
    ],
)
def test_a_disk_too_small_is_told_before_work(world, run, inside, monkeypatch, line, needs):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(99, 90, 9))
    said = run(*line.replace("{w}", str(world.path)).split())
    assert (said.code, said.out) == (1, "")
    assert needs in said.err and said.err.endswith("Free some space first.\n")
    assert list(inside.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "data prepare {w}/recipe.yml --set out=new",
        "export {w}/run new",
        "tokenizer train new {w}/tales --vocab-size 300",
        "init new --preset stablelm-1m --set num_hidden_layers=1",
        "report {w}/run --out new/page.html",
    ],
)
def test_a_disk_that_fills_up_leaves_nothing_behind(world, run, inside, monkeypatch, line):
    monkeypatch.setattr(os, "fsync", no_space)
    said = run(*line.replace("{w}", str(world.path)).split())
    assert said.code == 1
    assert "the disk is full; nothing incomplete was kept" in said.err
    assert ".tmp-" not in said.err
    left = [path.name for path in inside.rglob("*") if path.is_file()]
    assert left in ([], [".lock"])  # of a work directory, which a preparation may go on in


def test_a_run_on_a_full_disk_keeps_the_checkpoint_it_has(world, run, tmp_path, monkeypatch):
    line = ("train", world / "run.yml", "--out", tmp_path / "run")
    usage = iter([Disk(1e12, 0, 1e12)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(usage, Disk(99, 90, 9)))
    said = run(*line)
    assert said.code == 1
    assert "a checkpoint needs" in said.err and "Free some space first." in said.err
    monkeypatch.undo()
    said = run(*line, "--resume")
    assert said.code == 0, said.err
    assert "step 6/6" in said.out


def start(*arguments, **options):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **pipes)


def test_streams_of_a_process(world, tmp_path):
    line = ("generate", world / "model", "-", "--max-new-tokens", 4, "--temperature", 0)
    said, told = start(*line).communicate(b"the river")
    assert said.count(b"\n") == 1
    assert told.startswith(b"4 tokens in ")
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", *COMMAND, *map(str, line)], capture_output=True, check=False
    )
    assert (closed.returncode, closed.stdout) == (0, b"")
    assert closed.stderr.startswith(b"4 tokens in ")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            child = start("inspect", world / "model", stdout=full)
            assert child.communicate()[1] == b"error: No space left on device.\n"
            assert child.returncode == 1


def test_any_locale_speaks_utf_8(world):
    other = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    line = ("--max-new-tokens", 1, "--quiet", "--echo")
    child = start("generate", world / "model", "é 😀", *line, env=other)
    said, told = child.communicate()
    assert (child.returncode, told) == (0, b"")
    assert said.startswith("é 😀".encode())
    child = start("inspect", b"no-such-\xff-\xc3\xa9".decode("utf-8", "surrogateescape"), env=other)
    assert child.communicate()[1] == b"error: no-such-\xff-\xc3\xa9: no such file or directory.\n"


def test_a_reader_that_goes_away_is_no_traceback(world):
    child = start("generate", world / "model", "the river", "--max-new-tokens", 120, "--top-p", 1)
    assert child.stdout.read(1)
    child.stdout.close()
    told = child.stderr.read()
    assert child.wait(60) in (0, 1)
    assert b"Traceback" not in told and b"Exception" not in told


def test_ctrl_c_ends_a_run_with_a_checkpoint(world, tmp_path):
    many = ("--set", "data.windows={}", "--set", "data.epochs.tales=500", "--set", "logging.every=1")
    line = ("train", world / "run.yml", "--out", tmp_path / "run", *many)
    child = start(*line)
    while b"step 5/" not in (shown := child.stdout.readline()):
        assert shown, child.stderr.read().decode()
    child.send_signal(signal.SIGINT)
    child.stdout.read()
    told = child.stderr.read().decode()
    assert child.wait(60) == 1
    assert told.startswith("error: stopped after step ") and told.endswith("; continue with --resume.\n")
    child = start(*line, "--resume")
    while b"resumed" not in (shown := child.stdout.readline()):
        assert shown, child.stderr.read().decode()
    child.send_signal(signal.SIGTERM)
    shown, told = child.communicate()
    assert b"Traceback" not in told


def test_ctrl_c_ends_a_text_and_any_start(world):
    child = start("generate", world / "model", "x", "--max-new-tokens", 126, "--top-p", 1)
    assert child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    child.stdout.read()
    told = child.stderr.read()
    assert (child.wait(60), told) == (130, b"stopped\n") or re.match(rb"\d+ tokens", told), told
    for delay in (0.2, 0.6):  # somewhere in the imports
        child = start("generate", world / "model", "x")
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate()
        assert b"cli/main.py" not in told, "no traceback through the command, whatever Python itself may say"
