"""Token ids to bytes: each id's bytes, copied from one table. About 0.6 GB of text a second.

Its plain twin is `Tokenizer.decode` (tests/data/test_search.py holds them together)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.kernels.text.compilation import compiled


@compiled
def spell(
    ids: NDArray[Any], ends: NDArray[np.int64], table: NDArray[np.uint8], places: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The bytes of `ids` [n], uint8; `places` [n] receives where each id's bytes end.

    `table` holds the bytes of id 0, 1, …; those of id i end at `ends[i]`. An id beyond the table has none."""
    total = 0
    for i in range(ids.shape[0]):
        number = ids[i]
        if number < ends.shape[0]:
            total += ends[number] - (ends[number - 1] if number > 0 else 0)
        places[i] = total
    out = np.empty(total, dtype=np.uint8)
    at = 0
    for i in range(ids.shape[0]):
        number = ids[i]
        if number < ends.shape[0]:
            for source in range(ends[number - 1] if number > 0 else 0, ends[number]):
                out[at] = table[source]
                at += 1
    return out
