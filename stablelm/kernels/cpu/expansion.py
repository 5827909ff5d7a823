"""Packed matrices made dense again, a piece at a time: what training over packed weights multiplies with.

Bit-equal to the twin, `packing.dense`: level · scale in float32, rounded once to bfloat16 where that is asked
for. A piece is a range of tiles and of groups, so no product needs more than a few MB beside the packed
matrix. It is written column by column, 16 rows of a tile in one store: the order in which they are packed,
and a product takes it either way. Rejected: dequantising through PyTorch's operators (ten passes over
memory)."""

from typing import Any

import numpy as np
import torch
from numba import prange
from numba.core.cgutils import ir  # type: ignore[attr-defined]
from torch import Tensor

from stablelm.kernels.cpu.compilation import compiled, use_threads
from stablelm.kernels.cpu.packing import TILE, Packed
from stablelm.kernels.cpu.vectors import FLOATS, I16, I64, INTS, LANES, each, emitted, instructions


def _columns(bits: int, rounded: bool, half: bool) -> Any:
    """The code for one tile: f(weight, steps, groups, chunks a group, out, bytes of a column of out)."""

    def write(e: Any, weight: Any, steps: Any, groups: Any, chunks: Any, out: Any, column: Any) -> None:
        b = e.b

        def chunk(state: list[Any]) -> list[Any]:
            at, to, scale = state
            words = e.load(INTS, at)
            for number in range(32 // bits):
                # of 4 bits: the low nibbles of four columns, then the high ones
                shift = 8 * (number % 4) + bits * (number // 4)
                level = b.sub(
                    b.and_(b.lshr(words, each(shift)), each((1 << bits) - 1)), each(1 << (bits - 1))
                )
                value = b.fmul(b.sitofp(level, FLOATS), scale)
                if rounded or half:
                    raw = b.bitcast(value, INTS)
                    even = b.and_(b.lshr(raw, each(16)), each(1))  # a tie goes to the even one
                    raw = b.add(raw, b.add(even, each(0x7FFF)))
                    if half:
                        value = b.trunc(b.lshr(raw, each(16)), ir.VectorType(I16, LANES))
                    else:
                        value = b.bitcast(b.and_(raw, each(-65536)), FLOATS)
                e.store(value, to)
                to = b.add(to, column)
            return [b.add(at, I64(4 * LANES)), to, scale]

        def group(state: list[Any]) -> list[Any]:
            at, to, step_at = state
            scale = e.widen(e.load(ir.VectorType(I16, LANES), step_at))
            at, to, _ = e.loop(chunks, [at, to, scale], chunk)
            return [at, to, b.add(step_at, I64(2 * LANES))]

        e.loop(groups, [weight, out, steps], group)

    def tile_columns(
        typing: Any, weight: Any, steps: Any, groups: Any, chunks: Any, out: Any, column: Any
    ) -> Any:
        return emitted(6, write)

    return instructions(tile_columns)


_four, _four_rounded, _four_half = (
    _columns(4, *kind) for kind in ((False, False), (True, False), (False, True))
)
_eight, _eight_rounded, _eight_half = (
    _columns(8, *kind) for kind in ((False, False), (True, False), (False, True))
)
_FLOAT, _ROUNDED, _HALF = range(3)


@compiled(parallel=True)
def _expand(
    weight: Any, steps: Any, bits: int, group: int, first: int, start: int, kind: int, out: Any
) -> None:
    groups, chunks = out.shape[0] // group, group * bits // 32
    for tile in prange(out.shape[1] // TILE):
        at = weight[first + tile].ctypes.data + start * chunks * 4 * TILE
        scale, to = steps[first + tile, start].ctypes.data, out[0, tile * TILE :].ctypes.data
        # Each by its own name: Numba cannot choose among emitted code by a value.
        if bits == 4:
            if kind == _FLOAT:
                _four(at, scale, groups, chunks, to, out.strides[0])
            elif kind == _ROUNDED:
                _four_rounded(at, scale, groups, chunks, to, out.strides[0])
            else:
                _four_half(at, scale, groups, chunks, to, out.strides[0])
        elif kind == _FLOAT:
            _eight(at, scale, groups, chunks, to, out.strides[0])
        elif kind == _ROUNDED:
            _eight_rounded(at, scale, groups, chunks, to, out.strides[0])
        else:
            _eight_half(at, scale, groups, chunks, to, out.strides[0])


def expand(
    packed: Packed, tiles: range, groups: range, dtype: torch.dtype, rounded: bool = False,
    room: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """W in rows 16·tiles and columns group·groups (padding included), float32 or bfloat16; a view, column by
    column. `rounded`: float32 holding what bfloat16 would. `room`, of that dtype: memory for the result."""
    half, shape = dtype == torch.bfloat16, (len(groups) * packed.group, TILE * len(tiles))
    out = torch.empty(shape, dtype=dtype) if room is None else room[: shape[0] * shape[1]].view(shape)
    steps = packed.scale.view(torch.int16).numpy().view(np.uint16)
    where = (packed.weight.numpy(), steps, packed.bits, packed.group, tiles.start, groups.start)
    array = out.view(torch.int16).numpy().view(np.uint16) if half else out.numpy()
    use_threads()
    _expand(*where, _HALF if half else _ROUNDED if rounded else _FLOAT, array)
    return out.T
