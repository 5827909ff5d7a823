"""How the CPU kernels are compiled and kept: as the loops over text, by the content of this whole folder, and
by the instruction set that the emitter writes for. Costs about 2 s a kernel, once."""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numba
import torch

from stablelm.kernels.cpu.vectors import INSTRUCTIONS
from stablelm.kernels.text.compilation import keeping

F = TypeVar("F", bound=Callable[..., Any])

_FLOATS = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reordered; a NaN stays one."""


@cache
def sources() -> str:
    """Hash of every Python file of this folder, and the instruction set."""
    total = sha256(INSTRUCTIONS.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def compiled(parallel: bool = False, exact: bool = False) -> Callable[[F], F]:
    """A function in machine code, made at its first call and kept.

    Free to reorder float sums, differently wherever it is inlined, unless `exact`: then the same numbers give
    the same bits, whoever calls."""

    def make(function: F) -> F:
        fast = not exact and _FLOATS
        return keeping(function, sources(), nogil=True, parallel=parallel, fastmath=fast)

    return make


def is_kept(function: Any) -> bool:
    """Whether machine code of a compiled function is at hand, so that its first call need not wait for it."""
    if function.signatures:
        return True
    file = getattr(function._cache, "_cache_file", None)  # there is none where nothing can be kept
    return bool(file is not None and file._load_index())


def use_threads() -> None:
    """Parallel kernels of this thread take as many threads as PyTorch does."""
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(torch.get_num_threads(), most))
