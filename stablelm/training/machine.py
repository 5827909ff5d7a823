"""What one process measures before a run: matrix products, all-reduce, disk, clock.

All processes measure at the same time, as they will train. A rate is the median of several, after one that
is not counted: the best would hide a processor that is throttled, the mean would show a hiccup. Groups of the
network are made for it and given back, so that nothing of them is left in the devices' memory."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from stablelm.model.bfloat16_products import linear
from stablelm.storage import explain_full_disk
from stablelm.training.agreement import Ranks

BLOCK = 64 << 20
"""Bytes that each process writes to the disk and reads back."""
SIZES = {"cpu": (512, 8 << 20), "cuda": (8192, 256 << 20)}
"""Kind of device → rows of the square matrices, bytes of an all-reduce."""
_SECONDS, _TIMES = 0.5, 5
_PIECE = 1 << 20
Groups = list[list[int]]
"""Ranks that talk with each other; a rank is in one of the lists, or in none."""


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products, the median of half a second of them."""
    size = SIZES[device.type][0]
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    began = time.perf_counter()
    return 2 * size**3 / _median(lambda: linear(a, b), device, lambda: time.perf_counter() - began < _SECONDS)


def groups_of(degrees: tuple[int, int, int]) -> dict[str, Groups]:
    """The groups in which a mesh (replicate, shard, tensor) talks, tensor innermost: all of it, and each
    dimension that is neither 1 nor all. With more than two ranks also two rounds of pairs."""
    ranks = torch.arange(degrees[0] * degrees[1] * degrees[2]).view(degrees)
    world = ranks.numel()
    if world == 1:
        return {}
    found = {"all": [ranks.flatten().tolist()]}
    for index, name in enumerate(("replicate", "shard", "tensor")):
        if 1 < degrees[index] < world:
            found[name] = ranks.movedim(index, -1).reshape(-1, degrees[index]).tolist()
    if world > 2:
        found |= {f"pairs {shift + 1}": pairs(world, shift) for shift in range(2)}
    return found


def pairs(world: int, shift: int) -> Groups:
    """Each rank of the first half with one of the second, which are other machines where there are several.

    A machine with a bad link is slow in both rounds (`shift` 0 and 1), its partners in one of them."""
    half = world // 2
    return [[rank, half + (rank + shift) % (world - half)] for rank in range(half)]


def all_reduce_rate(device: torch.device, groups: Groups) -> float | None:
    """Bus bandwidth in bytes/s of an all-reduce in this rank's group: 2 (n − 1) / n · bytes / time, which is
    what a ring sends through each link. None for a rank that is in none. Every process calls it."""
    group, _ = dist.new_subgroups_by_enumeration(groups)  # type: ignore[no-untyped-call]
    if group is None or dist.get_rank(group) < 0:
        return None
    block, n = torch.zeros(SIZES[device.type][1] // 4, device=device), dist.get_world_size(group)
    try:
        left = iter(range(_TIMES))  # every member makes equally many
        seconds = _median(lambda: dist.all_reduce(block, group=group), device, lambda: next(left, -1) >= 0)
    finally:
        dist.destroy_process_group(group)
    return 2 * (n - 1) / n * block.nbytes / seconds


def disk_rates(folder: Path, rank: int) -> tuple[float, float]:
    """Bytes/s written to a file in `folder`, flushed to the disk, and read back, past the page cache where
    the system lets go of it; nothing is left."""
    path, piece = folder / f"preflight-{rank}.tmp", os.urandom(_PIECE)
    try:
        with explain_full_disk(path), open(path, "wb") as file:
            began = time.perf_counter()
            for _ in range(BLOCK // _PIECE):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter() - began
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while file.read(_PIECE):
                pass
            return BLOCK / written, BLOCK / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


def clock(ranks: Ranks, rounds: int = 10) -> tuple[float, float]:
    """This process's time of day, in seconds, less that of the first, and how uncertain the difference is.

    All leave an all-reduce after the last has come to it, and none later than it was in it itself: whoever
    leaves at the same moment by this bound reads its clock. The best of some rounds counts."""
    best = (0.0, float("inf"))
    for _ in range(rounds):
        ranks.any(False)  # brings them together, so that the next is short
        began = time.perf_counter()
        ranks.any(False)
        read, held = time.time(), time.perf_counter() - began
        told = ranks.together(lambda read=read, held=held: (read, held))  # type: ignore[misc]
        uncertain = max(held, told[0][1])
        if uncertain < best[1]:
            best = (read - told[0][0], uncertain)
    return best


def _median(action: Callable[[], object], device: torch.device, more: Callable[[], bool]) -> float:
    """Seconds that `action` takes on the device, the median while there is `more`; one goes before."""
    times: list[float] = []
    with torch.no_grad():
        action()
        while more() or not times:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
    return statistics.median(times)
