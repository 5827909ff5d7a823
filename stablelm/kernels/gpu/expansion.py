"""Packed matrices made dense on a GPU, a piece at a time: what products and training upon packed weights
multiply with there.

Bit-equal to the twin, `kernels.cpu.packing.dense`: level · scale in float32, rounded once. A program writes
16 rows (a tile) of some hundred columns; it reads half a byte or one a number and writes two or four, so it
waits for memory alone."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stablelm.kernels.cpu.packing import TILE, Packed

BLOCK = 32
"""Words of 32 bits of every row for each program."""


@triton.jit
def expand_tiles(words, scale, out, first_tile, first_group, rows, columns, groups,
                 BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """out [rows, columns] = levels in `words` [tiles, words of a row, 16] · `scale` [tiles, groups, 16]."""
    each: tl.constexpr = 32 // BITS  # numbers of a word
    tile = first_tile + tl.program_id(0).to(tl.int64)
    row, word, number = tl.arange(0, 16), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, each)
    inside = (word * each < columns)[None, :]
    at = (tile * groups + first_group) * (GROUP // each) + word
    raw = tl.load(words + 16 * at[None, :] + row[:, None], mask=inside, other=0)
    at = tile * groups + first_group + word * each // GROUP
    step = tl.load(scale + 16 * at[None, :] + row[:, None], mask=inside, other=0.0).to(tl.float32)
    # of 4 bits: the low nibbles of four columns, then the high ones
    shift = 8 * (number % 4) + BITS * (number // 4)
    level = ((raw[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1)) - (1 << (BITS - 1))
    value = level.to(tl.float32) * step[:, :, None]
    to = tl.program_id(0).to(tl.int64) * 16 + row
    column = (word * each)[:, None] + number[None, :]
    place = to[:, None, None] * columns + column[None, :, :]
    inside = (to < rows)[:, None, None] & (column < columns)[None, :, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def expand(packed: Packed, tiles: range, groups: range, dtype: torch.dtype) -> Tensor:
    """Ŵ in some tiles and groups, without padding [rows, columns], in float32, float16 or bfloat16."""
    rows = min(TILE * len(tiles), packed.rows - TILE * tiles.start)
    columns = min(packed.group * len(groups), packed.columns - packed.group * groups.start)
    out = torch.empty(rows, columns, dtype=dtype, device=packed.weight.device)
    words = packed.weight.view(torch.int32)
    grid = (len(tiles), triton.cdiv(columns, BLOCK * (32 // packed.bits)))
    expand_tiles[grid](
        words, packed.scale, out, tiles.start, groups.start, rows, columns, packed.scale.shape[1],
        BITS=packed.bits, GROUP=packed.group, BLOCK=BLOCK,
    )  # fmt: skip
    return out
