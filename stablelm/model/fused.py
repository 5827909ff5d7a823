"""What computes rotation, SwiGLU and the norm after a residual sum: one function that chooses and says why.

* `pytorch`: the modules as they read; on CUDA `torch.compile` fuses them.
* `triton`: our kernels (`kernels/gpu`), on CUDA.

`pytorch` is the default everywhere until the kernels were timed on a GPU beside `torch.compile`: the faster
one is to be it."""

import importlib.util
import os
from dataclasses import dataclass

import torch

from stablelm.config import InputError
from stablelm.config.schema import suggest
from stablelm.model.feedforward import Gated, swiglu
from stablelm.model.normalization import AddNorm
from stablelm.model.rotary import Turn, rotate

NAMES = ("pytorch", "triton")


@dataclass(frozen=True)
class Fused:
    """The three functions as they were chosen; no `add_norm` means a sum and then a LayerNorm."""

    name: str
    reason: str
    rotate: Turn = rotate
    swiglu: Gated = swiglu
    add_norm: AddNorm | None = None


PYTORCH = Fused("pytorch", "the default; torch.compile fuses them on CUDA")


def choose_fused(name: str | None, device: torch.device) -> Fused:
    """The kernels for a wish (None, "pytorch", "triton") on a device; `InputError` where they cannot run."""
    if name is not None and name not in NAMES:
        raise InputError(f"kernels: {name!r} does not exist{suggest(name, NAMES)}")
    if name != "triton":
        return PYTORCH
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch, for tests
    if device.type != "cuda" and not interpreted:
        raise InputError(f"kernels: triton needs a GPU, the model is on {device.type}; use kernels: pytorch.")
    if importlib.util.find_spec("triton") is None:
        raise InputError("kernels: triton is not installed. Run: pip install 'stablelm[gpu]'")
    from stablelm.kernels.gpu import norm, rotary
    from stablelm.kernels.gpu import swiglu as activation

    reason = "asked for; run by Triton's interpreter" if interpreted else "asked for"
    return Fused("triton", reason, rotary.rotate, activation.swiglu, norm.add_norm)
