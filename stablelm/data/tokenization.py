"""Training texts to ids: special tokens off, so `<|endoftext|>` in a text never becomes a separator.

The unit is a batch of whole documents on one thread; processes make the speed (executors/local.py)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.tokenizer import Tokenizer

BATCH_DOCUMENTS, BATCH_BYTES = 256, 4 << 20


def encode(tokenizer: Tokenizer, texts: Sequence[str], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
    """Ids of each text, [tokens], of `dtype`."""
    return tokenizer.document_arrays(texts, dtype)
