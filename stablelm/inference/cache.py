"""Keys and values of the tokens so far, in buffers allocated once.

Appending is a copy of the new tokens alone: n tokens cost n copies, not n²/2 as when tensors are
concatenated. Memory is config.kv_bytes_per_token() × capacity × batch, taken at the start, so a text that
fits at its first token fits at its last."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stablelm.config import ModelConfig
from stablelm.model import LayerCache, Mask
from stablelm.model.attention import attend


class KVCache:
    """Cache of a whole network for `batch` sequences of at most `capacity` tokens."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.capacity = capacity
        self.length = 0
        shape = (2, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.layers: Sequence[LayerCache] = [
            _Layer(self, torch.empty(shape, dtype=dtype, device=device))
            for _ in range(config.num_hidden_layers)
        ]

    def advance(self, count: int) -> None:
        """Counts tokens that every layer has appended."""
        self.length += count


class _Layer:
    def __init__(self, owner: KVCache, buffer: Tensor) -> None:
        self._owner, self._buffer = owner, buffer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Appends k, v [B, H, S, D]; queries see everything held and, causally, the new tokens."""
        start, new = self._owner.length, q.shape[2]
        end = start + new
        assert end <= self._owner.capacity, f"cache of {self._owner.capacity} tokens asked to hold {end}"
        self._buffer[0, :, :, start:end], self._buffer[1, :, :, start:end] = k, v
        if start == 0:
            return attend(q, k, v, mask)
        if mask is None and new > 1:  # is_causal would align the triangle with the first key, not the last
            held = torch.arange(end, device=q.device)
            mask = held <= held[start:, None]  # [S, T]
        keys, values = self._buffer[:, :, :, :end]
        grouped = q.shape[1] != keys.shape[1]
        return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=grouped)
