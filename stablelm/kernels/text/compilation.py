"""How the loops over text, samples and ids are compiled, and when what Numba kept of an earlier compilation
still holds.

Numba keeps the machine code of a function beside its file and asks only whether that one file has changed.
Loops call each other across files, are inlined, and take constants from other files, so an edited file (a
pull, an upgrade) would go on running as it was wherever a caller in another file is kept. Here the stamp is
the content of all files of the function's folder.
Where no folder can be written to, neither the package's nor the user's, each process compiles for itself.
Costs 2 ms a process. Rejected: no cache (25 s a process), one file (over the limit of 400 lines), a note of
the callee's hash in each caller (a person must correct it)."""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


@cache
def sources(folder: Path) -> str:
    """Hash of every Python file of a folder."""
    total = sha256()
    for path in sorted(folder.glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def compiled(function: F) -> F:
    """`function` in machine code, made at its first call, kept on the disk, free of the interpreter's
    lock."""
    return _compiled(function, nogil=True)


def inlined(function: F) -> F:
    """`function` as a part of the compiled ones that call it: for a step of a few instructions."""
    return _compiled(function, inline="always")


def _compiled(function: F, **options: Any) -> F:
    return keeping(function, sources(Path(function.__code__.co_filename).parent), **options)


def keeping(function: F, stamp: str, **options: Any) -> F:
    """`function` by Numba with these options; what is kept of it holds while `stamp` is the same."""
    try:
        fast: Any = njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        uncached: F = njit(**options)(function)
        return uncached
    kept = fast._cache._cache_file
    assert hasattr(kept, "_source_stamp"), (
        "Numba's cache has changed: find where it compares the file's stamp"
    )
    kept._source_stamp = (stamp, kept._source_stamp)
    result: F = fast
    return result
