"""One writer per directory: an advisory lock that dies with its process."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from stablelm.config.errors import InputError
from stablelm.storage.atomic import require_writable

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two runs in one directory are then not noticed
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def directory_lock(directory: str | Path, *, shared: bool = False) -> Iterator[None]:
    """Holds `directory/.lock` while the block runs; a second holder is refused with the first one's process
    id. `shared`: others who share it may hold it too."""
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file, not a folder. Choose another path.")
    require_writable(directory / ".lock" if directory.is_dir() else directory)
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError:
                owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                raise InputError(
                    f"{directory}: in use by {owner}. Wait for it to end, or choose another directory."
                ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
