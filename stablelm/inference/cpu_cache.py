"""Keys and values as the CPU kernels read them: float32, bfloat16, or 8 bits with a scale a head and token.

One buffer for all layers, its tokens and dimensions padded to 16 with zeros. Each text has its own length, so
a batch needs no padding and no mask. Prefill writes through `CpuCache.text`, which keeps the `Cache` protocol
of the network: what a pass brings is attended to as it is, what earlier passes left is widened one layer at a
time. Memory is taken at the start; the system hands out its pages when they are first written."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.model import Mask
from stablelm.model.backends import AttentionFunction

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_LANES = 16


def bytes_per_token(config: ModelConfig, kind: str) -> int:
    """Bytes that one token of one text takes in all layers."""
    head = -(-config.head_dim // _LANES) * _LANES * KINDS[kind].itemsize + (4 if kind == "int8" else 0)
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head


def check_kind(kind: str | None) -> None:
    """`InputError` unless `kind` is None (the default of the model) or one that exists."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"cache = {kind!r} does not exist; choose {', '.join(KINDS)}.")


class CpuCache:
    """Of `batch` texts of at most `capacity` tokens."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, kind: str, attention: AttentionFunction
    ) -> None:
        self.config, self.kind, self.capacity, self.attention = config, kind, capacity, attention
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        """[texts]: tokens held."""
        self.element = KINDS[kind].itemsize
        tokens, size = -(-capacity // _LANES) * _LANES, -(-config.head_dim // _LANES) * _LANES
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, tokens)
        self.store = torch.zeros(*shape, size * self.element, dtype=torch.uint8)
        """[layers, keys and values, texts, key-value heads, tokens, bytes of a head]; texts may have gone."""
        self.scales = torch.zeros(shape if kind == "int8" else (*shape[:4], 0))
        """float32, value = level · scale; empty without 8 bits."""

    def text(self, number: int) -> "_Text":
        """One text, as the network writes and reads it."""
        return _Text(self, number)

    def tensors(self, length: int) -> dict[str, Tensor]:
        """The first `length` tokens of text 0, as views by name."""
        found = {"store": self.store[:, :, 0, :, :length]}
        return found | ({"scales": self.scales[:, :, 0, :, :length]} if self.kind == "int8" else {})

    def reorder(self, rows: Sequence[int]) -> None:
        """Text i becomes a copy of text rows[i]."""
        picked = list(rows)
        self.lengths = self.lengths[picked]
        if len(picked) > self.store.shape[2]:
            self.store = self.store[:, :, picked].contiguous()
            self.scales = self.scales[:, :, picked].contiguous()
            return
        for buffer in (self.store, self.scales):  # a layer at a time, in place: no second cache
            for layer in buffer:
                layer[:, : len(picked)] = layer[:, picked]

    def write(self, layer: int, text: int, k: Tensor, v: Tensor) -> None:
        """k, v [K, S, D] after the tokens that the text holds."""
        start = int(self.lengths[text])
        end, size = start + k.shape[1], k.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} tokens asked to hold {end}"
        for which, values in enumerate((k, v)):
            place = self.store[layer, which, text, :, start:end]  # [K, S, bytes]
            if self.kind == "int8":
                most = values.float().abs().amax(2, keepdim=True)
                inverse = torch.where(most > 1e-30, 127 / most, 0)
                place.view(torch.int8)[..., :size] = (values.float() * inverse).round()
                self.scales[layer, which, text, :, start:end] = most[..., 0] / 127
            else:
                place.view(KINDS[self.kind])[..., :size] = values

    def read(self, layer: int, text: int, which: int, end: int, dtype: torch.dtype) -> Tensor:
        """Keys (0) or values (1) of the first `end` tokens, [K, end, D]."""
        place = self.store[layer, which, text, :, :end].view(KINDS[self.kind])[..., : self.config.head_dim]
        if self.kind != "int8":
            return place.to(dtype)
        return (place * self.scales[layer, which, text, :, :end, None]).to(dtype)


class _Text:
    """One text of a `CpuCache` as a `Cache`."""

    def __init__(self, owner: CpuCache, number: int) -> None:
        self._owner, self._number, self.length = owner, number, int(owner.lengths[number])
        self.layers: Sequence[_Layer] = [
            _Layer(owner, number, layer) for layer in range(owner.config.num_hidden_layers)
        ]

    def advance(self, count: int) -> None:
        """Counts tokens that every layer has appended."""
        self.length += count
        self._owner.lengths[self._number] = self.length


class _Layer:
    def __init__(self, owner: CpuCache, text: int, layer: int) -> None:
        self._owner, self._text, self._layer = owner, text, layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Appends k, v [1, K, S, D]; queries see everything held and, causally, the new tokens."""
        owner, start = self._owner, int(self._owner.lengths[self._text])
        owner.write(self._layer, self._text, k[0], v[0])
        if start:
            k, v = (
                torch.cat((owner.read(self._layer, self._text, which, start, q.dtype)[None], new), dim=2)
                for which, new in enumerate((k, v))
            )
        return owner.attention(q, k, v, mask)


def rotation(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions [N], [N, rotary/2] each, rounded as the network in `dtype` rounds them.

    `model/rotary.py` in the same steps, but for the functions themselves, in float64: PyTorch's float32 ones
    differ in the last bit with the number of positions asked for at once."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    angles = (positions.float()[:, None] * (1.0 / config.rope_theta**exponents)).double()
    return angles.cos().float().to(dtype), angles.sin().float().to(dtype)
