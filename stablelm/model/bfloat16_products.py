"""Products of bfloat16 matrices on a CPU that has no instructions for them.

There PyTorch multiplies bf16 matrices in loops of its own: x Wᵀ at a fifth of the rate of float32, and the
products of a backward pass, g W and gᵀ x, at a hundredth (notebook). Here W is made float32 a piece at a
time (`PIECE` numbers, 2 MB), multiplied in float32, and the result rounded once: what a bf16 product with
float32 sums means. Beside the pieces only activations exist as float32, while they are multiplied. Weights
that are kept in float32 are rounded to bf16 piece by piece, and their gradient is not rounded at all.

An operator of its own, so that recomputation can keep its result. Rejected: a float32 copy of the weights
(twice their memory), `torch.set_float32_matmul_precision` and the like (for processors that have bf16)."""

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stablelm.config import InputError

PIECE = 1 << 19
"""Numbers of a weight that are float32 at once."""
FEW = 8
"""With fewer rows PyTorch's x Wᵀ is as fast: it reads the weight once, as a piece must."""
VARIABLE = "STABLELM_WIDEN_BF16"


def _wanted() -> bool:
    """oneDNN's word for its bf16 products, which it also has for AVX-512 without bf16 (by widening, as here);
    it has none for AVX2. Without oneDNN PyTorch has none either."""
    wish = os.environ.get(VARIABLE)
    if wish not in (None, "", "0", "1"):
        raise InputError(f"{VARIABLE}={wish}: write 1 (products in float32), 0 (PyTorch's own) or unset it.")
    if wish:
        return wish == "1"
    try:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except AttributeError:  # a PyTorch without oneDNN has no such operator
        return True


WIDENED: bool = _wanted()
"""Whether bf16 products on the CPU are computed here; $STABLELM_WIDEN_BF16 (0 or 1) decides it otherwise."""


def widens(*factors: Tensor) -> bool:
    """Whether products of the first of `factors` with the others are computed here: it is bfloat16, all are
    plain tensors on a CPU without bf16 products, and nothing is being compiled."""
    return (
        WIDENED
        and factors[0].dtype == torch.bfloat16
        and all(type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" for x in factors)
        and not torch.compiler.is_compiling()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] → x Wᵀ + b [..., out], with W [out, in] and b [out] rounded to the dtype of x."""
    if widens(x, weight):
        learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if learns or math.prod(x.shape[:-1]) >= FEW:
            out: Tensor = _linear(x, weight, bias)
            return out
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def times(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Writes x [N, in] Wᵀ into out [N, out], all of one dtype; no gradient."""
    if not widens(x, weight) or len(x) < FEW:
        torch.mm(x, weight.T, out=out)
        return
    _times(x, weight, None, out)


def back(y: Tensor, weight: Tensor, out: Tensor) -> None:
    """Writes y [N, out] W into out [N, in], all of one dtype; no gradient."""
    if not widens(y, weight):
        torch.mm(y, weight, out=out)
        return
    total = torch.zeros(out.shape, device=out.device)
    for rows, piece in _pieces(weight):
        total.addmm_(y[:, rows].float(), piece)
    out.copy_(total)


def add_outer(y: Tensor, x: Tensor, total: Tensor) -> None:
    """Adds yᵀ x of y [N, out] and x [N, in] to total [out, in] in float32 or better; no gradient."""
    if widens(y, x):
        total.addmm_(y.float().T, x.float())
    else:
        total += y.T @ x


def _pieces(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of weight [out, in] and their bf16 values as float32, one piece in the place of the other."""
    step = max(16, PIECE // max(1, weight.shape[1]) // 16 * 16)
    buffer = torch.empty(min(step, len(weight)), weight.shape[1], device=weight.device)
    for first in range(0, len(weight), step):
        rows = slice(first, min(first + step, len(weight)))
        yield rows, buffer[: rows.stop - first].copy_(weight[rows].to(torch.bfloat16))


def _times(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x [N, in] Wᵀ + b into out [N, out]."""
    wide = x.float()
    for rows, piece in _pieces(weight):
        if bias is None:
            out[:, rows] = wide @ piece.T
        else:
            out[:, rows] = torch.addmm(bias[rows].to(x.dtype).float(), wide, piece.T)


@torch.library.custom_op("stablelm::widened_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) < FEW:
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    out = x.new_empty(len(rows), len(weight))
    _times(rows, weight, bias, out)
    return out.view(*x.shape[:-1], len(weight))


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, bias = inputs
    wants_x, wants_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
    ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.dtypes
    y = upstream.reshape(-1, upstream.shape[-1])  # [N, out]
    d_x = d_weight = d_bias = None
    if weight is not None:
        d_x = torch.empty(len(y), weight.shape[1], dtype=of_x, device=y.device)
        back(y, weight, d_x)
        d_x = d_x.view(*upstream.shape[:-1], weight.shape[1])
    if x is not None:
        wide = x.reshape(-1, x.shape[-1]).float()
        d_weight = torch.empty(y.shape[1], wide.shape[1], dtype=of_weight, device=y.device)
        step = max(16, PIECE // max(1, wide.shape[1]))
        for first in range(0, len(d_weight), step):
            rows = slice(first, first + step)
            d_weight[rows] = y[:, rows].float().T @ wide
    if ctx.needs_input_grad[2]:
        d_bias = y.sum(0, dtype=torch.float32).to(of_bias)
    return d_x, d_weight, d_bias


_linear.register_autograd(_backward, setup_context=_keep)


def widened_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """PyTorch's attention of q [B, H, S, D] and k, v [B, K, T, D] in float32, rounded once → [B, H, S, D]: as
    fast forward as in bf16, and four times as fast backward, although that repeats the forward pass, so that
    no more than q, k and v is kept."""
    out: Tensor = _Attention.apply(q, k, v, mask, causal)  # type: ignore[no-untyped-call]
    return out


def _exact_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.causal = causal
        return _exact_attention(q.float(), k.float(), v.float(), mask, causal).to(q.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *factors, mask = ctx.saved_tensors
        with torch.enable_grad():
            wide = [x.detach().float().requires_grad_() for x in factors]
            out = _exact_attention(wide[0], wide[1], wide[2], mask, ctx.causal)
        found = torch.autograd.grad(out, wide, upstream[0].float())
        return *(g.to(x.dtype) for g, x in zip(found, factors, strict=True)), None, None
