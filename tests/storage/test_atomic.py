"""Files and directories are whole or absent, whatever happens: errors, crashes, kill -9, a full disk."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stablelm.config import InputError
from stablelm.storage import (
    DiskFullError,
    atomic_directory,
    atomic_file,
    directory_lock,
    explain_full_disk,
    read_json,
    refuse_existing,
    require_space,
    write_json,
    write_text,
)


def run_child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_whole_content(tmp_path):
    path = tmp_path / "deep" / "er" / "a.bin"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["a.bin"]


def test_an_error_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="stop"), atomic_file(path, "w") as file:
        file.write("new")
        raise RuntimeError("stop")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = (
        "import sys; from stablelm.storage import write_text; write_text(sys.argv[1], '\\xe9\\u2192 \\u4e2d')"
    )
    path = tmp_path / "a.txt"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, path], check=True, env=environment)
    assert path.read_bytes().decode("utf-8") == "é→ 中"


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_crash_while_writing_leaves_no_file_and_keeps_the_old(tmp_path, end):
    code = f"""
        import os, sys
        from stablelm.storage import atomic_file
        with atomic_file(sys.argv[1]) as file:
            file.write(b"x" * 1_000_000); file.flush()
            {end}
    """
    fresh, old = tmp_path / "fresh.bin", tmp_path / "old.bin"
    old.write_bytes(b"old")
    for path in (fresh, old):
        assert run_child(code, path).wait(60) != 0
    assert not fresh.exists()
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_crash_while_filling_a_directory(tmp_path, end, replace):
    code = f"""
        import os, sys
        from stablelm.storage import atomic_directory
        with atomic_directory(sys.argv[1], replace={replace}) as folder:
            (folder / "part").write_bytes(b"x" * 100_000)
            {end}
    """
    path = tmp_path / "out[1]"
    if replace:
        path.mkdir()
        (path / "old").write_text("old")
    assert run_child(code, path).wait(60) != 0
    assert names(path) == ["old"] if replace else not path.exists()
    with atomic_directory(path, replace=replace) as folder:  # the next writer clears what was left aside
        (folder / "whole").write_text("new")
    assert names(tmp_path) == ["out[1]"]
    assert names(path) == ["whole"]


def test_kill_9_at_any_moment_shows_the_old_or_the_new(tmp_path):
    """A writer replaces a directory as fast as it can and is killed; a reader sees two files of the same
    round."""
    code = """
        import sys
        from stablelm.storage import atomic_directory
        print("ready", flush=True)
        for round in range(100_000):
            with atomic_directory(sys.argv[1], replace=True) as folder:
                (folder / "a").write_text(str(round)); (folder / "b").write_text(str(round))
    """
    path = tmp_path / "out"
    for delay in (0.05, 0.11, 0.23):
        child = run_child(code, path)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        try:
            child.wait(delay)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        child.wait(60)
        if path.exists():  # absent only between the two renames; then the old one is still aside
            assert (path / "a").read_text() == (path / "b").read_text()
        else:
            assert any(".tmp-" in name for name in names(tmp_path))


def test_an_existing_directory_is_refused_unless_empty(tmp_path):
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    (full / "precious").write_text("x")
    with pytest.raises(InputError, match="full: already exists"), atomic_directory(full):
        pytest.fail("the block must not run")
    with atomic_directory(empty) as folder:
        (folder / "new").write_text("x")
    assert names(empty) == ["new"]
    assert (full / "precious").read_text() == "x"


def test_a_file_or_a_dangling_link_in_the_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(InputError, match="already exists"), atomic_directory(tmp_path / name):
            pytest.fail("the block must not run")


def test_an_error_inside_keeps_the_old_directory(tmp_path):
    path = tmp_path / "out"
    with atomic_directory(path) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(KeyError), atomic_directory(path, replace=True) as folder:
        (folder / "a").write_text("new")
        raise KeyError("x")
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_leftovers_of_other_names_stay(tmp_path):
    """`out` must not clear what a writer of `output` or `out2` is writing."""
    for other in ("out2.tmp-5", "output.tmp-5", "xout.tmp-5"):
        (tmp_path / other).mkdir()
    with atomic_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out", "out2.tmp-5", "output.tmp-5", "xout.tmp-5"]


class FullDisk:
    """Stands in for `open`: writes beyond `room` bytes fail as on a full disk."""

    def __init__(self, room: int):
        self.room = room

    def __call__(self, path, mode="r", **keywords):
        file = io.open(path, mode, **keywords)  # noqa: SIM115, UP020 - builtins.open is replaced by this
        write = file.write

        class Limited:
            def __getattr__(_, name):
                return getattr(file, name)

            def __enter__(_):
                return _

            def __exit__(_, *error):
                file.close()

            def write(_, data):
                self.room -= len(data)
                if self.room < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(data)

        return Limited()


def test_a_full_disk_says_so_and_keeps_nothing_new(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr("builtins.open", FullDisk(room=10))
    with pytest.raises(
        DiskFullError, match=r"a\.json: the disk is full; nothing incomplete was kept"
    ) as caught:
        write_json(path, {"new": "x" * 100})
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert read_json(path) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_full_disk_inside_a_directory(tmp_path):
    with (
        pytest.raises(DiskFullError, match="out: the disk is full"),
        atomic_directory(tmp_path / "out") as folder,
    ):
        (folder / "part").write_text("x")
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),  # as safetensors says it
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("the disk"), False),
    ],
)
def test_only_a_full_disk_is_called_one(tmp_path, error, full):
    with pytest.raises(DiskFullError if full else type(error)) as caught, explain_full_disk(tmp_path / "x"):
        raise error
    assert isinstance(caught.value, DiskFullError) == full


def test_a_full_disk_is_explained_once(tmp_path):
    with pytest.raises(DiskFullError) as caught, explain_full_disk(tmp_path / "outer"):  # noqa: SIM117
        with explain_full_disk(tmp_path / "inner"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert "inner" in str(caught.value)
    assert "outer" not in str(caught.value)


def test_space_is_asked_for_before_the_work(tmp_path):
    require_space(tmp_path / "not" / "yet" / "there", 1, "a byte")
    with pytest.raises(
        DiskFullError, match=r"the checkpoint needs 1,000,000,000,000,000,000 bytes, the disk has"
    ):
        require_space(tmp_path / "not" / "there", 10**18, "the checkpoint")


def test_json_keeps_order_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"z": 1, "a": [1.5, None, "é"]})
    assert list(read_json(path)) == ["z", "a"]
    assert "é" in path.read_text("utf-8")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path)["z"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{\n1: 2}", "line 2: not valid JSON"),
        (b"", "line 1: not valid JSON"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    ],
)
def test_broken_json_names_file_and_line(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_json(path)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_permissions_are_the_usual_ones(tmp_path):
    """A file written aside and renamed must not be readable by its owner alone, as temporary files often
    are."""
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert json.dumps(names(tmp_path)) == '["ours", "plain"]'


def test_killed_between_the_two_renames_the_old_directory_comes_back(tmp_path):
    path = tmp_path / "out"
    with atomic_directory(path) as folder:
        (folder / "a").write_text("old")
    path.rename(tmp_path / "out.tmp-old-99999")  # as a kill between the renames of a replacement leaves it
    with pytest.raises(KeyError), atomic_directory(path, replace=True):
        raise KeyError("stop")
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["file/out", "file/deep/out"])
def test_an_output_below_a_file_is_refused_before_work(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=f"{name}: .*file is a file, not a folder"):
        refuse_existing(tmp_path / name)
    with pytest.raises(InputError, match=r"run: .*file is a file"), directory_lock(tmp_path / "file" / "run"):
        pytest.fail("the block must not run")
    with pytest.raises(InputError, match=r"file: is a file"), directory_lock(tmp_path / "file"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["file"]


def test_an_output_that_cannot_be_written_is_refused_before_work(tmp_path, monkeypatch):
    """`os.access` is replaced, since root may write everywhere."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(Path(path)) or False)
    with pytest.raises(InputError, match="cannot be written to"):
        refuse_existing(tmp_path / "new" / "out")
    assert asked == [tmp_path], "the nearest folder that is there"
    with pytest.raises(InputError, match="cannot be written to"), directory_lock(tmp_path / "run"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


def test_relative_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("out", "new/out"):
        refuse_existing(Path(name))
    for name in (".", "", "new/.."):
        with pytest.raises(InputError, match=r"Name a new one|already exists"):
            refuse_existing(Path(name))
    (tmp_path / "x").write_text("x")
    with pytest.raises(InputError, match=r"^\.: already exists"):
        refuse_existing(Path("."))


def test_a_full_disk_is_told_under_the_name_the_user_gave(tmp_path):
    with (
        pytest.raises(DiskFullError, match=r"/out/tokenizer\.json: the disk is full"),
        explain_full_disk(tmp_path / "out.tmp-4711" / "tokenizer.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
