"""The rotation of the first part of each head (Su et al., 2021), in one pass over the projection's output.

Reads [B, S, H, D] as the projection leaves it, a token with all its heads for each program, and writes the
same layout. The rotated part need not be a power of two (10 pairs of 80 numbers are 16 lanes with a mask).
The gradient is the rotation by the opposite angle. Twin: `model.rotary`. Rejected: rotating in place, which
writes a quarter of the bytes but changes a tensor that other code may hold."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rotate_heads(
    x, cos, sin, out, length, heads, x_batch, x_head, x_token, angle_batch, sign,
    WIDTH: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One token: pairs (j, j + HALF) of every head turn by the token's angles, times `sign`; the rest is
    copied. HEADS, LANES and REST are the next powers of two of the heads, of HALF and of WIDTH − 2 HALF."""
    token = tl.program_id(0).to(tl.int64)
    batch, place = token // length, token % length
    head = tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    inside = (head < heads) & (lane < HALF)
    angle = batch * angle_batch + place * HALF + lane
    c = tl.load(cos + angle, mask=lane < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=lane < HALF, other=0.0).to(tl.float32) * sign
    source = x + batch * x_batch + place * x_token + head * x_head
    target = out + (token * heads + head) * WIDTH
    a = tl.load(source + lane, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + HALF + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + lane, (a * c - b * s).to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF + lane, (b * c + a * s).to(out.dtype.element_ty), mask=inside)
    if WIDTH > 2 * HALF:
        other = tl.arange(0, REST)[None, :]
        copied = (head < heads) & (other < WIDTH - 2 * HALF)
        tl.store(target + 2 * HALF + other, tl.load(source + 2 * HALF + other, mask=copied), mask=copied)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    batch, heads, length, width = x.shape
    half = cos.shape[-1]
    cos, sin = cos.reshape(-1, length, half).contiguous(), sin.reshape(-1, length, half).contiguous()
    out = x.new_empty(batch, length, heads, width)
    rotate_heads[(batch * length,)](
        x, cos, sin, out, length, heads, x.stride(0), x.stride(1), x.stride(2),
        length * half if cos.shape[0] > 1 else 0, sign,
        WIDTH=width, HALF=half, HEADS=triton.next_power_of_2(heads), LANES=triton.next_power_of_2(half),
        REST=triton.next_power_of_2(max(1, width - 2 * half)),
    )  # fmt: skip
    return out.transpose(1, 2)


@torch.library.custom_op("stablelm::rotate", mutates_args=())
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, S, D]; cos, sin [S, r/2] or [B, 1, S, r/2] → x with its first r dimensions turned."""
    return _turn(x, cos, sin, 1.0)


@torch.library.custom_op("stablelm::rotate_back", mutates_args=())
def _rotate_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _turn(x, cos, sin, -1.0)


@rotate.register_fake
@_rotate_back.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width).transpose(1, 2)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx, grad):
    return _rotate_back(grad, *ctx.saved_tensors), None, None


rotate.register_autograd(_backward, setup_context=_keep)
