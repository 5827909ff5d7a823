"""What happens to the rows of a decoding step between two products: norm, SwiGLU, and rounding for the next.

A row is written as the next product takes it: as whole numbers −127…127 with a step a group for packed
weights, or as float32 for bfloat16 ones, the even columns of each 32 before the odd ones (so that the two
halves of a register of weights meet them without a shuffle). Widths are padded with zeros to the group.
All in float32. One row is too little for two threads (a parallel region costs as much as the work); several
are shared out."""

from typing import Any

import numpy as np
from numba import prange
from numba.core.cgutils import ir  # type: ignore[attr-defined]

from stablelm.kernels.cpu.compilation import compiled
from stablelm.kernels.cpu.packing import SMALLEST
from stablelm.kernels.cpu.vectors import F32, FLOATS, I8, I32, I64, INTS, LANES, each, emitted, instructions

BLOCK = 32
"""Columns that stay together in every layout."""


@instructions
def _quantize(typing: Any, x: Any, count: Any, lanes: Any, half: Any, out: Any, steps: Any, less: Any) -> Any:
    """x [count, 16 · lanes] → whole int8, step float32 a group, −half · Σ whole int32 a group."""

    def write(e: Any, x: Any, count: Any, lanes: Any, half: Any, out: Any, steps: Any, less: Any) -> None:
        b, zero = e.b, ir.Constant(FLOATS, [0.0] * LANES)

        def group(state: list[Any]) -> list[Any]:
            x_at, out_at, step_at, less_at = state

            def measure(seen: list[Any]) -> list[Any]:
                at, big, wrong = seen
                values = e.load(FLOATS, at)
                wrong = b.fadd(wrong, b.fmul(values, zero))  # NaN if a value is not finite, to be seen later
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


@instructions
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


@compiled(exact=True)
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


@instructions
def _norm(
    typing: Any,
    x: Any,
    more: Any,
    also: Any,
    both: Any,
    lanes: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    out: Any,
) -> Any:
    """x += more (+ also); out = LayerNorm(x), 16 · lanes numbers; all sums in one order, whoever calls."""

    def write(
        e: Any,
        x: Any,
        more: Any,
        also: Any,
        both: Any,
        lanes: Any,
        weight: Any,
        bias: Any,
        eps: Any,
        out: Any,
    ) -> None:
        b, zero = e.b, ir.Constant(FLOATS, [0.0] * LANES)
        wanted, wide = b.icmp_signed("!=", both, I64(0)), I64(4 * LANES)
        width = b.sitofp(b.mul(lanes, I64(LANES)), F32)

        def add(state: list[Any]) -> list[Any]:
            at, more_at, also_at, total = state
            third = b.select(wanted, e.load(FLOATS, also_at), zero)
            value = b.fadd(b.fadd(e.load(FLOATS, at), e.load(FLOATS, more_at)), third)
            e.store(value, at)
            return [*(b.add(place, wide) for place in (at, more_at, also_at)), b.fadd(total, value)]

        *_, total = e.loop(lanes, [x, more, also, zero], add)
        mean = e.splat(b.fdiv(e.reduce("fadd", total), width))

        def spread(state: list[Any]) -> list[Any]:
            off = b.fsub(e.load(FLOATS, state[0]), mean)
            return [b.add(state[0], wide), e.fma(state[1], off, off)]

        *_, total = e.loop(lanes, [x, zero], spread)
        variance = b.fadd(b.fdiv(e.reduce("fadd", total), width), e.load(F32, eps))
        root = b.module.declare_intrinsic("llvm.sqrt.f32", fnty=ir.FunctionType(F32, [F32]))
        scale = e.splat(b.fdiv(F32(1.0), b.call(root, [variance])))

        def finish(state: list[Any]) -> list[Any]:
            at, weight_at, bias_at, out_at = state
            normal = b.fmul(b.fsub(e.load(FLOATS, at), mean), scale)
            e.store(e.fma(e.load(FLOATS, bias_at), normal, e.load(FLOATS, weight_at)), out_at)
            return [b.add(place, wide) for place in state]

        e.loop(lanes, [x, weight, bias, out], finish)

    return emitted(9, write)


@compiled(exact=True)
def _normalize(row: int, x: Any, more: Any, also: Any, both: bool, weights: Any, eps: Any, out: Any) -> None:
    _norm(
        x[row].ctypes.data, more[row].ctypes.data, also[row].ctypes.data, np.intp(both),
        weights.shape[1] // LANES, weights[0].ctypes.data, weights[1].ctypes.data, eps.ctypes.data,
        out[row].ctypes.data,
    )  # fmt: skip


@compiled(parallel=True, exact=True)
def _normalize_all(
    rows: int, x: Any, more: Any, also: Any, both: bool, weights: Any, eps: Any, out: Any, bits: int,
    group: int, given: Any,
) -> None:  # fmt: skip
    for row in prange(rows):
        _normalize(row, x, more, also, both, weights, eps, out)
        ready(out, row, weights.shape[1], bits, group, given)


@compiled(exact=True)
def normalize(
    rows: int, x: Any, more: Any, also: Any, both: bool, weights: Any, eps: Any, out: Any, bits: int,
    group: int, given: Any,
) -> None:  # fmt: skip
    """x += more (+ also, with `both`); out = LayerNorm(x); out made ready. All [R, h], h a multiple of 16;
    weights [2, h]: the norm's weight and bias; eps [1]."""
    if rows == 1:
        _normalize(0, x, more, also, both, weights, eps, out)
        ready(out, 0, weights.shape[1], bits, group, given)
    else:
        _normalize_all(rows, x, more, also, both, weights, eps, out, bits, group, given)


@compiled(parallel=True, exact=True)
def _gate_all(rows: int, gate: Any, up: Any, width: int, bits: int, group: int, given: Any) -> None:
    for row in prange(rows):
        _gate(gate[row].ctypes.data, up[row].ctypes.data, (width + LANES - 1) // LANES, gate[row].ctypes.data)
        ready(gate, row, width, bits, group, given)


@compiled(exact=True)
def swiglu(rows: int, gate: Any, up: Any, width: int, bits: int, group: int, given: Any) -> None:
    """gate = silu(gate) · up, [R, width], made ready."""
    if rows == 1:
        _gate(gate[0].ctypes.data, up[0].ctypes.data, (width + LANES - 1) // LANES, gate[0].ctypes.data)
        ready(gate, 0, width, bits, group, given)
    else:
        _gate_all(rows, gate, up, width, bits, group, given)
