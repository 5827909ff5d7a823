"""x Wᵀ for one to sixteen rows of x, as fast as memory gives W: 4 bits, 8 bits, bfloat16; for more rows of
x as fast as the processor multiplies bytes.

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
from stablelm.kernels.cpu.packing import DENSE, GROUPS, Packed
from stablelm.kernels.cpu.rows import BLOCK, ready
from stablelm.kernels.cpu.vectors import (
    BYTES,
    F32,
    FLOATS,
    I16,
    I32,
    I64,
    INSTRUCTIONS,
    INTS,
    LANES,
    Emitter,
    each,
    emitted,
)  # fmt: skip

MOST_ROWS = 16
"""Rows of x up to which a product is bound by memory, and these kernels are the fastest way."""
_AHEAD = 1536
_AT_ONCE = 4
"""Rows of x that share the registers of AVX2 with their sums."""
BY_HALVES = INSTRUCTIONS == "avx2"
"""Whether a vector here is two registers, and products are summed in 16 bits."""


def _tiles(bits: int, rows: int) -> Any:
    """The code for two neighbouring tiles and `rows` rows of x: f(table, tile, row), with a table of numbers.

    The table: weights, bytes of a tile, scales, bytes of a tile's scales, x, bytes of a row of x, steps of x,
    corrections, bytes of a row of both, groups, blocks of 32 columns a group, out, bytes of a row of out."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        table, tile, row = args
        given = [e.load(I64, table, 8 * place) for place in range(13)]
        for place, stride, times in ((0, 1, tile), (2, 3, tile), (4, 5, row), (6, 8, row), (7, 8, row)):
            given[place] = builder.add(given[place], builder.mul(given[stride], times))
        given[11] = builder.add(given[11], builder.mul(tile, I64(4 * LANES)))
        given[11] = builder.add(given[11], builder.mul(given[12], row))
        if not BY_HALVES or rows < _AT_ONCE:
            write_whole(e, given, 2, rows)
            return context.get_dummy_value()
        # One tile and four rows of x after the other: side by side LLVM would keep parts of x in memory.
        for place in (0, 1):
            for first in range(0, rows, _AT_ONCE):
                part, far = list(given), first
                for which, stride, times in (
                    (0, 1, place),
                    (2, 3, place),
                    (4, 5, far),
                    (6, 8, far),
                    (7, 8, far),
                ):
                    part[which] = builder.add(given[which], builder.mul(given[stride], I64(times)))
                part[11] = builder.add(given[11], I64(4 * LANES * place))
                part[11] = builder.add(part[11], builder.mul(given[12], I64(first)))
                write_whole(e, part, 1, _AT_ONCE)
        return context.get_dummy_value()

    def write_whole(e: Emitter, args: Any, tiles: int, rows: int) -> None:
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
            return [b.add(w_at, I64(64 * chunks)), b.add(x_at, I64(BLOCK)), *sums]

        def block_by_halves(state: list[Any]) -> list[Any]:
            """The same with AVX2: sixteen registers of half a vector, so one tile and four rows of x at a
            time. Of 4 bits, 8 sums of two products of 15 · 127 fit into 16 bits; of 8 bits one sum of two of
            127 · 127, with the sign of the weight given to x."""
            w_at, x_at, *sums = state
            for tile in range(tiles):
                start = b.add(w_at, b.mul(w_tile, I64(tile))) if tile else w_at
                short: dict[int, Any] = {}
                for chunk in range(chunks):
                    e.prefetch(start, _AHEAD + 64 * chunk)
                    parts = weights(e.load(BYTES, start, 64 * chunk))
                    for place, (size, sign) in enumerate(parts):
                        for row in range(rows):
                            at = b.add(x_at, b.mul(x_row, I64(row))) if row else x_at
                            four_x = e.load(I32, at, 4 * (chunk * len(parts) + place))
                            x_part = b.bitcast(e.splat(four_x), BYTES)
                            which = row * tiles + tile
                            if sign is None:
                                both = e.pairs(size, x_part)
                                short[which] = b.add(short[which], both) if which in short else both
                            else:
                                both = e.joined(e.pairs(size, e.with_sign(x_part, sign)))
                                sums[which] = b.add(sums[which], both)
                for which, pairs in short.items():
                    sums[which] = b.add(sums[which], e.joined(pairs))
            return [b.add(w_at, I64(64 * chunks)), b.add(x_at, I64(BLOCK)), *sums]

        def weights(raw: Any) -> list[tuple[Any, Any]]:
            """64 bytes → unsigned levels of 4 columns each, and where they are magnitudes, the levels."""
            if bits == 4:
                high = b.bitcast(b.lshr(b.bitcast(raw, four.type), four), BYTES)
                return [(b.and_(raw, mask), None), (b.and_(high, mask), None)]
            signed = b.xor(raw, ir.Constant(BYTES, [-128] * 4 * LANES))
            return [(e.with_sign(signed, signed), signed)]

        def group(state: list[Any]) -> list[Any]:
            w_at, x_at, s_at, step_at, correction_at, *totals = state
            first = []
            for row in range(rows):
                where = b.add(correction_at, b.mul(g_row, I64(row)))
                first += [each(0) if BY_HALVES and bits == 8 else e.splat(e.load(I32, where))] * tiles
            body = block_by_halves if BY_HALVES else block
            w_at, x_at, *sums = e.loop(blocks, [w_at, x_at, *first], body)
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
        finish(e, totals, out, out_row, tiles, rows)

    def finish(e: Emitter, totals: list[Any], out: Any, out_row: Any, tiles: int, rows: int) -> None:
        for row in range(rows):
            for tile in range(tiles):
                at = e.b.add(out, e.b.add(e.b.mul(out_row, I64(row)), I64(4 * LANES * tile)))
                e.store(totals[row * tiles + tile], at)

    def tile_product(typing: Any, table: Any, tile: Any, row: Any) -> Any:
        return types.void(types.intp, types.intp, types.intp), generate

    return intrinsic(tile_product)


_four1, _four2, _four4, _four8 = (_tiles(4, 1 << power) for power in range(4))
_eight1, _eight2, _eight4, _eight8 = (_tiles(8, 1 << power) for power in range(4))


def _lines(rows: int) -> Any:
    """The code for four rows of a bfloat16 matrix and `rows` rows of x: f(table, row of W, row of x)."""
    lines = 4

    def write(e: Emitter, table: Any, line: Any, row: Any) -> None:
        b = e.b
        given = [e.load(I64, table, 8 * place) for place in range(13)]
        w, w_line, x, x_row, blocks, out, out_row = (given[place] for place in (0, 1, 4, 5, 9, 11, 12))
        w = [b.add(w, b.mul(w_line, b.add(line, I64(place)))) for place in range(lines)]
        x = [b.add(x, b.mul(x_row, b.add(row, I64(place)))) for place in range(rows)]
        zero, top = ir.Constant(FLOATS, [0.0] * LANES), each(-65536)

        def block(state: list[Any]) -> list[Any]:
            at, *sums = state
            x_at = b.add(at, at)  # an element of x is twice as long
            parts = [[e.load(FLOATS, b.add(one, x_at), 64 * odd) for odd in (0, 1)] for one in x]
            for place, one in enumerate(w):
                start = b.add(one, at)
                e.prefetch(start, _AHEAD)
                raw = e.load(INTS, start)
                halves = (b.bitcast(b.shl(raw, each(16)), FLOATS), b.bitcast(b.and_(raw, top), FLOATS))
                for number, part in enumerate(parts):
                    which = number * lines + place
                    for half, values in zip(halves, part, strict=True):
                        sums[which] = e.fma(sums[which], half, values)
            return [b.add(at, I64(64)), *sums]

        _, *sums = e.loop(blocks, [I64(0), *[zero] * (rows * lines)], block)
        for number in range(rows):
            at = b.add(b.add(out, b.mul(line, I64(4))), b.mul(out_row, b.add(row, I64(number))))
            for place in range(lines):
                e.store(e.reduce("fadd", sums[number * lines + place]), b.add(at, I64(4 * place)))

    def line_product(typing: Any, table: Any, line: Any, row: Any) -> Any:
        return emitted(3, write)

    return intrinsic(line_product)


_line1, _line2, _line4 = (_lines(1 << power) for power in range(3))
_LINES = 16
"""Rows of a bfloat16 matrix that one thread takes at a time."""


@compiled(exact=True)
def _few4(where: Any, unit: int, rows: int) -> None:
    row = 0
    while rows - row >= 8:
        _four8(where, 2 * unit, row)
        row += 8
    if (rows - row) & 4:
        _four4(where, 2 * unit, row)
        row += 4
    if (rows - row) & 2:
        _four2(where, 2 * unit, row)
        row += 2
    if (rows - row) & 1:
        _four1(where, 2 * unit, row)


@compiled(exact=True)
def _few8(where: Any, unit: int, rows: int) -> None:
    row = 0
    while rows - row >= 8:
        _eight8(where, 2 * unit, row)
        row += 8
    if (rows - row) & 4:
        _eight4(where, 2 * unit, row)
        row += 4
    if (rows - row) & 2:
        _eight2(where, 2 * unit, row)
        row += 2
    if (rows - row) & 1:
        _eight1(where, 2 * unit, row)


@compiled(exact=True)
def _few16(where: Any, unit: int, lines: int, rows: int) -> None:
    first = min(unit * _LINES, lines - _LINES)  # the last ones may be done twice, with the same result
    for line in range(first, first + _LINES, 4):
        row = 0
        while rows - row >= 4:
            _line4(where, line, row)
            row += 4
        if (rows - row) & 2:
            _line2(where, line, row)
            row += 2
        if (rows - row) & 1:
            _line1(where, line, row)


@compiled(exact=True)
def _part(tables: Any, place: int, rows: int) -> None:
    number, unit = 0, place
    while unit >= tables[number, 14]:
        unit -= tables[number, 14]
        number += 1
    where, bits = tables[number].ctypes.data, tables[number, 13]
    if bits == 4:
        _few4(where, unit, rows)
    elif bits == 8:
        _few8(where, unit, rows)
    else:
        _few16(where, unit, tables[number, 15], rows)


@compiled(parallel=True, exact=True)
def products(tables: Any, rows: int) -> None:
    """The products of `rows` rows with each of the matrices that `tables` [n, 16] describes (see `table`),
    in one parallel region."""
    count = 0
    for number in range(tables.shape[0]):
        count += tables[number, 14]
    for place in prange(count):
        _part(tables, place, rows)


Given = tuple[Any, Any, Any, Any]
"""Rows made ready for a product: whole int8 [R, K], steps float32 [R, G], less int32 [R, G], wide float32 [R,
K]; see rows.py. NumPy arrays."""


def room(rows: int, width: int) -> Given:
    """Space for `rows` rows of at most `width` columns, ready for a product of any kind."""
    width = -(-width // max(GROUPS)) * max(GROUPS)
    kinds = ((width, np.int8), (width // BLOCK, np.float32), (width // BLOCK, np.int32), (width, np.float32))
    whole, steps, less, wide = (np.zeros((rows, count), kind) for count, kind in kinds)
    return whole, steps, less, wide


def table(matrix: Packed | Tensor, given: Given, out: Any) -> list[int]:
    """A matrix, where its input lies and where its output goes (float32 [R, ≥ rows padded to 32]).

    `matrix` is packed, or bfloat16 [N, K] as PyTorch keeps it, with N ≥ 16 and K a multiple of 32. The arrays
    must live as long as the table."""
    whole, steps, less, wide = given
    if isinstance(matrix, Tensor):
        rows, columns = matrix.shape
        assert takes(matrix)
        return [
            matrix.data_ptr(), 2 * matrix.stride(0), 0, 0, wide.ctypes.data, wide.strides[0], 0, 0, 0,
            columns // BLOCK, 1, out.ctypes.data, out.strides[0], DENSE, -(-rows // _LINES), rows,
        ]  # fmt: skip
    groups = packed_groups(matrix)
    return [
        matrix.weight.data_ptr(), matrix.weight.stride(0), matrix.scale.data_ptr(), 2 * LANES * groups,
        whole.ctypes.data, whole.strides[0], steps.ctypes.data, less.ctypes.data, steps.strides[0],
        groups, matrix.group // BLOCK, out.ctypes.data, out.strides[0], matrix.bits,
        len(matrix.weight) // 2, matrix.rows,
    ]  # fmt: skip


def packed_groups(matrix: Packed) -> int:
    """Groups of columns."""
    return matrix.padded // matrix.group


def takes(matrix: Tensor) -> bool:
    """Whether a dense matrix can be read where it lies."""
    rows, columns = matrix.shape
    return (
        matrix.dtype == torch.bfloat16 and matrix.stride(1) == 1 and rows >= _LINES and columns % BLOCK == 0
    )


@compiled(parallel=True, exact=True)
def _all_ready(values: Any, rows: int, width: int, bits: int, group: int, given: Any) -> None:
    for row in prange(rows):
        ready(values, row, width, bits, group, given)


def product(matrix: Packed | Tensor, x: Tensor) -> Tensor:
    """x [B, K] → x Wᵀ [B, N], float32. For B above `MOST_ROWS` see `prefill.product_of_many`."""
    dense = isinstance(matrix, Tensor)
    rows, columns = matrix.shape if isinstance(matrix, Tensor) else (matrix.rows, matrix.columns)
    bits, group = (DENSE, BLOCK) if isinstance(matrix, Tensor) else (matrix.bits, matrix.group)
    batch = len(x)
    wide = x.detach().float()
    if columns % group:
        wide = torch.nn.functional.pad(wide, (0, -columns % group))
    values = wide.contiguous().numpy()
    out = np.empty((batch, rows if dense else len(matrix.weight) * LANES), np.float32)  # type: ignore[union-attr]
    given = room(batch, columns)
    if batch:
        use_threads()
        _all_ready(values, batch, columns, bits, group, given)
        products(np.array([table(matrix, given, out)], np.int64), batch)
    return torch.from_numpy(out)[:, :rows]
