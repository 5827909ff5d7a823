"""Causal multi-head attention.

The kernel is PyTorch's `scaled_dot_product_attention`, which takes its FlashAttention path on CPU and CUDA
for our head sizes. A key-value cache is anything that keeps the `LayerCache` protocol: it receives the new
keys and values and does the attending itself, so that an int8 cache never has to become dense."""

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from stablelm.model.linear import Linear
from stablelm.model.rotary import Rotary

Mask = Tensor | None
"""None: causal, nothing padded. Else bool [B, 1, S, T], True where query s may attend to key t."""


class LayerCache(Protocol):
    """One layer's keys and values so far."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Appends k, v [B, H, S, D] and returns softmax(q kᵀ/√D) v over everything held, [B, H, S, D]."""
        ...


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """softmax(q kᵀ/√D) v for q, k, v [B, H, S, D] of one pass without a cache."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class Attention(nn.Module):
    """Queries, keys and values as separate matrices: export is a save, tensor parallelism a slice."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.q_proj = Linear(hidden_size, hidden_size)
        self.k_proj = Linear(hidden_size, hidden_size)
        self.v_proj = Linear(hidden_size, hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, rotary: Rotary, mask: Mask, cache: LayerCache | None = None) -> Tensor:
        """x [B, S, h] → [B, S, h]."""
        q, k, v = (
            self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, H, S, D]
        q, k = rotary(q), rotary(k)
        attended = attend(q, k, v, mask) if cache is None else cache.attend(q, k, v, mask)  # [B, H, S, D]
        return self.o_proj(attended.transpose(1, 2).flatten(2))  # [B, S, H*D]

    def _heads(self, x: Tensor) -> Tensor:
        # -1, not the head count: under tensor parallelism each process holds only some of the heads.
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
