"""Before the work starts: steps, FLOPs, memory, devices."""

from stablelm.planning.devices import hardware, matmul_peak, resolve_device
from stablelm.planning.flops import flops_per_token
from stablelm.planning.plan import Plan, make_plan

__all__ = ["Plan", "flops_per_token", "hardware", "make_plan", "matmul_peak", "resolve_device"]
