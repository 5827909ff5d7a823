"""Rounding matrices: the scale of each group that loses least.

For 4 bits a group's scale is searched: the largest magnitude on level −8 or on 7 (so a scale may be
negative), or up to a third beyond the end and clipped; the level and scale with the smallest Σ importance ·
(w − scale · level)² win, then the scale is fitted to its levels by least squares. Every candidate is rounded
to bfloat16 before its levels are chosen. For 8 bits the largest magnitude is level 127, never clipped.
Costs 24 passes over a group in the first cache. Rejected: a search in PyTorch (24 passes over memory)."""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from stablelm.kernels.cpu.compilation import compiled, use_threads

_STEPS = 12
"""Candidates on each side: the end of the range at 1, 1 − 1/36, … of the largest magnitude."""


def round_groups(
    weight: Tensor, bits: int, group: int, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """W [N, K] → levels int8 [N, K] and scales [N, groups] (float32 that are bfloat16).

    `importance` [K] weighs the squared errors of the columns: the mean square of what they are multiplied
    with."""
    values = weight.detach().float().contiguous()
    rows, columns = values.shape
    weights = torch.ones(columns) if importance is None else importance.float().contiguous()
    levels = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, -(-columns // group))
    use_threads()
    _round_groups(values.numpy(), weights.numpy(), bits, group, levels.numpy(), scales.numpy())
    return levels, scales


@compiled()
def _bfloat16(x: Any) -> Any:
    """The nearest bfloat16, as float32 (finite x)."""
    word = np.float32(x).view(np.uint32)
    word = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.uint32(word).view(np.float32)


@compiled()
def _error(w: Any, importance: Any, scale: Any, low: Any, high: Any) -> Any:
    inverse = np.float32(1) / scale
    total = np.float32(0)
    for k in range(w.shape[0]):
        level = min(max(np.rint(w[k] * inverse), low), high)
        wrong = w[k] - level * scale
        total += importance[k] * wrong * wrong
    return total


@compiled()
def _fitted(w: Any, importance: Any, scale: Any, low: Any, high: Any) -> Any:
    inverse = np.float32(1) / scale
    above, below = np.float32(0), np.float32(0)
    for k in range(w.shape[0]):
        level = min(max(np.rint(w[k] * inverse), low), high)
        above += importance[k] * level * w[k]
        below += importance[k] * level * level
    return _bfloat16(above / below) if below > 0 and above != 0 else scale


@compiled(parallel=True)
def _round_groups(values: Any, importance: Any, bits: int, group: int, levels: Any, scales: Any) -> None:
    rows, columns = values.shape
    low, high = (np.float32(-8), np.float32(7)) if bits == 4 else (np.float32(-127), np.float32(127))
    for row in prange(rows):
        for g in range(scales.shape[1]):
            start = g * group
            end = min(start + group, columns)
            w, weights = values[row, start:end], importance[start:end]
            extreme = np.float32(0)
            for k in range(end - start):
                if abs(w[k]) > abs(extreme):
                    extreme = w[k]
            if abs(extreme) < np.float32(1e-30):
                scales[row, g] = np.float32(1e-30)
                for k in range(end - start):
                    levels[row, start + k] = 0
                continue
            if bits == 8:
                best = _bfloat16(extreme / high)
                if abs(best) * high < abs(extreme):  # rounded down: the next bfloat16 does not clip
                    best = _bfloat16(best * np.float32(1.0078125))
            else:
                best, least = _bfloat16(extreme / low), np.float32(np.inf)
                for step in range(2 * _STEPS):
                    end_level = low if step < _STEPS else high
                    part = np.float32(1) - np.float32(step % _STEPS) / np.float32(3 * _STEPS)
                    scale = _bfloat16(extreme * part / end_level)
                    error = _error(w, weights, scale, low, high)
                    if error < least:
                        best, least = scale, error
                fitted = _fitted(w, weights, best, low, high)
                if _error(w, weights, fitted, low, high) < least:
                    best = fitted
            scales[row, g] = best
            inverse = np.float32(1) / best
            for k in range(end - start):
                levels[row, start + k] = np.int8(min(max(np.rint(w[k] * inverse), low), high))
