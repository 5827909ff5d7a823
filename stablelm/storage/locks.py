"""One writer per directory: an advisory lock that dies with its process.

The system's own lock (`flock`) goes when its holder goes, however it ended, so nothing is ever to be cleaned
up. Some cluster file systems are mounted without it; there the file itself is the lock: it names process and
host, and one whose process no longer lives on this host is taken over."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from stablelm.config.errors import InputError
from stablelm.storage.atomic import require_writable

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; the file's words must do
    fcntl = None  # type: ignore[assignment]

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_OWNER = re.compile(r"process (\d+) on (\S+)")


@contextlib.contextmanager
def directory_lock(directory: str | Path, *, shared: bool = False) -> Iterator[None]:
    """Holds `directory/.lock` while the block runs; a second holder is refused with the first one's process
    id. `shared`: others who share it may hold it too (where the system can lock)."""
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file, not a folder. Choose another path.")
    require_writable(directory / ".lock" if directory.is_dir() else directory)
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
        if not _lock(handle, shared):
            raise InputError(
                f"{directory}: in use by {owner or 'another process'}. Wait for it to end, or choose another "
                "directory."
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _lock(handle: int, shared: bool) -> bool:
    """Whether the lock is ours now."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _BUSY:
                return False
    found = _OWNER.match(os.pread(handle, 200, 0).decode(errors="replace"))
    return shared or found is None or not _lives(int(found[1]), found[2])


def _lives(process: int, host: str) -> bool:
    """Whether a lock's holder may still be at work; on another host nobody can tell."""
    if host != socket.gethostname():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return process != os.getpid()  # ours: of the same number in an earlier container of this name
