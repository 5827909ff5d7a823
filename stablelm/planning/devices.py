"""What the device at hand can do, measured: the matrix-product rate that MFU is stated against."""

import contextlib
import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError


@lru_cache
def matmul_peak(device: str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Best rate of square matrix products on this device, in FLOP/s; takes about `seconds`.

    The best of several, not the mean: a peak is what the machine reaches when nothing disturbs it."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, began = 0.0, time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            a @ b
            if device != "cpu":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def resolve_device(name: str) -> torch.device:
    """`auto` → CUDA when there is one, else the CPU; any other name as PyTorch reads it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} does not exist; write auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: this machine has no usable CUDA GPU; use cpu or auto.")
    return device


def hardware(device: torch.device) -> dict[str, Any]:
    """What a measurement was made on: processor or GPU, threads, PyTorch, operating system."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
