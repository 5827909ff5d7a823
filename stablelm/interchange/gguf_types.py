"""Numbers as GGUF stores them: float32, float16, bfloat16, and llama.cpp's blocks of 4, 6 and 8 bits.

The same bytes as llama.cpp's own quantiser for Q8_0, Q4_0 and Q6_K: each value goes through the same float32
operations in the same order (those of ggml-quants.c as x86-64 runs them; where a compiler fuses multiply and
add, as on ARM, llama.cpp may round a value in the middle between two levels the other way). Blocks are worked
on a quarter of a million values at a time, on all cores. Reading back goes through the `gguf` package."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablelm.interchange.gguf_header import GGUFTensor, Header, package

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READABLE = (*DENSE, "Q8_0", "Q4_0", "Q4_K", "Q6_K")
LARGEST = {
    "F32": 3.4028234e38, "F16": 65504.0, "BF16": 3.3895313e38, "Q8_0": 65504.0 * 127, "Q4_0": 65504.0 * 8,
    "Q6_K": 65504.0 * 4096,
}  # fmt: skip
"""The largest magnitude that each type holds: a block's scale is a float16."""
_CHUNK = 1 << 18
_GROUP = 16
_EPSILON = np.float32(1e-15)


def stored_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes that a tensor of this shape takes."""
    gguf = package()
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(np.prod(shape, dtype=np.int64)) // int(block) * int(nbytes)


def encode(tensor: Tensor, kind: str) -> Bytes:
    """The bytes of a tensor as `kind`, one-dimensional."""
    tensor = tensor.detach().to("cpu")
    if kind == "BF16":
        return _flat(tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy())
    if kind == "F16":
        return _flat(tensor.to(torch.float16).contiguous().numpy())
    values = _flat(tensor.float().contiguous().numpy())
    return values if kind == "F32" else quantize(values.view(np.float32).reshape(tensor.shape), kind)


def quantize(values: Floats, kind: str) -> Bytes:
    """Rows of finite float32 in blocks of "Q8_0", "Q4_0" (32 values) or "Q6_K" (256), one-dimensional."""
    width, function = {"Q8_0": (32, _q8_0), "Q4_0": (32, _q4_0), "Q6_K": (256, _q6_k)}[kind]
    return _in_parallel(function, values.reshape(-1, width))


def decode(header: Header, tensor: GGUFTensor) -> Tensor:
    """A tensor of a file: memory-mapped when it is stored as F32, F16 or BF16, else computed as float32."""
    raw = header.data[tensor.offset : tensor.offset + tensor.nbytes]
    if tensor.type in DENSE:
        dtype = DENSE[tensor.type]
        plain = np.asarray(raw).view(np.float32 if dtype == torch.float32 else np.int16)
        return torch.from_numpy(plain).view(dtype).view(tensor.shape)
    gguf = package()
    kind = gguf.GGMLQuantizationType[tensor.type]
    rows = np.asarray(raw).reshape(*tensor.shape[:-1], -1)
    rows = rows.reshape(-1, rows.shape[-1])
    values = _in_parallel(lambda part: gguf.quants.dequantize(part, kind), rows)
    return torch.from_numpy(values).view(tensor.shape)


def _flat(array: NDArray[Any]) -> Bytes:
    return array.reshape(-1).view(np.uint8)


def _in_parallel(function: Callable[[NDArray[Any]], NDArray[Any]], blocks: NDArray[Any]) -> NDArray[Any]:
    """`function` of the blocks, some thousand at a time; numpy lets other threads run meanwhile."""
    step = max(1, _CHUNK // blocks.shape[1])

    def quietly(at: int) -> NDArray[Any]:
        with np.errstate(all="ignore"):  # of a NaN scale in a damaged file, and 1/d of a block of zeros
            return function(blocks[at : at + step]).reshape(-1)

    starts = range(0, len(blocks), step)
    with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as pool:
        return np.concatenate(list(pool.map(quietly, starts)))


def _q8_0(blocks: Floats) -> Bytes:
    """x [n, 32] → [n, 34]: a float16 scale, 32 signed bytes."""
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    scaled = blocks * np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    whole = np.trunc(scaled)
    rounded = whole + np.trunc((scaled - whole) * np.float32(2))  # halves go away from zero
    return np.concatenate(
        [scale.astype(np.float16).view(np.uint8), rounded.astype(np.int8).view(np.uint8)], axis=1
    )


def _q4_0(blocks: Floats) -> Bytes:
    """x [n, 32] → [n, 18]: a float16 scale, 32 times 4 bits; the largest magnitude becomes level 0."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = largest / np.float32(-8)
    scaled = blocks * np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    levels = np.minimum((scaled + np.float32(8.5)).astype(np.uint8), 15)
    return np.concatenate(
        [scale.astype(np.float16).view(np.uint8), levels[:, :16] | (levels[:, 16:] << 4)], axis=1
    )


def _q6_k(blocks: Floats) -> Bytes:
    """x [n, 256] → [n, 210]: 16 groups of 16 values in 6 bits, a signed 8-bit scale each, one float16."""
    count = len(blocks)
    groups = np.ascontiguousarray(blocks.reshape(-1, _GROUP).T)  # [16 values, 16 n groups]
    levels, scales = _search(groups)
    scales = scales.reshape(count, _GROUP)  # [n, 16]
    largest = np.take_along_axis(scales, np.abs(scales).argmax(1)[:, None], 1)  # [n, 1], with its sign
    empty = np.abs(largest) < _EPSILON
    inverse = np.where(empty, np.float32(0), np.float32(-128) / largest)
    scale = np.where(empty, np.float32(0), np.float32(1) / inverse).astype(np.float16)  # [n, 1]
    parts = np.minimum(np.rint(inverse * scales), 127).astype(np.int8)  # [n, 16]
    steps = (scale.astype(np.float32) * parts).reshape(-1)  # [16 n]
    rounded = np.clip(np.rint(groups / steps), -32, 31) + np.float32(32)
    whole: Bytes = np.where(steps == 0, levels, rounded).astype(np.uint8)
    whole[:, np.repeat(empty.reshape(-1), _GROUP)] = 0
    quarters = np.ascontiguousarray(whole.T).reshape(count, 2, 4, 32)
    low, high = quarters & 15, quarters >> 4
    low = low[:, :, :2] | (low[:, :, 2:] << 4)  # [n, 2, 2, 32]
    high = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)  # [n, 2, 32]
    pieces = low.reshape(count, 128), high.reshape(count, 64), parts.view(np.uint8), scale.view(np.uint8)
    return np.concatenate(pieces, axis=1)


def _search(groups: Floats) -> tuple[Floats, Floats]:
    """Levels [16, n] from 0 to 63 and scales [n] of groups [16, n]: the best of 19 scales by squared error,
    each value weighted by its square (`make_qx_quants`, type 1)."""
    largest = np.take_along_axis(groups, np.abs(groups).argmax(0)[None], 0)[0]  # [n], with its sign
    weights = groups * groups
    weighted = weights * groups

    def attempt(inverse: Floats) -> tuple[Floats, Floats, Floats]:
        levels = np.clip(np.rint(inverse * groups), -32, 31)
        first, second = np.zeros_like(largest), np.zeros_like(largest)
        for row in range(_GROUP):  # in order: float32 sums depend on it
            first += weighted[row] * levels[row]
            second += weights[row] * levels[row] * levels[row]
        return levels, first, second

    levels, first, second = attempt(np.float32(-32) / largest)
    scale = np.where(second != 0, first / second, np.float32(0))
    best = scale * first
    for tenths in (*range(-9, 0), *range(1, 10)):
        offset = np.float32(32) + np.float32(0.1) * np.float32(tenths)
        tried, first, second = attempt(-offset / largest)
        better = (second > 0) & (first * first > best * second)
        levels = np.where(better, tried, levels)
        scale = np.where(better, first / second, scale)
        best = np.where(better, scale * first, best)
    empty = np.abs(largest) < _EPSILON
    return np.where(empty, np.float32(0), levels + np.float32(32)), np.where(empty, np.float32(0), scale)
