"""StableLM-3B-4E1T's network: embed → blocks → norm → head, as in facts of the released model.

Pre-norm, sequential residual, LayerNorm with bias, rotary on a quarter of each head, SwiGLU, untied head, no
other biases. Parameter names are Hugging Face's, so saving is all that export needs. Knows nothing of
training, files or meshes."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from stablelm.config import InputError, ModelConfig
from stablelm.model.attention import Attention, LayerCache
from stablelm.model.backends import Backend, Documents, Mask, choose
from stablelm.model.feedforward import FeedForward
from stablelm.model.fused import PYTORCH, Fused, choose_fused
from stablelm.model.head import Head
from stablelm.model.initialization import initialize
from stablelm.model.normalization import LayerNorm
from stablelm.model.rotary import Rotary


class Cache(Protocol):
    """Keys and values of all layers; `length` tokens are held, `advance(n)` is called once a forward pass."""

    length: int

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One cache for each block."""
        ...

    def advance(self, count: int) -> None:
        """Counts `count` new tokens, after every layer has appended them."""
        ...


class Embedding(nn.Embedding):
    """Token embedding, left uninitialised: `initialize` fills it."""

    def reset_parameters(self) -> None:
        """Does nothing: weights are drawn by name, or loaded."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); in parallel, x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        norm = (config.hidden_size, config.layer_norm_eps, config.use_norm_bias)
        self.input_layernorm = LayerNorm(*norm)
        self.self_attn = Attention(config)
        self.parallel = config.use_parallel_residual
        if not self.parallel:
            self.post_attention_layernorm = LayerNorm(*norm)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, rotary: Rotary, mask: Mask, cache: LayerCache | None) -> Tensor:
        """x [B, S, h] → [B, S, h]."""
        normed = self.input_layernorm(x)
        attended: Tensor = self.self_attn(normed, rotary, mask, cache)
        if self.parallel:
            both: Tensor = x + attended + self.mlp(normed)
            return both
        x, normed = self.post_attention_layernorm.after(x, attended)
        out: Tensor = x + self.mlp(normed)
        return out


class Backbone(nn.Module):
    """Everything below the head, under the name `model.` that Hugging Face gives it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, config.use_norm_bias)


class StableLM(nn.Module):
    """The language model. Weights start from `seed` (nothing is drawn on the meta device)."""

    def __init__(self, config: ModelConfig, seed: int = 1234) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size)
        self.compute_dtype: torch.dtype | None = None
        """Arithmetic of forward and backward; None computes in the dtype of the weights."""
        self.attention: Backend = choose(None, torch.device("cpu"), self.dtype)
        """The attention kernel in use, with the reason for it; `use_attention` changes it."""
        self.fused: Fused = PYTORCH
        """What computes rotation, SwiGLU and norms; `use_kernels` changes it."""
        if self.device.type != "meta":
            initialize(self, config, seed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the weights are kept (the embedding's: it is never quantised)."""
        return self.model.embed_tokens.weight.dtype

    def use_attention(self, name: str | None = None) -> Backend:
        """Chooses the attention kernel, for where the model is: None, "sdpa", "eager",
        "flash_attention_2"."""
        self.attention = choose(name, self.device, self.compute_dtype or self.dtype)
        for block in self.model.layers:
            block.self_attn.attend = self.attention.function  # type: ignore[union-attr]
        return self.attention

    def use_kernels(self, name: str | None = None, device: torch.device | None = None) -> Fused:
        """Chooses what computes rotation, SwiGLU and norms: None, "pytorch", "triton"; `device`: where the
        model will be, by default where it is."""
        self.fused = choose_fused(name, device or self.device)
        for block in self.model.layers:
            block.mlp.gated = self.fused.swiglu  # type: ignore[union-attr]
            if not block.parallel:
                block.post_attention_layernorm.fused = self.fused.add_norm  # type: ignore[union-attr]
        return self.fused

    def num_parameters(self) -> int:
        """Weights, both embeddings included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        document_ids: Tensor | None = None,
        collect: list[Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """input_ids [B, S] → [B, S, h] after the final norm.

        `attention_mask` [B, T] is 1 for real tokens among the T = cached + S so far (padding on either side);
        positions count real tokens only. With a cache the S tokens follow the `cache.length` that it holds.
        `document_ids` [B, S] keeps attention within runs of equal numbers and starts positions anew in each;
        it goes with neither of the other two. `collect` receives what enters the first block and what leaves
        each, [B, S, h], layers + 1 tensors. With `positions` [B, S] the `attention_mask` is bool
        [B, 1, S, S], True where a query may look: several continuations of one beginning fit in a row."""
        past, length = (cache.length if cache is not None else 0), input_ids.shape[1]
        mask: Mask = None
        if document_ids is not None:
            if attention_mask is not None or cache is not None:
                raise InputError("document_ids go with neither an attention_mask nor a cache.")
            documents = Documents.of(document_ids)
            positions = documents.positions(input_ids.device)
            # Rows of one document each are plain causal attention: one call, compiled with its block.
            mask = documents if any(len(ends) > 1 for ends in documents.ends) else None
        elif positions is not None:
            mask = attention_mask
        elif attention_mask is not None:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
            mask = _padded_mask(attention_mask, past, length)
        else:
            positions = torch.arange(past, past + length, device=input_ids.device)
        rotary = Rotary(positions, self.config.rotary_dim, self.config.rope_theta, self.fused.rotate)
        x = self.model.embed_tokens(input_ids)
        if self.compute_dtype is not None:
            x = x.to(self.compute_dtype)
        for index, block in enumerate(self.model.layers):
            if collect is not None:
                collect.append(x)
            x = block(x, rotary, mask, cache.layers[index] if cache is not None else None)
        if collect is not None:
            collect.append(x)
        if cache is not None:
            cache.advance(length)
        hidden: Tensor = self.model.norm(x)
        return hidden

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        positions: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, S, V] in float32, or with `labels` [B, S] the summed cross-entropy (a float32 scalar).

        Labels are already shifted: labels[:, s] is the token after input_ids[:, s]; negative labels are
        ignored. With `places` [N], numbers b · S + s that may repeat, labels [N] are the ids that follow
        there → [3, N]: how each is predicted (`model/predictions.py`). The other arguments are those of
        `hidden_states`."""
        hidden = self.hidden_states(input_ids, attention_mask, cache, document_ids, positions=positions)
        if labels is not None:
            told: Tensor = self.lm_head(hidden, labels, places)
            return told
        logits: Tensor = self.lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _padded_mask(attention_mask: Tensor, past: int, length: int) -> Tensor:
    """bool [B, 1, S, T]: causal, real keys only; a query always sees itself, so padding rows stay finite."""
    keys = torch.arange(past + length, device=attention_mask.device)
    queries = keys[past:].unsqueeze(1)  # [S, 1]
    allowed = (keys <= queries) & attention_mask.bool()[:, None, None, :]  # [B, 1, S, T]
    return allowed | (keys == queries)
