"""Causal multi-head attention: projections, rotation, and a kernel from `backends.py`.

A key-value cache is anything that keeps the `LayerCache` protocol: it receives the new keys and values and
does the attending itself, so that an int8 cache never has to become dense."""

from typing import Protocol

from torch import Tensor, nn

from stablelm.config import ModelConfig
from stablelm.model.backends import AttentionFunction, Mask, sdpa
from stablelm.model.linear import Linear
from stablelm.model.normalization import HeadNorm
from stablelm.model.rotary import Rotary


class LayerCache(Protocol):
    """One layer's keys and values so far."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Appends k, v [B, K, S, D] and returns softmax(q kᵀ/√D) v over everything held, [B, H, S, D]."""
        ...


class Attention(nn.Module):
    """Queries, keys and values as separate matrices: export is a save, tensor parallelism a slice."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, bias, self.head_dim = config.hidden_size, config.use_qkv_bias, config.head_dim
        shared = config.num_key_value_heads * self.head_dim
        self.q_proj = Linear(hidden, hidden, bias)
        self.k_proj = Linear(hidden, shared, bias)
        self.v_proj = Linear(hidden, shared, bias)
        self.o_proj = Linear(hidden, hidden)
        if config.qk_layernorm:
            self.q_layernorm = HeadNorm(config.num_attention_heads, self.head_dim, config.layer_norm_eps)
            self.k_layernorm = HeadNorm(config.num_key_value_heads, self.head_dim, config.layer_norm_eps)
        self.normalizes = config.qk_layernorm
        self.attend: AttentionFunction = sdpa
        """The kernel, chosen once for the whole model (`StableLM.use_attention`)."""

    def forward(self, x: Tensor, rotary: Rotary, mask: Mask, cache: LayerCache | None = None) -> Tensor:
        """x [B, S, h] → [B, S, h]."""
        q, k, v = (
            self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, H, S, D]
        if self.normalizes:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        q, k = rotary(q), rotary(k)
        attended = (
            self.attend(q, k, v, mask) if cache is None else cache.attend(q, k, v, mask)
        )  # [B, H, S, D]
        return self.o_proj(attended.transpose(1, 2).flatten(2))  # [B, S, H*D]

    def _heads(self, x: Tensor) -> Tensor:
        # -1, not the head count: under tensor parallelism each process holds only some of the heads.
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
