"""x Wᵀ for one to sixteen rows of x, as fast as memory gives W: 4 bits, 8 bits, bfloat16.

One pass over the tiles of `packing.py`, shared among threads; each weight is read once for all rows of x (up
to 8 at a time; for more, a tile comes again from the cache, not from memory). x is rounded to 8 bits a group
on the way in and the sums within a group are exact integers, so a result does not depend on the number of
threads, on the rows beside it, or on the instruction set but for the order of the float sums over groups
(which is the same in all). Two tiles go side by side and lines are asked for ahead: one stream does not
fill the memory bus. Costs 1.5 µs a call for the parallel region."""

from typing import Any

import numpy as np
import torch
from numba import prange, types
from numba.core.cgutils import ir  # type: ignore[attr-defined]
from numba.extending import intrinsic
from torch import Tensor

from stablelm.kernels.cpu.compilation import compiled, use_threads
from stablelm.kernels.cpu.packing import DENSE, SMALLEST, Packed
from stablelm.kernels.cpu.vectors import BYTES, F32, FLOATS, I16, I32, I64, INTS, LANES, Emitter, each

MOST_ROWS = 16
"""Rows of x up to which a product is bound by memory, and these kernels are the fastest way."""
_BLOCK = 32
_AHEAD = 1536


def _tiles(bits: int, rows: int) -> Any:
    """The code for two neighbouring tiles and `rows` rows of x: f(table, tile, row), with a table of numbers.

    The table: weights, bytes of a tile, scales, bytes of a tile's scales, x, bytes of a row of x, steps of x,
    corrections, bytes of a row of both, groups, blocks of 32 columns a group, out, bytes of a row of out."""
    tiles = 2

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        table, tile, row = args
        given = [e.load(I64, table, 8 * place) for place in range(13)]
        for place, stride, times in ((0, 1, tile), (2, 3, tile), (4, 5, row), (6, 8, row), (7, 8, row)):
            given[place] = builder.add(given[place], builder.mul(given[stride], times))
        given[11] = builder.add(given[11], builder.mul(tile, I64(4 * LANES)))
        given[11] = builder.add(given[11], builder.mul(given[12], row))
        (write_dense if bits == DENSE else write_whole)(e, given)
        return context.get_dummy_value()

    def write_whole(e: Emitter, args: Any) -> None:
        b = e.b
        w, w_tile, s, s_tile, x, x_row, step, correction, g_row, groups, blocks, out, out_row = args
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        chunks = 4 if bits == 4 else 8
        mask = ir.Constant(BYTES, [15] * 4 * LANES)
        four = ir.Constant(ir.VectorType(I16, 2 * LANES), [4] * 2 * LANES)

        def block(state: list[Any]) -> list[Any]:
            w_at, x_at, *sums = state
            for chunk in range(chunks):
                parts = []
                for tile in range(tiles):
                    start = b.add(w_at, b.mul(w_tile, I64(tile))) if tile else w_at
                    e.prefetch(start, _AHEAD + 64 * chunk)
                    raw = e.load(BYTES, start, 64 * chunk)
                    if bits == 4:
                        high = b.bitcast(b.lshr(b.bitcast(raw, four.type), four), BYTES)
                        parts.append([b.and_(raw, mask), b.and_(high, mask)])
                    else:
                        parts.append([raw])
                for row in range(rows):
                    at = b.add(x_at, b.mul(x_row, I64(row))) if row else x_at
                    for place in range(len(parts[0])):
                        four_x = e.load(I32, at, 4 * (chunk * len(parts[0]) + place))
                        for tile in range(tiles):
                            which = row * tiles + tile
                            sums[which] = e.dot(sums[which], parts[tile][place], four_x)
            return [b.add(w_at, I64(64 * chunks)), b.add(x_at, I64(_BLOCK)), *sums]

        def group(state: list[Any]) -> list[Any]:
            w_at, x_at, s_at, step_at, correction_at, *totals = state
            first = []
            for row in range(rows):
                where = b.add(correction_at, b.mul(g_row, I64(row)))
                first += [e.splat(e.load(I32, where))] * tiles
            w_at, x_at, *sums = e.loop(blocks, [w_at, x_at, *first], block)
            for tile in range(tiles):
                scale = e.widen(e.load(ir.VectorType(I16, LANES), b.add(s_at, b.mul(s_tile, I64(tile)))))
                for row in range(rows):
                    which = row * tiles + tile
                    x_step = e.splat(e.load(F32, b.add(step_at, b.mul(g_row, I64(row)))))
                    both = b.fmul(scale, x_step)
                    totals[which] = e.fma(totals[which], b.sitofp(sums[which], FLOATS), both)
            moved = b.add(s_at, I64(2 * LANES)), b.add(step_at, I64(4)), b.add(correction_at, I64(4))
            return [w_at, x_at, *moved, *totals]

        _, _, _, _, _, *totals = e.loop(groups, [w, x, s, step, correction, *[zero] * (rows * tiles)], group)
        finish(e, totals, out, out_row)

    def write_dense(e: Emitter, args: Any) -> None:
        b = e.b
        w, w_tile, _, _, x, x_row, _, _, _, groups, _, out, out_row = args
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        top = each(-65536)

        def block(state: list[Any]) -> list[Any]:
            w_at, x_at, *sums = state
            for chunk in range(8):
                parts = []
                for tile in range(tiles):
                    start = b.add(w_at, b.mul(w_tile, I64(tile))) if tile else w_at
                    e.prefetch(start, _AHEAD + 64 * chunk)
                    raw = e.load(INTS, start, 64 * chunk)
                    parts.append(
                        (b.bitcast(b.shl(raw, each(16)), FLOATS), b.bitcast(b.and_(raw, top), FLOATS))
                    )
                for row in range(rows):
                    at = b.add(x_at, b.mul(x_row, I64(row))) if row else x_at
                    for place in range(2):
                        one = e.splat(e.load(F32, at, 4 * (2 * chunk + place)))
                        for tile in range(tiles):
                            which = (row * tiles + tile) * 2 + place
                            sums[which] = e.fma(sums[which], parts[tile][place], one)
            return [b.add(w_at, I64(512)), b.add(x_at, I64(64)), *sums]

        _, _, *sums = e.loop(b.mul(groups, I64(2)), [w, x, *[zero] * (rows * tiles * 2)], block)
        finish(e, [b.fadd(*sums[2 * i : 2 * i + 2]) for i in range(rows * tiles)], out, out_row)

    def finish(e: Emitter, totals: list[Any], out: Any, out_row: Any) -> None:
        for row in range(rows):
            for tile in range(tiles):
                at = e.b.add(out, e.b.add(e.b.mul(out_row, I64(row)), I64(4 * LANES * tile)))
                e.store(totals[row * tiles + tile], at)

    def tile_product(typing: Any, table: Any, tile: Any, row: Any) -> Any:
        return types.void(types.intp, types.intp, types.intp), generate

    return intrinsic(tile_product)


_four1, _four2, _four4, _four8 = (_tiles(4, 1 << power) for power in range(4))
_eight1, _eight2, _eight4, _eight8 = (_tiles(8, 1 << power) for power in range(4))
_dense1, _dense2, _dense4, _dense8 = (_tiles(DENSE, 1 << power) for power in range(4))


@compiled()
def round_activations(x: Any, group: int, offset: int, whole: Any, steps: Any, corrections: Any) -> None:
    """x [B, K] → whole int8 [B, K'], steps float32 [B, groups], corrections int32 = −offset · Σ whole."""
    for row in range(x.shape[0]):
        for g in range(steps.shape[1]):
            start = g * group
            end = min(start + group, x.shape[1])
            largest, wrong = np.float32(0), np.float32(0)
            for k in range(start, end):
                largest = max(largest, abs(x[row, k]))
                wrong += x[row, k] * np.float32(0)  # NaN if any value is not finite, so that it is seen later
            inverse = np.float32(127) / largest if largest > SMALLEST else np.float32(0)
            total = np.int32(0)
            for k in range(start, end):
                level = np.int32(np.rint(x[row, k] * inverse))
                whole[row, k] = level
                total += level
            for k in range(end, start + group):
                whole[row, k] = 0
            steps[row, g] = largest / np.float32(127) + wrong
            corrections[row, g] = -offset * total


@compiled(parallel=True)
def _product4(table: Any, pairs: int, rows: int) -> None:
    where = table.ctypes.data
    for pair in prange(pairs):
        row = 0
        while rows - row >= 8:
            _four8(where, 2 * pair, row)
            row += 8
        if (rows - row) & 4:
            _four4(where, 2 * pair, row)
            row += 4
        if (rows - row) & 2:
            _four2(where, 2 * pair, row)
            row += 2
        if (rows - row) & 1:
            _four1(where, 2 * pair, row)


@compiled(parallel=True)
def _product8(table: Any, pairs: int, rows: int) -> None:
    where = table.ctypes.data
    for pair in prange(pairs):
        row = 0
        while rows - row >= 8:
            _eight8(where, 2 * pair, row)
            row += 8
        if (rows - row) & 4:
            _eight4(where, 2 * pair, row)
            row += 4
        if (rows - row) & 2:
            _eight2(where, 2 * pair, row)
            row += 2
        if (rows - row) & 1:
            _eight1(where, 2 * pair, row)


@compiled(parallel=True)
def _product_dense(table: Any, pairs: int, rows: int) -> None:
    where = table.ctypes.data
    for pair in prange(pairs):
        row = 0
        while rows - row >= 8:
            _dense8(where, 2 * pair, row)
            row += 8
        if (rows - row) & 4:
            _dense4(where, 2 * pair, row)
            row += 4
        if (rows - row) & 2:
            _dense2(where, 2 * pair, row)
            row += 2
        if (rows - row) & 1:
            _dense1(where, 2 * pair, row)


_PRODUCTS: dict[int, Any] = {4: _product4, 8: _product8, DENSE: _product_dense}


def product(packed: Packed, x: Tensor) -> Tensor:
    """x [B, K] → x Wᵀ [B, N], float32; any B, meant for B ≤ `MOST_ROWS`."""
    values = x.detach().to(torch.float32).contiguous().numpy()
    batch, padded, groups = len(values), packed.padded, packed.padded // packed.group
    out = np.empty((batch, len(packed.weight) * LANES), np.float32)
    steps, corrections = np.empty((batch, groups), np.float32), np.empty((batch, groups), np.int32)
    if packed.bits == DENSE:
        if padded != packed.columns:
            values = np.pad(values, ((0, 0), (0, padded - packed.columns)))
        inputs: Any = values
    else:
        inputs = np.empty((batch, padded), np.int8)
        round_activations(values, packed.group, 1 << packed.bits - 1, inputs, steps, corrections)
    table = np.array(
        [
            packed.weight.data_ptr(), packed.weight.stride(0), packed.scale.data_ptr(), 2 * LANES * groups,
            inputs.ctypes.data, inputs.strides[0], steps.ctypes.data, corrections.ctypes.data, 4 * groups,
            groups, packed.group // _BLOCK, out.ctypes.data, out.strides[0],
        ],
        np.int64,
    )  # fmt: skip
    if batch:
        use_threads()
        _PRODUCTS[packed.bits](table, len(packed.weight) // 2, batch)
    return torch.from_numpy(out)[:, : packed.rows]
