"""Keys and values of the tokens so far, in buffers allocated once.

Appending is a copy of the new tokens alone: n tokens cost n copies, not n²/2 as when tensors are
concatenated. Memory is config.kv_bytes_per_token() × capacity × batch, taken at the start, so a text that
fits at its first token fits at its last."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stablelm.config import ModelConfig
from stablelm.model import Mask
from stablelm.model.backends import AttentionFunction, sdpa


class KVCache:
    """Cache of a whole network for `batch` sequences of at most `capacity` tokens."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: AttentionFunction = sdpa,
    ) -> None:
        """`attention` is the kernel that reads the cache, normally `model.attention.function`."""
        self.attention = attention
        self.capacity = capacity
        self.length = 0
        shape = (2, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.layers: Sequence[_Layer] = [
            _Layer(self, torch.empty(shape, dtype=dtype, device=device))
            for _ in range(config.num_hidden_layers)
        ]

    def advance(self, count: int) -> None:
        """Counts tokens that every layer has appended."""
        self.length += count

    def trim(self, length: int) -> None:
        """Forgets the tokens after the first `length`; costs nothing."""
        assert 0 <= length <= self.length
        self.length = length

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i becomes a copy of row rows[i]: the beams of a search, or a batch without its ended rows."""
        for layer in self.layers:
            layer.select(rows)


class _Layer:
    def __init__(self, owner: KVCache, buffer: Tensor) -> None:
        self._owner, self._buffer = owner, buffer

    def select(self, rows: Sequence[int]) -> None:
        """Keeps copies of these rows."""
        self._buffer = self._buffer[:, list(rows)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Appends k, v [B, H, S, D]; queries see everything held and, causally, the new tokens."""
        start, new = self._owner.length, q.shape[2]
        end = start + new
        assert end <= self._owner.capacity, f"cache of {self._owner.capacity} tokens asked to hold {end}"
        self._buffer[0, :, :, start:end], self._buffer[1, :, :, start:end] = k, v
        keys, values = (k, v) if start == 0 else self._buffer[:, :, :, :end]
        return self._owner.attention(q, keys, values, mask)
