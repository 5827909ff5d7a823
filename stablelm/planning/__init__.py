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
from stablelm.planning.flops import flops_per_token, utilization
from stablelm.planning.plan import Plan, make_plan

__all__ = [
    "DEVICES", "Device", "Peak", "Plan", "device_named", "flops_per_token", "hardware", "make_plan",
    "matmul_peak", "peak_of", "resolve_device", "utilization",
]  # fmt: skip
