"""Attention of a few queries over a cache of keys and values in float32, bfloat16 or 8 bits.

A block of 16 tokens at a time: 16 dot products summed by a tree, one softmax step for all (running maximum
and normaliser, Milakov and Gimelshein, 2018), then the values weighed. Keys and values are read once, in
order, and widened in registers: nothing is made dense; sums are float32. 8 bits have a scale for each head
and token, multiplied into 16 scores, or 16 weights, at once. Head dimensions are padded to 16 and tokens to
16, with zeros. A query's result does not depend on the queries beside it or on the number of threads.
Rejected: integer products with rounded queries (faster, another error, the memory is the limit already)."""

from typing import Any

import numpy as np
from numba import prange
from numba.core.cgutils import ir  # type: ignore[attr-defined]
from numba.extending import intrinsic

from stablelm.kernels.cpu.compilation import compiled
from stablelm.kernels.cpu.vectors import F32, FLOATS, I8, I16, I32, I64, INTS, LANES, emitted

EXACT, HALF, WHOLE = 4, 2, 1
"""Kinds of a cache, by the bytes of an element: float32, bfloat16, 8 bits with scales."""
_NEVER = -3e38


def _attention(kind: int) -> Any:
    """f(q, k, v, scales of k, of v, tokens ≥ 1, chunks of 16 dimensions, out, room for 16 floats)."""

    def widened(e: Any, address: Any) -> Any:
        if kind == EXACT:
            return e.load(FLOATS, address)
        if kind == HALF:
            return e.widen(e.load(ir.VectorType(I16, LANES), address))
        return e.b.sitofp(e.b.sext(e.load(ir.VectorType(I8, LANES), address), INTS), FLOATS)

    def write(
        e: Any, q: Any, k: Any, v: Any, ks: Any, vs: Any, tokens: Any, chunks: Any, out: Any, room: Any
    ) -> None:
        b = e.b
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        never = ir.Constant(FLOATS, [_NEVER] * LANES)
        lanes = ir.Constant(INTS, list(range(LANES)))
        piece, row = I64(LANES * kind), b.mul(chunks, I64(LANES * kind))
        rows = [b.mul(row, I64(token)) for token in range(LANES)]
        step, wide = b.mul(row, I64(LANES)), I64(4 * LANES)

        def clear(state: list[Any]) -> list[Any]:
            e.store(zero, state[0])
            return [b.add(state[0], wide)]

        def block(state: list[Any]) -> list[Any]:
            k_at, v_at, ks_at, vs_at, left, most, sums = state

            def scores(inner: list[Any]) -> list[Any]:
                at, q_at, *totals = inner
                part = e.load(FLOATS, q_at)
                totals = [
                    e.fma(total, widened(e, b.add(at, far)), part)
                    for total, far in zip(totals, rows, strict=True)
                ]
                return [b.add(at, piece), b.add(q_at, wide), *totals]

            _, _, *totals = e.loop(chunks, [k_at, q, *[zero] * LANES], scores)
            score = e.sums(totals)
            if kind == WHOLE:
                score = b.fmul(score, e.load(FLOATS, ks_at))
            real = b.icmp_signed("<", lanes, e.splat(b.trunc(left, I32)))
            score = b.select(real, score, never)
            biggest = e.largest(e.reduce("fmax", score), most)
            weight = b.select(real, e.exp(b.fsub(score, e.splat(biggest))), zero)
            shrink = e.exp(e.splat(b.fsub(most, biggest)))
            sums = b.fadd(b.fmul(sums, shrink), weight)
            if kind == WHOLE:
                weight = b.fmul(weight, e.load(FLOATS, vs_at))
            e.store(weight, room)

            def values(inner: list[Any]) -> list[Any]:
                at, out_at = inner
                parts = [b.fmul(e.load(FLOATS, out_at), shrink), zero]
                for token in range(LANES):
                    one = e.splat(e.load(F32, room, 4 * token))
                    parts[token % 2] = e.fma(parts[token % 2], widened(e, b.add(at, rows[token])), one)
                e.store(b.fadd(*parts), out_at)
                return [b.add(at, piece), b.add(out_at, wide)]

            e.loop(chunks, [v_at, out], values)
            moved = [b.add(k_at, step), b.add(v_at, step), b.add(ks_at, wide), b.add(vs_at, wide)]
            return [*moved, b.sub(left, I64(LANES)), biggest, sums]

        e.loop(chunks, [out], clear)
        blocks = b.ashr(b.add(tokens, I64(LANES - 1)), I64(4))
        *_, sums = e.loop(blocks, [k, v, ks, vs, tokens, F32(_NEVER), zero], block)
        share = e.splat(b.fdiv(F32(1.0), e.reduce("fadd", sums)))

        def finish(state: list[Any]) -> list[Any]:
            e.store(b.fmul(e.load(FLOATS, state[0]), share), state[0])
            return [b.add(state[0], wide)]

        e.loop(chunks, [out], finish)

    def attention(
        typing: Any, q: Any, k: Any, v: Any, ks: Any, vs: Any, tokens: Any, chunks: Any, out: Any, room: Any
    ) -> Any:
        return emitted(9, write)

    return intrinsic(attention)


_exact, _half, _whole = (_attention(kind) for kind in (EXACT, HALF, WHOLE))


@compiled(exact=True)
def _rotated(x: Any, size: int, cos: Any, sin: Any, times: Any, out: Any) -> None:
    """x [D] with its first 2 · len(cos) numbers rotated, all times `times`."""
    half = cos.shape[0]
    for j in range(half):
        first, second = x[j], x[half + j]
        out[j] = (first * cos[j] - second * sin[j]) * times
        out[half + j] = (second * cos[j] + first * sin[j]) * times
    for d in range(2 * half, size):
        out[d] = x[d] * times


@compiled(exact=True)
def _kept(x: Any, size: int, kind: int, out: Any, scales: Any, place: int) -> None:
    """x [D] into the bytes `out` of one token and head; its scale into scales[place]."""
    if kind == EXACT:
        exact = out.view(np.float32)
        for d in range(size):
            exact[d] = x[d]
    elif kind == HALF:
        words, halves = x.view(np.uint32), out.view(np.uint16)
        for d in range(size):  # to the nearest, even on a tie; a NaN stays one
            word = words[d] + np.uint32(0x7FFF) + ((words[d] >> np.uint32(16)) & np.uint32(1))
            halves[d] = np.uint16(word >> np.uint32(16)) if x[d] == x[d] else np.uint16(0x7FC0)
    else:
        levels = out.view(np.int8)
        most, wrong = np.float32(0), np.float32(0)
        for d in range(size):
            most = max(most, abs(x[d]))
            wrong += x[d] * np.float32(0)
        inverse = np.float32(127) / most if most > np.float32(1e-30) else np.float32(0)
        for d in range(size):
            levels[d] = np.int8(np.int32(np.rint(x[d] * inverse)))
        scales[place] = most / np.float32(127) + wrong


@compiled(exact=True)
def _head_norm(x: Any, weight: Any, eps: float) -> None:
    size = weight.shape[0]
    total, spread = np.float32(0), np.float32(0)
    for d in range(size):
        total += x[d]
    mean = total / np.float32(size)
    for d in range(size):
        spread += (x[d] - mean) * (x[d] - mean)
    scale = np.float32(1) / np.sqrt(spread / np.float32(size) + np.float32(eps))
    for d in range(size):
        x[d] = (x[d] - mean) * scale * weight[d]


@compiled(parallel=True, exact=True)
def attend(
    starts: Any, first: int, count: int, q: Any, k: Any, v: Any, cos: Any, sin: Any, q_norm: Any,
    k_norm: Any, eps: Any, store: Any, scales: Any, kind: int, room: Any, out: Any,
) -> None:  # fmt: skip
    """Appends `count` tokens to each of the B texts of a layer, and what they see of it, weighed.

    q [B · count, H, D], k and v [B · count, K, D], each row starting at a token's first number; cos, sin
    [B · count, rotary/2]; q_norm [H, D] and k_norm [K, D], or [0, 0]; store uint8 [2, B, K, tokens, bytes of
    a head] and scales float32 [2, B, K, tokens]: text b is its `first` + b, and has starts [b] tokens; room
    float32 [B · count, H, 2 · padded D + 16]; out float32 [B · count, ≥ H · D]."""
    shared, size = k.shape[1], k.shape[2]
    each, padded = q.shape[1] // shared, store.shape[4] // kind
    times = np.float32(1) / np.sqrt(np.float32(size))
    for item in prange(starts.shape[0] * shared):
        text, h = item // shared, item % shared
        b = first + text
        for s in range(count):
            row, place = text * count + s, starts[text] + s
            if k_norm.shape[0]:
                _head_norm(k[row, h], k_norm[h], eps)
            work = room[row, h * each]
            _rotated(k[row, h], size, cos[row], sin[row], np.float32(1), work)
            _kept(work, size, kind, store[0, b, h, place], scales[0, b, h], place)
            for d in range(size):
                work[d] = v[row, h, d]
            _kept(work, size, kind, store[1, b, h, place], scales[1, b, h], place)
        for s in range(count):
            row, tokens = text * count + s, starts[text] + s + 1
            for head in range(h * each, (h + 1) * each):
                work = room[row, head]
                if q_norm.shape[0]:
                    _head_norm(q[row, head], q_norm[head], eps)
                _rotated(q[row, head], size, cos[row], sin[row], times, work)
                for d in range(size, padded):
                    work[d] = np.float32(0)
                at = work.ctypes.data
                result = at + np.uintp(4 * padded)
                free = result + np.uintp(4 * padded)
                keys, values = store[0, b, h].ctypes.data, store[1, b, h].ctypes.data
                of_keys, of_values = scales[0, b, h].ctypes.data, scales[1, b, h].ctypes.data
                if kind == EXACT:
                    _exact(at, keys, values, of_keys, of_values, tokens, padded // LANES, result, free)
                elif kind == HALF:
                    _half(at, keys, values, of_keys, of_values, tokens, padded // LANES, result, free)
                else:
                    _whole(at, keys, values, of_keys, of_values, tokens, padded // LANES, result, free)
                for d in range(size):
                    out[row, head * size + d] = work[padded + d]
