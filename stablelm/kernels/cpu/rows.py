"""What happens to the rows of a decoding step between two products: norm, SwiGLU, and rounding for the next.

A row is written as the next product takes it: as whole numbers −127…127 with a step a group for packed
weights, or as float32 for bfloat16 ones, the even columns of each 32 before the odd ones (so that the two
halves of a register of weights meet them without a shuffle). Widths are padded with zeros to the group.
All in float32. One row is too little for two threads (a parallel region costs as much as the work); several
are shared out."""

from typing import Any

import numpy as np
from numba import prange, types
from numba.core.cgutils import ir  # type: ignore[attr-defined]
from numba.extending import intrinsic

from stablelm.kernels.cpu.compilation import compiled
from stablelm.kernels.cpu.packing import SMALLEST
from stablelm.kernels.cpu.vectors import F32, FLOATS, I8, I32, I64, INTS, LANES, each, emitted

BLOCK = 32
"""Columns that stay together in every layout."""


@intrinsic
def _quantize(typing: Any, x: Any, count: Any, lanes: Any, half: Any, out: Any, steps: Any, less: Any) -> Any:
    """x [count, 16 · lanes] → whole int8, step float32 a group, −half · Σ whole int32 a group."""

    def write(e: Any, x: Any, count: Any, lanes: Any, half: Any, out: Any, steps: Any, less: Any) -> None:
        b, zero = e.b, ir.Constant(FLOATS, [0.0] * LANES)

        def group(state: list[Any]) -> list[Any]:
            x_at, out_at, step_at, less_at = state

            def measure(seen: list[Any]) -> list[Any]:
                at, big, wrong = seen
                values = e.load(FLOATS, at)
                wrong = b.fadd(wrong, b.fmul(values, zero))  # NaN if any value is not finite, to be seen later
                return [b.add(at, I64(4 * LANES)), e.largest(e.magnitude(values), big), wrong]

            _, big, wrong = e.loop(lanes, [x_at, zero, zero], measure)
            most = e.reduce("fmax", big)
            enough = b.fcmp_ordered(">", most, F32(SMALLEST))
            inverse = b.select(enough, b.fdiv(F32(127.0), most), F32(0.0))

            def level(seen: list[Any]) -> list[Any]:
                at, out_at, total = seen
                near = e.nearest(b.fmul(e.load(FLOATS, at), e.splat(inverse)))
                numbers = b.fptosi(near, INTS)
                e.store(b.trunc(numbers, ir.VectorType(I8, LANES)), out_at)
                return [b.add(at, I64(4 * LANES)), b.add(out_at, I64(LANES)), b.add(total, numbers)]

            x_next, out_next, total = e.loop(lanes, [x_at, out_at, each(0)], level)
            step = b.fadd(b.fdiv(most, F32(127.0)), e.reduce("fadd", wrong))
            e.store(step, step_at)
            e.store(b.mul(b.trunc(half, I32), e.reduce("add", total)), less_at)
            return [x_next, out_next, b.add(step_at, I64(4)), b.add(less_at, I64(4))]

        e.loop(count, [x, out, steps, less], group)

    return emitted(7, write)


@intrinsic
def _gate(typing: Any, gate: Any, up: Any, lanes: Any, out: Any) -> Any:
    """out = silu(gate) · up, 16 · lanes numbers."""

    def write(e: Any, gate: Any, up: Any, lanes: Any, out: Any) -> None:
        b = e.b

        def step(state: list[Any]) -> list[Any]:
            g, u = e.load(FLOATS, state[0]), e.load(FLOATS, state[1])
            below = b.fadd(ir.Constant(FLOATS, [1.0] * LANES), e.exp(b.fneg(g)))
            e.store(b.fdiv(b.fmul(g, u), below), state[2])
            return [b.add(at, I64(4 * LANES)) for at in state]

        e.loop(lanes, [gate, up, out], step)

    return emitted(4, write)


@compiled()
def ready(source: Any, row: int, width: int, bits: int, group: int, given: Any) -> None:
    """Row `row` of `source` [R, ≥ width] into `given`, for a product of `bits` and `group`.

    `given`: whole int8 [R, K], steps float32 [R, G], less int32 [R, G], wide float32 [R, K]."""
    whole, steps, less, wide = given
    if bits == 16:
        for start in range(0, width, BLOCK):
            for k in range(BLOCK // 2):
                wide[row, start + k] = source[row, start + 2 * k]
                wide[row, start + BLOCK // 2 + k] = source[row, start + 2 * k + 1]
    else:
        _quantize(
            source[row].ctypes.data, (width + group - 1) // group, group // LANES, -(1 << (bits - 1)),
            whole[row].ctypes.data, steps[row].ctypes.data, less[row].ctypes.data,
        )  # fmt: skip


@compiled()
def _normalize(row: int, x: Any, more: Any, also: Any, both: bool, weights: Any, eps: float, out: Any) -> None:
    width = weights.shape[1]
    total = np.float32(0)
    for k in range(width):
        value = x[row, k] + more[row, k]
        if both:
            value += also[row, k]
        x[row, k] = value
        total += value
    mean = total / np.float32(width)
    spread = np.float32(0)
    for k in range(width):
        spread += (x[row, k] - mean) * (x[row, k] - mean)
    scale = np.float32(1) / np.sqrt(spread / np.float32(width) + np.float32(eps))
    for k in range(width):
        out[row, k] = (x[row, k] - mean) * scale * weights[0, k] + weights[1, k]


@compiled(parallel=True)
def _normalize_all(
    rows: int, x: Any, more: Any, also: Any, both: bool, weights: Any, eps: float, out: Any, bits: int,
    group: int, given: Any,
) -> None:  # fmt: skip
    for row in prange(rows):
        _normalize(row, x, more, also, both, weights, eps, out)
        ready(out, row, weights.shape[1], bits, group, given)


@compiled()
def normalize(
    rows: int, x: Any, more: Any, also: Any, both: bool, weights: Any, eps: float, out: Any, bits: int,
    group: int, given: Any,
) -> None:  # fmt: skip
    """x += more (+ also, with `both`); out = LayerNorm(x); out made ready. All [R, h]; weights [2, h]: the
    norm's weight and bias."""
    if rows == 1:
        _normalize(0, x, more, also, both, weights, eps, out)
        ready(out, 0, weights.shape[1], bits, group, given)
    else:
        _normalize_all(rows, x, more, also, both, weights, eps, out, bits, group, given)


@compiled(parallel=True)
def _gate_all(rows: int, gate: Any, up: Any, width: int, bits: int, group: int, given: Any) -> None:
    for row in prange(rows):
        _gate(gate[row].ctypes.data, up[row].ctypes.data, (width + LANES - 1) // LANES, gate[row].ctypes.data)
        ready(gate, row, width, bits, group, given)


@compiled()
def swiglu(rows: int, gate: Any, up: Any, width: int, bits: int, group: int, given: Any) -> None:
    """gate = silu(gate) · up, [R, width], made ready."""
    if rows == 1:
        _gate(gate[0].ctypes.data, up[0].ctypes.data, (width + LANES - 1) // LANES, gate[0].ctypes.data)
        ready(gate, 0, width, bits, group, given)
    else:
        _gate_all(rows, gate, up, width, bits, group, given)
