"""What a device can do: one table of those that are known by name, a measurement of those that are not.

The rates of the table are the makers' dense bf16 figures (never those "with sparsity", which are twice as
high); memory is what the driver lets PyTorch have, not what the name says. Both the planner and the trainer's
MFU read this table; a device that it does not know is measured, and the result says which of the two it is.
A slice of a GPU (MIG), a PCIe or NVL card of another clock, and a superchip are not the device of the row.
Rejected: a rate guessed from the name of a family (an H100 PCIe does 756 TFLOP/s, an H100 SXM 989)."""

import contextlib
import os
import platform
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError
from stablelm.model.bfloat16_products import linear

GIB = 2**30
HOPPER_USE = "42.3 % at 2.66B and 4,096 tokens, llm-foundry's table of 8 × H100, nothing recomputed"


@dataclass(frozen=True)
class Device:
    """One kind of device; rates in bytes or FLOP a second."""

    name: str
    """How the command line says it."""
    title: str
    """The maker's name."""
    bf16: float
    """Dense matrix products in bf16 with fp32 accumulation, FLOP/s."""
    memory: int
    """Bytes that PyTorch sees."""
    bandwidth: float
    """Its own memory, bytes/s."""
    link: float
    """To the other devices of its node, bytes/s in one direction."""
    per_node: int
    """Devices in the usual node."""
    utilization: float
    """Share of `bf16` that training is assumed to reach, recomputation counted as work."""
    utilization_source: str
    """Where that assumption comes from."""
    source: str
    """Where the other figures come from."""

    def lines(self) -> list[str]:
        """The device for a reader, a line each."""
        rate, memory = f"{self.bf16 / 1e12:,.4g} TFLOP/s in bf16", f"{self.memory / GIB:,.1f} GiB"
        return [f"{self.title}: {rate}, {memory} at {self.bandwidth / 1e9:,.0f} GB/s", f"  {self.source}"]


_AMPERE_USE = "the original run's 52.6 % on 256 × A100, 6,028 tokens/s each, all recomputed; rounded down"
_AS_HOPPER = f"as an H100: {HOPPER_USE}"
_ROWS = (
    Device("a100-40gb", "NVIDIA A100 SXM4 40GB", 312e12, int(39.39 * GIB), 1555e9, 300e9, 8, 0.50,
           _AMPERE_USE, "NVIDIA A100 datasheet: 312 TFLOP/s, 1,555 GB/s, NVLink 600 GB/s both ways"),
    Device("a100-80gb", "NVIDIA A100 SXM4 80GB", 312e12, int(79.15 * GIB), 2039e9, 300e9, 8, 0.50,
           _AMPERE_USE, "NVIDIA A100 datasheet: 312 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s both ways"),
    Device("h100", "NVIDIA H100 SXM5 80GB", 989.5e12, int(79.1 * GIB), 3350e9, 450e9, 8, 0.42,
           HOPPER_USE, "NVIDIA H100 datasheet: half of 1,979 TFLOP/s (sparse), 3.35 TB/s, NVLink 900 GB/s"),
    Device("h200", "NVIDIA H200 SXM 141GB", 989.5e12, int(139.7 * GIB), 4800e9, 450e9, 8, 0.42,
           _AS_HOPPER, "NVIDIA H200 datasheet: half of 1,979 TFLOP/s (sparse), 4.8 TB/s, NVLink 900 GB/s"),
    Device("b200", "NVIDIA B200 SXM 180GB", 2250e12, int(178.3 * GIB), 7700e9, 900e9, 8, 0.42,
           _AS_HOPPER, "NVIDIA HGX B200 datasheet: 8 do half of 36 PFLOP/s with sparsity, 7.7 TB/s each, "
           "NVLink 1.8 TB/s"),
    Device("mi300x", "AMD Instinct MI300X 192GB", 1307.4e12, int(191.9 * GIB), 5300e9, 448e9, 8, 0.42,
           _AS_HOPPER, "AMD MI300X datasheet: 1,307.4 TFLOP/s, 5.3 TB/s, 7 links of 128 GB/s both ways"),
)  # fmt: skip
DEVICES = {row.name: row for row in _ROWS}
"""Name → device. Sources: the makers' datasheets (see each row's `source`); the memory is the capacity that
PyTorch prints in its out-of-memory messages on that device, where several are printed the smallest."""


def device_named(name: str) -> Device:
    """The row of that name, or this machine's CPU, measured now (1 s); raises `InputError` with the names
    there are."""
    wanted = re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia").removeprefix("amd")
    for row in _ROWS:
        plain = row.name.replace("-", "")
        if wanted in (plain, plain.removesuffix("gb")):
            return row
    if wanted == "cpu":
        return measured_cpu()
    raise InputError(
        f"GPU {name!r} is not in the table of devices; known are {', '.join(DEVICES)} and cpu (this machine, "
        "measured). For another device take the nearest row and say what it reaches with --tokens-per-second."
    )


def known_device(name: str, memory: int) -> Device | None:
    """The row of a GPU that calls itself `name` and has `memory` bytes; None where no row is certain."""
    words = set(re.split(r"[^A-Za-z0-9]+", name.upper()))
    if "MIG" in words:
        return None
    for row in _ROWS:
        chip = row.name.split("-")[0].upper()
        other_clock = words & {"PCIE", "NVL"} and chip != "A100"  # an A100 has one rate on every board
        if chip in words and not other_clock and abs(memory - row.memory) < 0.04 * row.memory:
            return row
    return None


@lru_cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of the best of several large copies within a device's memory."""
    size = 64 * 2**20 if device.type == "cpu" else 2**30
    block = torch.zeros(size, dtype=torch.uint8, device=device)
    target, fastest = torch.empty_like(block), float("inf")
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(block)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * block.numel() / fastest


@lru_cache
def measured_cpu() -> Device:
    """This machine's CPU as PyTorch uses it now: matrix products (bf16 or fp32, whichever is faster), copies,
    and its memory."""
    copied = copy_rate(torch.device("cpu"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rate = max(matmul_peak("cpu", dtype) for dtype in (torch.bfloat16, torch.float32))
    return Device("cpu", _processor(), rate, memory, copied, copied, 1, 0.50,
                  "assumed: nothing is known of this machine",
                  f"measured on this machine just now, {torch.get_num_threads()} threads")  # fmt: skip


@dataclass(frozen=True)
class Peak:
    """What MFU is stated against."""

    rate: float
    """FLOP/s."""
    source: str
    """Table or measurement, for a reader."""


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The table's rate for bf16 on a GPU that the table knows, else what matrix products reach here."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        about = torch.cuda.get_device_properties(device)
        row = known_device(about.name, about.total_memory)
        if row is not None:
            return Peak(row.bf16, f"datasheet of the {row.title}")
    return Peak(matmul_peak(device.type, dtype), "measured in matrix products")


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
            linear(a, b)  # as the network multiplies, whatever the processor has for the dtype
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
