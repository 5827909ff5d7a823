"""Products with packed weights that have a gradient: training upon a quantised model (Dettmers et al., 2023).

y = x Ŵᵀ and dL/dx = dL/dy Ŵ, where Ŵ is the matrix that the packed one means, in the precision of x; Ŵ itself
is frozen. It is made dense a piece at a time (`PIECE` numbers, some MB), in the forward pass, in a
recomputation and in the backward pass each anew, and never kept. The fast product of many rows
(`quantization.many`) rounds x to 8 bits and has no gradient: a step would be taken for another function than
the one computed. Costs beside dense weights: about 1 ns a weight and pass on one core.

On a GPU Triton's kernel makes them, larger ones, and the product is an operator that compiled blocks hold
whole. Without Numba or Triton, or in float64, PyTorch's operators do: slower, same numbers."""

from typing import Any

import torch
from torch import Tensor

from stablelm.kernels.cpu.packing import TILE, Packed, dense
from stablelm.model.bfloat16_products import widens

PIECE = 1 << 20
"""Numbers that are dense at once, or the smallest piece there is: two tiles of rows, a group of columns."""
PIECE_OF_A_GPU = 1 << 25
"""The same on a GPU, where small products leave most of it idle: 67 MB in bf16, any matrix of a block of the
2.8B model at once."""


def exact_product(packed: Packed, x: Tensor) -> Tensor:
    """x [B, K] → x Ŵᵀ [B, N] in the dtype of x, with a gradient for x."""
    if packed.weight.is_cuda:
        sizes = packed.bits, packed.group, packed.rows, packed.columns
        out: Tensor = _times(x, packed.weight, packed.scale, *sizes)
    else:
        out = _uncompiled(x, Frozen(packed))
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]  # Numba's kernels are seen by no compiler
def _uncompiled(x: Tensor, matrix: "Frozen") -> Tensor:
    out: Tensor = _Product.apply(x, matrix)  # type: ignore[no-untyped-call]
    return out


class Frozen:
    """A packed matrix Ŵ [rows, columns] as a factor (`model.head.FrozenMatrix`)."""

    def __init__(self, packed: Packed) -> None:
        self.packed, self.rows = packed, packed.rows

    def times(self, x: Tensor, out: Tensor) -> None:
        """Writes x [B, K] Ŵᵀ into out [B, N]."""
        packed, pieces = self.packed, _Pieces(self.packed, x)
        step = max(2, _numbers(packed) // (TILE * packed.padded))
        whole = range(packed.scale.shape[1])
        for first in range(0, len(packed.weight), step):
            tiles = range(first, min(first + step, len(packed.weight)))
            rows = slice(TILE * tiles.start, min(TILE * tiles.stop, packed.rows))
            if rows.start < packed.rows:
                out[:, rows] = pieces.x @ pieces.dense(tiles, whole).T

    def back(self, y: Tensor, out: Tensor) -> None:
        """Writes y [B, N] Ŵ into out [B, K]."""
        packed, pieces = self.packed, _Pieces(self.packed, y)
        step = max(1, _numbers(packed) // (TILE * len(packed.weight) * packed.group))
        whole, count = range(len(packed.weight)), packed.scale.shape[1]
        for first in range(0, count, step):
            groups = range(first, min(first + step, count))
            columns = slice(packed.group * groups.start, min(packed.group * groups.stop, packed.columns))
            out[:, columns] = pieces.x @ pieces.dense(whole, groups)


def _numbers(packed: Packed) -> int:
    return PIECE_OF_A_GPU if packed.weight.is_cuda else PIECE


class _Pieces:
    """The other factor, and pieces of Ŵ in the precision of the product, one after another in one place."""

    def __init__(self, packed: Packed, x: Tensor) -> None:
        self.packed, self.precision = packed, x.dtype
        self.x = x.float() if widens(x) else x
        self._room: Tensor | None = None

    def dense(self, tiles: range, groups: range) -> Tensor:
        """Ŵ in some tiles and groups, without padding; valid until the next is asked for."""
        packed, dtype = self.packed, self.x.dtype
        rows = min(TILE * len(tiles), packed.rows - TILE * tiles.start)
        columns = min(packed.group * len(groups), packed.columns - packed.group * groups.start)
        if packed.weight.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
            try:
                from stablelm.kernels.cpu.expansion import expand
            except ImportError:  # no Numba
                pass
            else:
                size = TILE * len(tiles) * packed.group * len(groups)
                if self._room is None or len(self._room) < size:
                    self._room = torch.empty(size, dtype=dtype)
                rounded = self.precision != dtype
                return expand(packed, tiles, groups, dtype, rounded, self._room)[:rows, :columns]
        if packed.weight.is_cuda and dtype != torch.float64:
            try:
                from stablelm.kernels.gpu.expansion import expand as expand_there
            except ImportError:  # no Triton
                pass
            else:
                return expand_there(packed, tiles, groups, dtype)
        weight = packed.weight.view(*packed.scale.shape[:2], -1)  # [tiles, groups, bytes]
        some = slice(tiles.start, tiles.stop), slice(groups.start, groups.stop)
        weight = weight[some].flatten(1).contiguous()
        part = Packed(packed.bits, packed.group, rows, columns, weight, packed.scale[some])
        return dense(part, self.precision).to(dtype)


class _Product(torch.autograd.Function):
    """x, Ŵ → x Ŵᵀ; keeps nothing but the packed matrix, which is there anyway.

    Not the operator below, because modes that count memory see into it, and not into operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Frozen) -> Tensor:
        ctx.matrix = matrix
        out = x.new_empty(len(x), matrix.rows)
        matrix.times(x, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        out = upstream[0].new_empty(len(upstream[0]), ctx.matrix.packed.columns)
        ctx.matrix.back(upstream[0], out)
        return out, None


@torch.library.custom_op("stablelm::packed_product", mutates_args=())
def _times(
    x: Tensor, weight: Tensor, scale: Tensor, bits: int, group: int, rows: int, columns: int
) -> Tensor:
    out = x.new_empty(len(x), rows)
    Frozen(Packed(bits, group, rows, columns, weight, scale)).times(x, out)
    return out


@torch.library.custom_op("stablelm::packed_product_back", mutates_args=())
def _back(y: Tensor, weight: Tensor, scale: Tensor, bits: int, group: int, rows: int, columns: int) -> Tensor:
    out = y.new_empty(len(y), columns)
    Frozen(Packed(bits, group, rows, columns, weight, scale)).back(y, out)
    return out


@_times.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bits: int, group: int, rows: int, columns: int) -> Tensor:
    return x.new_empty(len(x), rows)


@_back.register_fake
def _(y: Tensor, weight: Tensor, scale: Tensor, bits: int, group: int, rows: int, columns: int) -> Tensor:
    return y.new_empty(len(y), columns)


def _keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    _, weight, scale, *ctx.sizes = inputs
    ctx.save_for_backward(weight, scale)


def _gradient(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return _back(upstream, *ctx.saved_tensors, *ctx.sizes), *[None] * 6


_times.register_autograd(_gradient, setup_context=_keep)
