"""The two loops behind GPT-NeoX's order of samples that no array operation expresses.

Both walk through a state that each step changes: the place in the documents, the samples taken so far. Costs
0.8 to 2 ns a sample and source. Their plain twins are in the tests (tests/data/neox_reference.py)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.kernels.text.compilation import compiled


@compiled
def pack(sizes: NDArray[np.int32], documents: NDArray[np.int32], length: int, rows: NDArray[Any]) -> None:
    """Fills rows [samples + 1, 2]: where each sample begins, as (index into `documents`, offset in it).

    A sample is `length` + 1 tokens of the documents end to end; its last token is the first of the next."""
    at, offset = 0, 0
    rows[0, 0], rows[0, 1] = 0, 0
    for row in range(1, rows.shape[0]):
        wanted = length + 1
        while True:
            left = int(sizes[documents[at]]) - offset
            if left >= wanted:
                offset += wanted - 1
                break
            wanted -= left
            at += 1
            offset = 0
        rows[row, 0], rows[row, 1] = at, offset


@compiled
def blend(
    weights: NDArray[np.float64],
    taken: NDArray[np.int64],
    first: int,
    source: NDArray[np.uint8],
    sample: NDArray[np.int64],
) -> None:
    """Steps `first`, … of the blending: source and its sample, [steps]; `taken` [sources] goes on.

    Each step takes from the source furthest behind weight · max(step, 1), among equals the first."""
    for step in range(source.shape[0]):
        due = max(float(first + step), 1.0)
        best, furthest = 0, weights[0] * due - float(taken[0])
        for i in range(1, weights.shape[0]):
            behind = weights[i] * due - float(taken[i])
            if behind > furthest:
                best, furthest = i, behind
        source[step] = best
        sample[step] = taken[best]
        taken[best] += 1
