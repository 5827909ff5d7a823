"""silu(gate) · up in one pass (Shazeer, 2020), and both gradients in another.

Two reads and one write a number; PyTorch's own takes four reads and two writes and keeps silu(gate) for the
backward pass, which here computes it again. Twin: `model.feedforward`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers for each program."""


@triton.jit
def swiglu_forward(gate, up, out, count, BLOCK: tl.constexpr):
    """out = gate · σ(gate) · up, for `count` numbers."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(grad, gate, up, d_gate, d_up, count, BLOCK: tl.constexpr):
    """d_up = grad · silu(gate); d_gate = grad · up · σ(gate) · (1 + gate · (1 − σ(gate)))."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    d = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(d_up + place, (d * g * s).to(d_up.dtype.element_ty), mask=inside)
    tl.store(d_gate + place, (d * u * s * (1.0 + g * (1.0 - s))).to(d_gate.dtype.element_ty), mask=inside)


@torch.library.custom_op("stablelm::swiglu", mutates_args=())
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up [..., m] → silu(gate) · up [..., m]."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    swiglu_forward[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, out, gate.numel(), BLOCK=BLOCK)
    return out


@torch.library.custom_op("stablelm::swiglu_backward", mutates_args=())
def _gradients(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    grid = (triton.cdiv(gate.numel(), BLOCK),)
    swiglu_backward[grid](grad, gate, up, d_gate, d_up, gate.numel(), BLOCK=BLOCK)
    return d_gate, d_up


@swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@_gradients.register_fake
def _(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    like = torch.contiguous_format
    return torch.empty_like(gate, memory_format=like), torch.empty_like(up, memory_format=like)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return _gradients(grad, *ctx.saved_tensors)


swiglu.register_autograd(_backward, setup_context=_keep)
