"""Keys and values of the tokens so far, in buffers allocated once.

Appending is a copy of the new tokens alone: n tokens cost n copies, not n²/2 as when tensors are
concatenated. Memory is config.kv_bytes_per_token() × capacity × batch, taken at the start, so a text that
fits at its first token fits at its last."""

from collections.abc import Mapping, Sequence

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

    def tensors(self, length: int) -> dict[str, Tensor]:
        """Keys and values of the first `length` tokens of row 0, as views [2, K, length, D], by name."""
        return {f"layers.{n}": layer.held(length) for n, layer in enumerate(self.layers)}

    def fill(self, tensors: Mapping[str, Tensor], length: int) -> None:
        """Holds copies of the `tensors` of another cache like this, in every row, and nothing else."""
        for name, view in self.tensors(length).items():
            assert tensors[name].shape == view.shape
        for number, layer in enumerate(self.layers):
            layer.put(tensors[f"layers.{number}"])
        self.length = length


class _Layer:
    def __init__(self, owner: KVCache, buffer: Tensor) -> None:
        self._owner, self._buffer = owner, buffer

    def select(self, rows: Sequence[int]) -> None:
        """Keeps copies of these rows."""
        self._buffer = self._buffer[:, list(rows)]

    def held(self, length: int) -> Tensor:
        """[2, K, length, D] of row 0."""
        return self._buffer[:, 0, :, :length]

    def put(self, held: Tensor) -> None:
        """Copies [2, K, length, D] to the beginning of every row."""
        self._buffer[:, :, :, : held.shape[2]] = held[:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Appends k, v [B, H, S, D]; queries see everything held and, causally, the new tokens."""
        start, new = self._owner.length, q.shape[2]
        end = start + new
        assert end <= self._owner.capacity, f"cache of {self._owner.capacity} tokens asked to hold {end}"
        self._buffer[0, :, :, start:end], self._buffer[1, :, :, start:end] = k, v
        keys, values = (k, v) if start == 0 else self._buffer[:, :, :, :end]
        return self._owner.attention(q, keys, values, mask)
