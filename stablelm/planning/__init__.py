"""Before the work starts: steps, FLOPs, memory, devices."""

from stablelm.planning.devices import (
    DEVICES,
    Device,
    Peak,
    device_named,
    hardware,
    matmul_peak,
    peak_of,
    resolve_device,
)
from stablelm.planning.estimate import Estimate, estimate_run, make_estimate
from stablelm.planning.estimate_text import estimate_lines
from stablelm.planning.flops import flops_per_token, utilization
from stablelm.planning.layout import Layout, layout_of, make_layout
from stablelm.planning.memory import Memory, memory_of
from stablelm.planning.plan import Plan, make_plan
from stablelm.planning.traffic import Traffic, traffic_of

__all__ = [
    "DEVICES", "Device", "Estimate", "Layout", "Memory", "Peak", "Plan", "Traffic", "device_named",
    "estimate_lines", "estimate_run", "flops_per_token", "hardware", "layout_of", "make_estimate",
    "make_layout", "make_plan", "matmul_peak", "memory_of", "peak_of", "resolve_device", "traffic_of",
    "utilization",
]  # fmt: skip
