"""Weights as the CPU kernels read them, and the plain twin of their arithmetic.

A matrix lies in tiles of 16 rows, so that a vector register holds 16 rows and no sum crosses lanes. Within a
tile the columns follow each other, 64 bytes at a time:
  4 bits   16 rows × 4 columns in the low nibbles, the next 4 columns in the high ones; level + 8
  8 bits   16 rows × 4 columns; level + 128
Scales are bfloat16, [tile, group, 16 rows]: levels are chosen after the scale is rounded, so its precision
costs nothing, its range never overflows, and reading it is a shift on every CPU. Rows are padded to 32 (two
tiles go together) and columns to the group, with zeros.
bfloat16 matrices stay as PyTorch keeps them. Rejected: rows one after the other (a
horizontal sum a row), float16 scales (a library call where the CPU lacks F16C)."""

from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 16
GROUPS = (32, 64, 128)
DENSE = 16
"""`bits` of a bfloat16 matrix, which is not packed."""

SMALLEST = 1e-30
"""Activations of a group that are all below this count as zeros: 127 divided by it is still finite."""


@dataclass(frozen=True)
class Packed:
    """A matrix W [rows, columns] in tiles."""

    bits: int
    """4 or 8."""
    group: int
    rows: int
    columns: int
    weight: Tensor
    """uint8 [tiles, bytes]."""
    scale: Tensor
    """bfloat16 [tiles, groups, 16]."""

    @property
    def padded(self) -> int:
        """Columns with their padding."""
        return -(-self.columns // self.group) * self.group

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return self.weight.nbytes + self.scale.nbytes


def shapes(rows: int, columns: int, bits: int, group: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `weight` and `scale` of a packed matrix."""
    tiles, groups = -(-rows // (2 * TILE)) * 2, -(-columns // group)
    return (tiles, TILE * groups * group * bits // 8), (tiles, groups, TILE)


def pack(levels: Tensor, scale: Tensor, bits: int, group: int) -> Packed:
    """levels [N, K] (whole numbers, −8…7 or −127…127) and scale [N, groups] → tiles."""
    rows, columns = levels.shape
    assert bits in (4, 8) and group in GROUPS and scale.shape == (rows, -(-columns // group))
    raw = _tiles(levels.to(torch.int16) + (1 << bits - 1), group, 1 << bits - 1)
    steps = torch.nn.functional.pad(scale.to(torch.bfloat16), (0, 0, 0, -rows % (2 * TILE)))  # [N', groups]
    steps = steps.view(-1, TILE, steps.shape[1]).transpose(1, 2).contiguous()  # [tiles, groups, 16]
    return Packed(bits, group, rows, columns, _bytes(raw.to(torch.uint8), bits), steps)


def unpack(packed: Packed) -> tuple[Tensor, Tensor]:
    """levels int8 [N, K] and scale float32 [N, groups]."""
    tiles, half = len(packed.weight), 1 << packed.bits - 1
    if packed.bits == 4:
        raw = packed.weight.view(tiles, -1, TILE, 4)
        raw = torch.stack((raw & 15, raw >> 4), dim=2).flatten(1, 2)  # [tiles, K/4, 16, 4]
    else:
        raw = packed.weight.view(tiles, -1, TILE, 4)
    levels = (raw.to(torch.int16) - half).to(torch.int8).transpose(1, 2).flatten(2).flatten(0, 1)
    scale = packed.scale.transpose(1, 2).flatten(0, 1)
    return levels[: packed.rows, : packed.columns], scale[: packed.rows].float()


def dense(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """W [N, K] as the packed matrix means it."""
    levels, scale = unpack(packed)
    wide = scale.repeat_interleave(packed.group, 1)[:, : packed.columns]
    return (levels * wide).to(dtype)


def quantize_activations(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """x [B, K] → whole numbers −127…127 as float32 [B, groups, group], and their scales [B, groups]."""
    x = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % group)).view(len(x), -1, group)
    largest = x.abs().amax(2)
    inverse = torch.where(largest > SMALLEST, 127 / largest, 0)
    return (x * inverse.unsqueeze(2)).round(), largest / 127


def plain_product(packed: Packed | Tensor, x: Tensor) -> Tensor:
    """x [B, K] → x Wᵀ [B, N] in float32, by the arithmetic that the kernels are held to.

    With a packed matrix the activations are rounded to 8 bits a group, as the kernels round them."""
    if isinstance(packed, Tensor):
        return x.float() @ packed.float().T
    whole, steps = quantize_activations(x, packed.group)
    levels, scale = unpack(packed)
    wide = torch.nn.functional.pad(levels.float(), (0, packed.padded - packed.columns))
    sums = torch.einsum("bgk,ngk->bng", whole, wide.view(len(wide), -1, packed.group))
    return torch.einsum("bng,ng,bg->bn", sums, scale, steps)


def _tiles(values: Tensor, group: int, padding: int) -> Tensor:
    rows, columns = values.shape
    values = torch.nn.functional.pad(values, (0, -columns % group, 0, -rows % (2 * TILE)), value=padding)
    return values.view(-1, TILE, values.shape[1])  # [tiles, 16, K']


def _bytes(raw: Tensor, bits: int) -> Tensor:
    raw = raw.view(*raw.shape[:2], -1, 4).transpose(1, 2)  # [tiles, K/4, 16, 4]
    if bits == 4:
        raw = raw[:, 0::2] | (raw[:, 1::2] << 4)
    return raw.contiguous().flatten(1)
