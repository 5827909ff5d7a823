"""The output projection, and the cross-entropy that never holds all logits.

The loss is computed a chunk of tokens at a time, and its gradients with respect to the hidden states and the
weight are made in the same pass: three matrix products a chunk, nothing recomputed, at most `chunk ×
vocabulary` float32 logits alive. For 4 × 512 tokens and 8,192 words that is 16 MB instead of three copies of
64 MB. Rejected: recomputing the logits in the backward pass (a fourth product),
`torch.compile` (nothing gained on CPU)."""

from typing import Any

import torch
from torch import Tensor

from stablelm.model.linear import Linear


class Head(Linear):
    """`head(hidden)` → logits; `head(hidden, labels)` → summed cross-entropy in float32."""

    chunk: int = 512
    """Tokens whose logits are alive at once in the loss."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """hidden [..., h]; labels [...] int64, already shifted, negative = ignored."""
        if labels is None:
            logits: Tensor = super().forward(hidden)
            return logits
        weight = self.weight.to(hidden.dtype)
        loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden.flatten(0, -2), weight, labels.flatten(), self.chunk
        )
        return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over tokens of −log softmax(h Wᵀ)[label]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if wants_weight else None
        # Two buffers for all chunks: fresh ones would be returned to the system and faulted in again each
        # time.
        rough = hidden.new_empty(min(chunk, hidden.shape[0]), weight.shape[0])
        logits = rough if rough.dtype == exact else torch.empty_like(rough, dtype=exact)
        for start in range(0, hidden.shape[0], chunk):
            h, y = hidden[start : start + chunk], labels[start : start + chunk]
            z, z_rough = logits[: len(h)], rough[: len(h)]  # [chunk, V]
            counted, target = y >= 0, y.clamp(min=0).unsqueeze(1)
            torch.mm(h, weight.T, out=z_rough)
            if z is not z_rough:
                z.copy_(z_rough)
            z -= z.amax(dim=-1, keepdim=True)
            label_logit = z.gather(1, target).squeeze(1)
            normalizer = z.exp_().sum(dim=-1)  # z is now the softmax's numerator
            total += ((normalizer.log() - label_logit) * counted).sum()
            if not (wants_hidden or wants_weight):
                continue
            z *= (counted / normalizer).unsqueeze(1)
            z.scatter_add_(1, target, -counted.to(exact).unsqueeze(1))  # softmax − one-hot; 0 where ignored
            if z is not z_rough:
                z_rough.copy_(z)
            if d_hidden is not None:
                torch.mm(z_rough, weight, out=d_hidden[start : start + chunk])
            if d_weight is not None:
                d_weight += z_rough.T @ h
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = upstream[0]
        return (
            None if d_hidden is None else d_hidden * scale.to(d_hidden.dtype),
            None if d_weight is None else d_weight * scale,
            None,
            None,
        )
