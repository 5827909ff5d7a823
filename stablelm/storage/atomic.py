"""Nothing partly written ever looks complete.

A file or directory is written aside (`NAME.tmp-…`, same folder), flushed to the disk, then renamed into
place; whoever looks sees the old one, the new one or none. A crash leaves only a `.tmp-…` name, which no
reader opens; the next writer of the same directory removes it (after putting an old one back that was already
moved aside). Costs one fsync a file and one a directory."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stablelm.config.errors import InputError

TEMPORARY = ".tmp-"


class DiskFullError(OSError):
    """No space left while writing; says which path and what was kept."""


@contextlib.contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turns "no space left" (also a quota, also as other libraries' wrapped text) into one clear error."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left on device" not in str(error):
            raise
        shown = re.sub(rf"{re.escape(TEMPORARY)}\d+", "", str(path))
        raise DiskFullError(
            errno.ENOSPC,
            f"{shown}: the disk is full; nothing incomplete was kept under that name. Free some space and "
            "run again",
        ) from error


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file object whose content appears at `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    try:
        with explain_full_disk(path):
            with open(aside, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            fsync_directory(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically (UTF-8)."""
    with atomic_file(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file atomically: indented, keys in the given order, no NaN."""
    write_text(path, json_bytes(value).decode())


def json_bytes(value: Any) -> bytes:
    """The bytes of such a file."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; missing or broken is an `InputError` that names file and line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8.") from None


@contextlib.contextmanager
def atomic_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty directory to fill, which becomes `path` only when the block ends without an error.

    An existing non-empty `path` is refused unless `replace`, which keeps the old one until the new one is
    whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    remove_leftovers(path)
    if not replace:
        refuse_existing(path)
    try:
        with explain_full_disk(path):
            aside.mkdir()
            yield aside
            commit_directory(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def commit_directory(aside: Path, path: Path) -> None:
    """Flushes every file of `aside`, then renames it to `path`; an older `path` is removed after the
    rename."""
    for folder, _, names in os.walk(aside):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_directory(Path(folder))
    old = path.with_name(f"{path.name}{TEMPORARY}old-{os.getpid()}")
    if path.exists():
        os.rename(path, old)
    os.rename(aside, path)
    fsync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Refuses an output that is already there, unless it is an empty directory, and one that cannot be
    written."""
    if (path.exists() or path.is_symlink()) and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: already exists. Choose another name, or remove it first.")
    if path.name in ("", ".."):  # nothing can be renamed to it
        raise InputError(f"{path}: an empty directory, but one without a name of its own. Name a new one.")
    require_writable(path)


def require_writable(path: Path) -> None:
    """Refuses, before work starts, a `path` that could not be made."""
    above = next((folder for folder in path.parents if os.path.lexists(folder)), Path(".."))
    if not above.is_dir():
        raise InputError(f"{path}: {above} is a file, not a folder. Choose another path.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"{path}: {above} cannot be written to. Change its permissions, or choose another path."
        )


def remove_leftovers(path: Path) -> None:
    """Removes what a killed writer of the same name left aside; an old one that lost its name gets it
    back."""
    for old in sorted(path.parent.glob(f"{_glob_escape(path.name)}{TEMPORARY}old-*")):
        if not path.exists():
            os.rename(old, path)
    for leftover in path.parent.glob(f"{_glob_escape(path.name)}{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def fsync_directory(path: Path) -> None:
    """Makes a rename durable; a no-op where directories cannot be opened."""
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_space(path: str | Path, needed: int, what: str) -> None:
    """Refuses before work starts when the disk under `path` has fewer than `needed` free bytes."""
    folder = Path(path).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            errno.ENOSPC,
            f"{path}: {what} needs {needed:,} bytes, the disk has {free:,} free. Free some space first",
        )
