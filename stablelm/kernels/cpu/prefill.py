"""x Wᵀ for many rows of x, by one of two ways; which, follows from the processor and the bits alone.

By groups: the kernels of `products.py`, which round no weight twice and x a group at a time: 0.4 of the other
way's KL in 8 bits (notebook). They are the faster way, too, but for AMX, and for 4 bits with AVX-512 VNNI
(a sixth slower; there the weights' own rounding is thirty times all of that).

By rows: packed weights as 8-bit rows, x as 8 bits a row, one integer product. PyTorch's `_int_mm` (oneDNN)
has the speed where the processor has VNNI, and nowhere else (3 GOP/s with AVX2); here is what stands around
it. A tile of packed weights becomes 16 rows of int8 with one scale each: levels · (step of the group / step
of the row), rounded, 32 columns at a time and transposed in registers, because the result is thrown away
after each product and must cost nothing beside it (kept, it would double a 4-bit model). x is rounded and the
sums are scaled in one pass each."""

from typing import Any

import numpy as np
import torch
from numba import prange
from numba.core.cgutils import ir  # type: ignore[attr-defined]
from torch import Tensor

from stablelm.kernels.cpu.compilation import compiled, use_threads
from stablelm.kernels.cpu.packing import TILE, Packed
from stablelm.kernels.cpu.products import product
from stablelm.kernels.cpu.rows import BLOCK
from stablelm.kernels.cpu.vectors import (
    AMX,
    FLOATS,
    I16,
    I32,
    I64,
    INSTRUCTIONS,
    INTS,
    LANES,
    each,
    emitted,
    instructions,
)  # fmt: skip

BY_GROUPS: tuple[int, ...] = (4, 8)
"""Bits of the weights that go by groups on this processor."""
if INSTRUCTIONS == "avx512-vnni":
    BY_GROUPS = () if AMX else (8,)


@instructions
def _spread(
    typing: Any, weight: Any, step: Any, groups: Any, blocks: Any, bits: Any, half: Any, out: Any, row: Any,
    inverse: Any,
) -> Any:  # fmt: skip
    """A tile [K/4 of 64 bytes, or half of it] with steps [groups, 16] → out int8 [16, K], rows `row` bytes
    apart; inverse [16] is 1 / step of the row. `half` is a level's offset; `blocks` of 32 a group."""

    def write(e: Any, weight: Any, step: Any, groups: Any, blocks: Any, bits: Any, half: Any, out: Any,
              row: Any, inverse: Any) -> None:  # fmt: skip
        b = e.b
        offset = e.splat(b.trunc(half, I32))
        of_rows = e.load(FLOATS, inverse)
        four_bits = b.icmp_signed("==", bits, I64(4))
        size = b.select(four_bits, I64(256), I64(512))

        def rounded(words: Any, times: Any) -> Any:
            """16 rows × 4 levels in bytes, scaled."""
            total = None
            for place in range(4):
                level = b.sub(b.and_(b.lshr(words, each(8 * place)), each(255)), offset)
                near = b.fptosi(e.nearest(b.fmul(b.sitofp(level, FLOATS), times)), INTS)
                byte = b.shl(b.and_(near, each(255)), each(8 * place))
                total = byte if total is None else b.or_(total, byte)
            return total

        def mixed(a: Any, c: Any) -> list[Any]:
            orders = [[start + lane // 2 + LANES * (lane % 2) for lane in range(LANES)] for start in (0, 8)]
            return [b.shuffle_vector(a, c, ir.Constant(INTS, order)) for order in orders]

        def block(state: list[Any]) -> list[Any]:
            at, out_at, times = state
            few = b.append_basic_block("four")
            many = b.append_basic_block("eight")
            after = b.append_basic_block("levels")
            b.cbranch(four_bits, few, many)
            b.position_at_end(few)
            low = []
            for chunk in range(4):
                raw = e.load(INTS, at, 64 * chunk)
                mask = each(0x0F0F0F0F)
                low += [b.and_(raw, mask), b.and_(b.lshr(raw, each(4)), mask)]
            b.branch(after)
            few_end = b.block
            b.position_at_end(many)
            high = [e.load(INTS, at, 64 * chunk) for chunk in range(8)]
            b.branch(after)
            many_end = b.block
            b.position_at_end(after)
            words = []
            for one, other in zip(low, high, strict=True):
                phi = b.phi(INTS)
                phi.add_incoming(one, few_end)
                phi.add_incoming(other, many_end)
                words.append(phi)
            words = [rounded(word, times) for word in words]
            pairs = [mixed(words[place], words[place + 4]) for place in range(4)]
            for side in (0, 1):
                fours = [mixed(pairs[place][side], pairs[place + 2][side]) for place in (0, 1)]
                for part in (0, 1):
                    for quarter, rows in enumerate(mixed(fours[0][part], fours[1][part])):
                        for which in (0, 1):
                            lanes = ir.Constant(ir.VectorType(I32, 8), [8 * which + n for n in range(8)])
                            bytes_of = b.shuffle_vector(rows, ir.Constant(INTS, ir.Undefined), lanes)
                            number = 8 * side + 4 * part + 2 * quarter + which
                            e.store(bytes_of, b.add(out_at, b.mul(row, I64(number))))
            return [b.add(at, size), b.add(out_at, I64(BLOCK)), times]

        def group(state: list[Any]) -> list[Any]:
            at, out_at, step_at = state
            steps = e.widen(e.load(ir.VectorType(I16, LANES), step_at))
            at, out_at, _ = e.loop(blocks, [at, out_at, b.fmul(steps, of_rows)], block)
            return [at, out_at, b.add(step_at, I64(2 * LANES))]

        e.loop(groups, [weight, out, step], group)

    return emitted(9, write)


@compiled(parallel=True)
def _as_rows(weight: Any, steps: Any, bits: int, blocks: int, levels: Any, scales: Any) -> None:
    groups, half = steps.shape[1], 1 << (bits - 1)
    for tile in prange(weight.shape[0]):
        inverse = np.empty(TILE, np.float32)
        for r in range(TILE):
            largest = np.float32(0)
            for g in range(groups):
                largest = max(
                    largest, abs(np.uint32(np.uint32(steps[tile, g, r]) << np.uint32(16)).view(np.float32))
                )
            # of 8 levels −8 … 7, and of 127: no product of level and scale exceeds 127 row steps
            step = largest * np.float32(half if bits == 4 else half - 1) / np.float32(127)
            scales[tile * TILE + r] = step
            inverse[r] = np.float32(1) / step if step > np.float32(0) else np.float32(0)
        _spread(
            weight[tile].ctypes.data, steps[tile].ctypes.data, groups, blocks, bits, half,
            levels[tile * TILE].ctypes.data, levels.shape[1], inverse.ctypes.data,
        )  # fmt: skip


@compiled(parallel=True)
def _round_rows(x: Any, whole: Any, scales: Any) -> None:
    width = x.shape[1]
    for row in prange(x.shape[0]):
        most, wrong = np.float32(0), np.float32(0)
        for k in range(width):
            most = max(most, abs(x[row, k]))
            wrong += x[row, k] * np.float32(0)  # NaN if any value is not finite, so that it is seen later
        inverse = np.float32(127) / most if most > np.float32(1e-30) else np.float32(0)
        scales[row] = most / np.float32(127) + wrong
        for k in range(width):
            whole[row, k] = np.int8(np.int32(np.rint(x[row, k] * inverse)))
        for k in range(width, whole.shape[1]):
            whole[row, k] = 0


@compiled(parallel=True)
def _scale(sums: Any, rows: Any, columns: Any, out: Any) -> None:
    for row in prange(out.shape[0]):
        for k in range(out.shape[1]):
            out[row, k] = np.float32(sums[row, k]) * rows[row] * columns[k]


@compiled(parallel=True)
def _scale_half(sums: Any, rows: Any, columns: Any, out: Any) -> None:
    for row in prange(out.shape[0]):
        for k in range(out.shape[1]):
            word = np.float32(np.float32(sums[row, k]) * rows[row] * columns[k]).view(np.uint32)
            word += np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))  # nearest, even on a tie
            out[row, k] = np.uint16(word >> np.uint32(16))


def as_rows(packed: Packed) -> tuple[Tensor, Tensor]:
    """A packed matrix as int8 [N, K padded to its group] with one scale a row, float32 [N]."""
    levels = torch.empty(len(packed.weight) * TILE, packed.padded, dtype=torch.int8)
    scales = torch.empty(len(levels))
    steps = packed.scale.contiguous().view(torch.int16).numpy().view(np.uint16)
    use_threads()
    blocks = packed.group // BLOCK
    _as_rows(packed.weight.numpy(), steps, packed.bits, blocks, levels.numpy(), scales.numpy())
    return levels[: packed.rows], scales[: packed.rows]


def product_of_many(packed: Packed, x: Tensor) -> Tensor:
    """x [B, K] → x Wᵀ [B, N] for B > 16; bfloat16 if x is, else float32."""
    if packed.bits not in BY_GROUPS:
        return product_by_rows(packed, x)
    out = product(packed, x)
    return out.bfloat16() if x.dtype == torch.bfloat16 else out


def product_by_rows(packed: Packed, x: Tensor) -> Tensor:
    """x [B, K] → x Wᵀ [B, N] for B > 16, x and W rounded to 8 bits a row; bfloat16 if x is, else float32."""
    levels, of_columns = as_rows(packed)
    values = x.detach().float().contiguous()
    whole, of_rows = torch.empty(len(x), packed.padded, dtype=torch.int8), torch.empty(len(x))
    _round_rows(values.numpy(), whole.numpy(), of_rows.numpy())
    sums = torch._int_mm(whole, levels.T)
    scales = of_rows.numpy(), of_columns.numpy()
    if x.dtype == torch.bfloat16:
        out = torch.empty(sums.shape, dtype=torch.bfloat16)
        _scale_half(sums.numpy(), *scales, out.view(torch.int16).numpy().view(np.uint16))
    else:
        out = torch.empty(sums.shape)
        _scale(sums.numpy(), *scales, out.numpy())
    return out
