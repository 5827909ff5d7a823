"""x + δ and its LayerNorm (Ba et al., 2016) in one pass, and all gradients in another.

The sum is rounded to the network's precision before it is normalised, as it is when it is stored. Mean and
1/σ of each row are kept, 8 bytes a row. Gradients of weight and bias are added up in PARTS rows, each by one
program in a fixed order, and then by PyTorch: no atomics, so a step gives the same bits again. Twin:
`model.normalization`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = 1024
"""Programs of the backward pass."""


@triton.jit
def add_norm_forward(
    x, delta, weight, bias, total, out, mean, inverse, width, eps,
    BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: total = x + delta; out = (total − mean) · inverse · weight + bias."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < width
    a = tl.load(x + row * width + lane, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(delta + row * width + lane, mask=inside, other=0.0).to(tl.float32)
    rounded = (a + b).to(total.dtype.element_ty)
    tl.store(total + row * width + lane, rounded, mask=inside)
    t = rounded.to(tl.float32)
    centre = tl.sum(t, axis=0) / width
    t = tl.where(inside, t - centre, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(t * t, axis=0) / width + eps)
    y = t * scale * tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + lane, y.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + row, centre)
    tl.store(inverse + row, scale)


@triton.jit
def add_norm_backward(
    d_total, d_out, total, weight, mean, inverse, d_x, d_weight, d_bias, rows, width, parts,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows part, part + parts, …: d_x (the gradient of both summands), and this part's share of d_weight and
    d_bias [parts, width]."""
    part = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    inside = lane < width
    w = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
    sum_weight = tl.zeros([BLOCK], dtype=tl.float32)
    sum_bias = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(part, rows, parts):
        start = tl.cast(row, tl.int64) * width
        d = tl.load(d_out + start + lane, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(total + start + lane, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(inverse + row)
        hat = tl.where(inside, (t - tl.load(mean + row)) * scale, 0.0)
        sum_weight += d * hat
        sum_bias += d
        g = d * w
        along, level = tl.sum(g * hat, axis=0) / width, tl.sum(g, axis=0) / width
        through = tl.load(d_total + start + lane, mask=inside, other=0.0).to(tl.float32)
        result = through + (g - level - hat * along) * scale
        tl.store(d_x + start + lane, result.to(d_x.dtype.element_ty), mask=inside)
    place = part.to(tl.int64) * width + lane
    tl.store(d_weight + place, sum_weight, mask=inside)
    tl.store(d_bias + place, sum_bias, mask=inside)


def _warps(width: int) -> int:
    return 8 if width > 2048 else 4


@torch.library.custom_op("stablelm::add_norm", mutates_args=())
def _add_norm(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, delta = x.contiguous(), delta.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    total, out = torch.empty_like(x), torch.empty_like(x)
    mean, inverse = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    add_norm_forward[(rows,)](
        x, delta, weight, weight if bias is None else bias, total, out, mean, inverse, width, eps,
        BIAS=bias is not None, BLOCK=triton.next_power_of_2(width), num_warps=_warps(width),
    )  # fmt: skip
    return total, out, mean, inverse


@torch.library.custom_op("stablelm::add_norm_backward", mutates_args=())
def _gradients(
    d_total: Tensor, d_out: Tensor, total: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_total, d_out = d_total.contiguous(), d_out.contiguous()
    width, rows = total.shape[-1], len(mean)
    parts = min(rows, PARTS)
    d_x = torch.empty_like(total)
    sums = torch.empty(2, parts, width, dtype=torch.float32, device=total.device)
    add_norm_backward[(parts,)](
        d_total, d_out, total, weight, mean, inverse, d_x, sums[0], sums[1], rows, width, parts,
        BLOCK=triton.next_power_of_2(width), num_warps=_warps(width),
    )  # fmt: skip
    d_weight, d_bias = sums.sum(1).to(weight.dtype)
    return d_x, d_weight.clone(), d_bias.clone()


@_add_norm.register_fake
def _(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    like = torch.empty_like(x, memory_format=torch.contiguous_format)
    level = torch.empty(rows, dtype=torch.float32, device=x.device)
    return like, torch.empty_like(like), level, torch.empty_like(level)


@_gradients.register_fake
def _(
    d_total: Tensor, d_out: Tensor, total: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(total), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx, inputs, output) -> None:
    total, _, mean, inverse = output
    ctx.mark_non_differentiable(mean, inverse)
    ctx.save_for_backward(total, inputs[2], mean, inverse)
    ctx.bias = inputs[3] is not None


def _backward(ctx, d_total, d_out, _, __):
    d_x, d_weight, d_bias = _gradients(d_total, d_out, *ctx.saved_tensors)
    return d_x, d_x, d_weight, d_bias if ctx.bias else None, None


_add_norm.register_autograd(_backward, setup_context=_keep)


def add_norm(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x, delta [..., h]; weight, bias [h], in any precision → x + delta and its LayerNorm, both as x."""
    total, out, _, _ = _add_norm(x, delta, weight, bias, eps)
    return total, out
