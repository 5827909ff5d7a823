"""How the loops over text are compiled, and when what Numba kept of an earlier compilation still holds.

Numba keeps the machine code of a function beside its file and asks only whether that one file has changed.
The loops call each other across files and are inlined, so an edited file (a pull, an upgrade) would go on
running as it was wherever a caller in another file is kept. Here the stamp is the content of all files of
this folder.
Costs 2 ms a process. Rejected: no cache (25 s a process), one file (over the limit of 400 lines)."""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


@cache
def sources() -> str:
    """Hash of every Python file of this folder."""
    total = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def compiled(function: F) -> F:
    """`function` in machine code, made at its first call, kept on the disk, free of the interpreter's
    lock."""
    fast: Any = njit(cache=True, nogil=True)(function)
    kept = fast._cache._cache_file
    assert hasattr(kept, "_source_stamp"), (
        "Numba's cache has changed: find where it compares the file's stamp"
    )
    kept._source_stamp = (sources(), kept._source_stamp)
    result: F = fast
    return result
