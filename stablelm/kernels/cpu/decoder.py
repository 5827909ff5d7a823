"""A whole pass over a few tokens in one call: blocks, final norm, head; nothing of Python between them.

Five parallel regions a block: q, k, v together; attention with its append; the output projection; gate and up
together; down. What lies between is some microseconds for one row. The residual stream and everything else
are float32, only what enters a product of packed weights is rounded, to 8 bits a group. Matrices are read
where they lie (mapped files included): q, k, v and gate, up are fused by the order of the work, not by a
copy. At most `MOST_ROWS` rows: their buffers are all the memory this takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from stablelm.kernels.cpu.attention import attend
from stablelm.kernels.cpu.compilation import compiled, is_kept, use_threads
from stablelm.kernels.cpu.packing import GROUPS, TILE, Packed
from stablelm.kernels.cpu.products import MOST_ROWS, products, room, table
from stablelm.kernels.cpu.rows import BLOCK, normalize, ready, swiglu
from stablelm.kernels.cpu.vectors import LANES

Matrix = Packed | Tensor
_MATRICES = 7


@dataclass(frozen=True)
class BlockWeights:
    """One block. Norms are (weight, bias or None) of [h]; biases [N] or None; head norms [H, D] or None."""

    norms: Sequence[tuple[Tensor, Tensor | None]]
    """Before attention and before the feed-forward network; only the first where they run in parallel."""
    qkv: Sequence[Matrix]
    biases: Sequence[Tensor | None]
    """Of q, k and v."""
    head_norms: Sequence[Tensor | None]
    """Of q and k."""
    out: Matrix
    gate_up: Sequence[Matrix]
    down: Matrix


def is_compiled() -> bool:
    """Whether the step is at hand in machine code; the first one on a machine waits for it, half a minute."""
    return is_kept(_run)


class Decoder:
    """The network, ready to be run."""

    def __init__(
        self, blocks: Sequence[BlockWeights], norm: tuple[Tensor, Tensor | None], head: Matrix, head_dim: int,
        eps: float,
    ) -> None:  # fmt: skip
        one = blocks[0]
        hidden, wide = rows_of(one.out), rows_of(one.gate_up[0])
        sizes = [rows_of(matrix) for matrix in one.qkv]
        self.head_dim, self._eps, self.parallel = head_dim, np.array([eps], np.float32), len(one.norms) == 1
        self.vocabulary, self.hidden, self.wide = rows_of(head), hidden, wide
        self._given = room(MOST_ROWS, max(hidden, wide, sizes[0]))
        self._x, self._y, self._out, self._down = (_buffer(hidden) for _ in range(4))
        # never whole rows of heads, so that there is one type of arrays, and one compilation, for all sizes
        self._qkv = [_buffer(size + 1) for size in sizes]
        self._heads = [
            _by_heads(buffer, size, head_dim) for buffer, size in zip(self._qkv, sizes, strict=True)
        ]
        self._attended, self._gate, self._up = _buffer(sizes[0]), _buffer(wide), _buffer(wide)
        self._logits = _buffer(self.vocabulary)
        padded = -(-head_dim // LANES) * LANES
        self._room = np.zeros((MOST_ROWS, sizes[0] // head_dim, 2 * padded + LANES), np.float32)
        tables: list[list[int]] = []
        for block in blocks:
            places = [*self._qkv, self._out, self._gate, self._up, self._down]
            matrices = [*block.qkv, block.out, *block.gate_up, block.down]
            tables += [table(m, self._given, place) for m, place in zip(matrices, places, strict=True)]
        tables.append(table(head, self._given, self._logits))
        self._tables = np.array(tables, np.int64)
        pairs = [pair for block in blocks for pair in (block.norms[0], block.norms[-1])]
        self._norms = np.stack([_norm(pair) for pair in (*pairs, norm)])
        biased = any(bias is not None for bias in one.biases)
        self._biases = np.zeros((len(blocks), sum(sizes) if biased else 0), np.float32)
        for row, block in zip(self._biases, blocks, strict=True):
            for bias, part in zip(block.biases, np.split(row, np.cumsum(sizes)[:-1]), strict=True):
                if bias is not None:
                    part[:] = bias.detach().float().numpy()
        self._head_norms = [
            np.stack([_array(block.head_norms[which]) for block in blocks]) for which in (0, 1)
        ]
        self._kept = blocks, norm, head  # their memory is in the tables

    def run(
        self, x: Tensor, count: int, starts: Tensor, first: int, cos: Tensor, sin: Tensor, store: Any,
        scales: Any, kind: int, last: bool,
    ) -> Tensor:  # fmt: skip
        """`count` tokens more of each of B texts, B · count ≤ `MOST_ROWS` → logits float32 [B · count, V], or
        of the `last` tokens alone [B, V].

        x [B · count, h] embedded; starts [B] tokens before; cos, sin [B · count, rotary/2]; store uint8
        [layers, 2, texts, K, tokens, bytes of a head] and scales float32 [layers, 2, texts, K, tokens] of
        `kind` (see attention.py), where the texts are from `first` on."""
        rows = len(x)
        assert rows == count * len(starts) <= MOST_ROWS
        self._x[:rows, : self.hidden] = x.float().numpy()
        use_threads()
        run: Any = _run
        run(
            rows, count, starts.numpy(), first, self._tables, self._norms, self._biases, *self._head_norms,
            *(x.float().contiguous().numpy() for x in (cos, sin)), self._eps, self.parallel, store, scales,
            kind, self._x, self._y, self._out, self._down, self._qkv[0], self._qkv[1], self._qkv[2],
            *self._heads, self._attended, self._gate, self._up, self.wide, self._given, self._room, last,
        )  # fmt: skip
        picked = len(starts) if last else rows
        return torch.from_numpy(self._logits[:picked, : self.vocabulary].copy())


def rows_of(matrix: Matrix) -> int:
    """N of W [N, K]."""
    return matrix.shape[0] if isinstance(matrix, Tensor) else matrix.rows


def _buffer(width: int) -> Any:
    most = max(*GROUPS, 2 * TILE)
    return np.zeros((MOST_ROWS, -(-width // most) * most), np.float32)


def _by_heads(buffer: Any, width: int, head_dim: int) -> Any:
    return as_strided(buffer, (MOST_ROWS, width // head_dim, head_dim), (buffer.strides[0], 4 * head_dim, 4))


def _array(tensor: Tensor | None) -> Any:
    return np.zeros((0, 0), np.float32) if tensor is None else tensor.detach().float().numpy()


def _norm(pair: tuple[Tensor, Tensor | None]) -> Any:
    weight = pair[0].detach().float()
    bias = torch.zeros_like(weight) if pair[1] is None else pair[1].detach().float()
    return torch.stack([weight, bias]).numpy()


@compiled(exact=True)
def _add(rows: int, x: Any, bias: Any) -> None:
    for row in range(rows):
        for k in range(bias.shape[0]):
            x[row, k] += bias[k]


@compiled(exact=True)
def _run(
    rows: int, count: int, starts: Any, first: int, tables: Any, norms: Any, biases: Any, q_norms: Any,
    k_norms: Any, cos: Any, sin: Any, eps: Any, parallel: bool, store: Any, scales: Any, kind: int, x: Any,
    y: Any, o: Any, d: Any, q: Any, k: Any, v: Any, q_heads: Any, k_heads: Any, v_heads: Any, attended: Any,
    gate: Any, up: Any, wide: int, given: Any, work: Any, last: bool,
) -> None:  # fmt: skip
    layers, hidden = biases.shape[0], norms.shape[2]
    queries, shared = q_heads.shape[1] * q_heads.shape[2], k_heads.shape[1] * k_heads.shape[2]
    o[:rows] = 0
    d[:rows] = 0
    for layer in range(layers):
        t = _MATRICES * layer
        bits, group = tables[t, 13], tables[t, 10] * BLOCK
        normalize(rows, x, d, o, parallel, norms[2 * layer], eps, y, bits, group, given)
        products(tables[t : t + 3], rows)
        if biases.shape[1]:
            _add(rows, q, biases[layer, :queries])
            _add(rows, k, biases[layer, queries : queries + shared])
            _add(rows, v, biases[layer, queries + shared :])
        attend(
            starts, first, count, q_heads, k_heads, v_heads, cos, sin, q_norms[layer], k_norms[layer], eps[0],
            store[layer], scales[layer], kind, work, attended,
        )  # fmt: skip
        for row in range(rows):
            ready(attended, row, queries, tables[t + 3, 13], tables[t + 3, 10] * BLOCK, given)
        products(tables[t + 3 : t + 4], rows)
        bits, group = tables[t + 4, 13], tables[t + 4, 10] * BLOCK
        if parallel:
            for row in range(rows):
                ready(y, row, hidden, bits, group, given)
        else:
            normalize(rows, x, o, d, False, norms[2 * layer + 1], eps, y, bits, group, given)
        products(tables[t + 4 : t + 6], rows)
        swiglu(rows, gate, up, wide, tables[t + 6, 13], tables[t + 6, 10] * BLOCK, given)
        products(tables[t + 6 : t + 7], rows)
    t = _MATRICES * layers
    bits, group = tables[t, 13], tables[t, 10] * BLOCK
    normalize(rows, x, d, o, parallel, norms[2 * layers], eps, y, bits, group, given)
    picked = rows
    if last:
        picked = starts.shape[0]
        for text in range(picked):
            y[text] = y[text * count + count - 1]
            ready(y, text, hidden, bits, group, given)
    products(tables[t : t + 1], picked)
