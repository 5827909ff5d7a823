"""Packed matrices made dense again, a piece at a time: what training over packed weights multiplies with.

Bit-equal to the twin, `packing.dense`: level · scale in float32, rounded once to bfloat16 where that is asked
for. A piece is a range of tiles and of groups, so no product needs more than a few MB beside the packed
matrix. Rejected: dequantising through PyTorch's operators (ten passes over memory, 20 times slower)."""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from stablelm.kernels.cpu.compilation import compiled, use_threads
from stablelm.kernels.cpu.packing import TILE, Packed


@compiled()
def _levels(weight: Any, at: int, shift: int, mask: int, half: int, scales: Any, values: Any) -> None:
    """64 bytes, 16 rows × 4 columns → level · scale."""
    for i in range(4 * TILE):
        level = np.int32((weight[at + i] >> np.uint8(shift)) & np.uint8(mask)) - np.int32(half)
        values[i] = np.float32(level) * scales[i]


@compiled()
def _wide_scales(steps: Any, scales: Any) -> None:
    numbers = scales.view(np.uint32)
    for r in range(TILE):
        for j in range(4):
            numbers[4 * r + j] = np.uint32(steps[r]) << np.uint32(16)


@compiled(parallel=True)
def _expand(weight: Any, steps: Any, bits: int, group: int, first: int, start: int, out: Any) -> None:
    half, mask, wide = 1 << (bits - 1), (1 << bits) - 1, 32 // bits
    for tile in prange(out.shape[0]):
        scales, values = np.empty(4 * TILE, np.float32), np.empty(4 * TILE, np.float32)
        for g in range(out.shape[2] // group):
            _wide_scales(steps[first + tile, start + g], scales)
            for column in range(g * group, (g + 1) * group, 4):
                chunk = (start * group + column) // wide
                shift = column % wide
                _levels(weight[first + tile], chunk * 4 * TILE, shift, mask, half, scales, values)
                for r in range(TILE):
                    for j in range(4):
                        out[tile, r, column + j] = values[4 * r + j]


@compiled(parallel=True)
def _expand_half(weight: Any, steps: Any, bits: int, group: int, first: int, start: int, out: Any) -> None:
    half, mask, wide = 1 << (bits - 1), (1 << bits) - 1, 32 // bits
    for tile in prange(out.shape[0]):
        scales, values = np.empty(4 * TILE, np.float32), np.empty(4 * TILE, np.float32)
        numbers, words = values.view(np.uint32), np.empty(4 * TILE, np.uint16)
        for g in range(out.shape[2] // group):
            _wide_scales(steps[first + tile, start + g], scales)
            for column in range(g * group, (g + 1) * group, 4):
                chunk = (start * group + column) // wide
                shift = column % wide
                _levels(weight[first + tile], chunk * 4 * TILE, shift, mask, half, scales, values)
                for i in range(4 * TILE):
                    even = (numbers[i] >> np.uint32(16)) & np.uint32(1)  # a tie goes to the even one
                    words[i] = np.uint16((numbers[i] + np.uint32(0x7FFF) + even) >> np.uint32(16))
                for r in range(TILE):
                    for j in range(4):
                        out[tile, r, column + j] = words[4 * r + j]


def expand(packed: Packed, tiles: range, groups: range, dtype: torch.dtype) -> Tensor:
    """W in rows 16·tiles and columns group·groups (padding included), float32 or bfloat16."""
    out = torch.empty(len(tiles), TILE, len(groups) * packed.group, dtype=dtype)
    steps = packed.scale.view(torch.int16).numpy().view(np.uint16)
    where = (packed.weight.numpy(), steps, packed.bits, packed.group, tiles.start, groups.start)
    use_threads()
    if dtype == torch.bfloat16:
        _expand_half(*where, out.view(torch.int16).numpy().view(np.uint16))
    else:
        _expand(*where, out.numpy())
    return out.flatten(0, 1)
