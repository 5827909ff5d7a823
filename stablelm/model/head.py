"""The output projection, and the cross-entropy that never holds all logits.

The loss is computed a chunk of tokens at a time, and its gradients with respect to the hidden states and the
weight are made in the same pass: three matrix products a chunk, nothing recomputed, at most `chunk ×
vocabulary` float32 logits alive. For 4 × 512 tokens and 8,192 words that is 16 MB instead of three copies of
64 MB. On a GPU softmax and gradient are compiled into one kernel over the rounded logits alone; on a CPU
that gained nothing. Rejected: recomputing the logits in the backward pass (a fourth product).

The weight may be shared out by rows of the vocabulary over a process group: each process then has the logits
of its rows, and a chunk's maxima, normalisers and label logits are put together in two small all-reduces."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from stablelm.model.bfloat16_products import add_outer, back, linear, times
from stablelm.model.linear import Linear
from stablelm.model.predictions import predictions


class Head(Linear):
    """`head(hidden)` → logits; `head(hidden, labels)` → summed cross-entropy in float32; with places, how
    each label is predicted."""

    chunk: int = 512
    """Tokens whose logits are alive at once in the loss."""
    group: Any = None
    """Process group whose members have V/n rows of the weight each, in the order of their ranks; None: all
    here."""
    smoothing: float = 0.0
    """Share ε of the target that is spread evenly over the vocabulary in the loss (Szegedy et al., 2016)."""
    fused: "Softmax | None" = None
    """`softmax_gradient`, compiled; used where all logits are here and labels are not smoothed."""
    z_loss: float = 0.0
    """Coefficient c of a term c · ln²Z for each target in the loss, Z the softmax's normaliser (PaLM)."""
    told: Tensor | None = None
    """[2, tokens], where given: receives −ln p of each label and ln Z, 0 where ignored, without `z_loss`."""
    own: Callable[[Tensor], Tensor] | None = None
    """With a group: takes this process's rows [V/n, h] out of the weight."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """hidden [..., h]; labels [...] int64, already shifted, negative = ignored. With `places` [N], rows
        of the flattened hidden states, labels [N] are the ids after them → [3, N] (`predictions`)."""
        weight = self.weight.to(hidden.dtype)
        if self.own is not None:
            weight = self.own(weight)
        if places is not None and labels is not None:
            return predictions(hidden.flatten(0, -2)[places], weight, labels, self.group)
        if labels is None:
            logits = linear(hidden, weight)
            return logits if self.group is None else _joined(logits, self.group)
        parts = (self.chunk, self.smoothing, self.group, self.fused, self.z_loss, self.told)
        return chunked_loss(hidden, weight, labels, *parts)


def softmax_gradient(logits: Tensor, label: Tensor, counted: Tensor, z_loss: float) -> Tensor:
    """−log softmax(z)[label] and ln Z of logits z [T, V], float32 [2, T], 0 where not counted; z is
    overwritten with the gradient of the sum of the former + z_loss · ln²Z. label [T, 1]; counted [T] bool.
    Compiled it reads z twice and writes it once."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest = z.amax(dim=-1, keepdim=True)
    powers = (z - largest).exp()
    normalizer = powers.sum(dim=-1, keepdim=True)
    log_z = normalizer.log() + largest
    told = torch.cat([log_z - z.gather(1, label), log_z], dim=1).T * counted
    hit, share = torch.arange(z.shape[1], device=z.device) == label, powers / normalizer
    if z_loss:
        share = share * (1 + 2 * z_loss * log_z)
    logits.copy_((share - hit.to(z.dtype)) * counted.unsqueeze(1))
    return told


Softmax = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class FrozenMatrix(Protocol):
    """A weight [rows, h] that is not learnt and is nowhere dense."""

    rows: int

    def times(self, x: Tensor, out: Tensor) -> None:
        """Writes x [T, h] Wᵀ into out [T, rows]."""
        ...

    def back(self, y: Tensor, out: Tensor) -> None:
        """Writes y [T, rows] W into out [T, h]."""
        ...


def chunked_loss(
    hidden: Tensor,
    weight: "Tensor | FrozenMatrix",
    labels: Tensor,
    chunk: int,
    smoothing: float = 0.0,
    group: Any = None,
    fused: Softmax | None = None,
    z_loss: float = 0.0,
    told: Tensor | None = None,
) -> Tensor:
    """Summed cross-entropy of hidden [..., h] and labels [...], negative = ignored, and z_loss · ln²Z of each
    target; a float32 scalar. `told` as `Head.told`."""
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2), weight, labels.flatten(), chunk, group, smoothing, fused, z_loss, told
    )
    return loss


def _joined(logits: Tensor, group: Any) -> Tensor:
    """[..., V/n] of every process → [..., V]; without a gradient."""
    parts = [torch.empty_like(logits) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, logits.detach().contiguous(), group=group)
    return torch.cat(parts, dim=-1)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over tokens of −log softmax(h Wᵀ)[label], or (1 − ε) times that + ε times its mean over the
    vocabulary; and c · ln²Z, whose gradient is 2c · ln Z times the softmax."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: "Tensor | FrozenMatrix", labels: Tensor, chunk: int, group: Any,
        smoothing: float, fused: Softmax | None, z_loss: float, told: Tensor | None,
    ) -> Tensor:  # fmt: skip
        rows = weight.shape[0] if isinstance(weight, Tensor) else weight.rows
        first = 0 if group is None else dist.get_rank(group) * rows  # of the rows held here
        spread = smoothing / (rows * (1 if group is None else dist.get_world_size(group)))
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = None
        if wants_weight and isinstance(weight, Tensor):
            d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device)
        # Two buffers for all chunks: fresh ones would be returned to the system and faulted in again each
        # time.
        rough = hidden.new_empty(min(chunk, hidden.shape[0]), rows)
        whole = group is None and not smoothing and fused is not None and (wants_hidden or wants_weight)
        logits = rough if whole or rough.dtype == exact else torch.empty_like(rough, dtype=exact)
        for start in range(0, hidden.shape[0], chunk):
            h, y = hidden[start : start + chunk], labels[start : start + chunk]
            z, z_rough = logits[: len(h)], rough[: len(h)]  # [chunk, V]
            counted, target = y >= 0, (y - first).clamp(0, rows - 1).unsqueeze(1)
            here = counted if group is None else counted & (y >= first) & (y < first + rows)
            if isinstance(weight, Tensor):
                times(h, weight, z_rough)
            else:
                weight.times(h, z_rough)
            if whole and fused is not None:
                both = fused(z_rough, target, counted, z_loss)
                total += both[0].sum() + (z_loss * both[1].square().sum() if z_loss else 0)
                if told is not None:
                    told[:, start : start + chunk] = both
                _add_products(z_rough, h, weight, d_hidden, d_weight, start)
                continue
            if z is not z_rough:
                z.copy_(z_rough)
            largest = z.amax(dim=-1, keepdim=True)
            if group is not None:
                dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
            z -= largest
            label_logit = z.gather(1, target).squeeze(1) * here
            if smoothing:
                label_logit = (1 - smoothing) * label_logit + spread * z.sum(dim=-1)
            normalizer = z.exp_().sum(dim=-1)  # z is now the softmax's numerator
            if group is not None:
                both = torch.stack([normalizer, label_logit])
                dist.all_reduce(both, group=group)
                normalizer, label_logit = both
            nats = (normalizer.log() - label_logit) * counted
            total += nats.sum()
            log_z = (normalizer.log() + largest.squeeze(1)) * counted
            if told is not None:
                told[0, start : start + chunk], told[1, start : start + chunk] = nats, log_z
            if z_loss:
                total += z_loss * log_z.square().sum()
            if not (wants_hidden or wants_weight):
                continue
            share = counted / normalizer
            if z_loss:
                share = share * (1 + 2 * z_loss * log_z)
            z *= share.unsqueeze(1)
            z.scatter_add_(1, target, (smoothing - 1) * here.to(exact).unsqueeze(1))  # softmax − one-hot
            if smoothing:
                z -= spread * counted.to(exact).unsqueeze(1)  # all of it 0 where ignored
            if z is not z_rough:
                z_rough.copy_(z)
            _add_products(z_rough, h, weight, d_hidden, d_weight, start)
        if group is not None and d_hidden is not None:
            dist.all_reduce(d_hidden, group=group)
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
            *(None,) * 7,
        )


def _add_products(
    d_logits: Tensor, hidden: Tensor, weight: "Tensor | FrozenMatrix", d_hidden: Tensor | None,
    d_weight: Tensor | None, start: int,
) -> None:  # fmt: skip
    """Puts what the gradient of a chunk's logits gives into those of hidden states and weight."""
    if d_hidden is not None:
        out = d_hidden[start : start + len(hidden)]
        if isinstance(weight, Tensor):
            back(d_logits, weight, out)
        else:
            weight.back(d_logits, out)
    if d_weight is not None:
        add_outer(d_logits, hidden, d_weight)
