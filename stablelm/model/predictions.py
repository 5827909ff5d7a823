"""How each of some tokens is predicted: its probability, and that of the likeliest token.

What evaluation asks of a network, in place of the loss's sum: perplexity, accuracy, calibration and scores of
continuations all follow from three numbers a token. Logits are made for some tokens at a time, so memory is
rows × vocabulary, whatever the text's length. A head whose rows are shared out over processes puts maxima and
normalisers together, never logits.

The first number has a gradient, for losses that weigh whole answers by what their tokens add up to: a weight
is known only when all of an answer is read, so logits are made once more in the backward pass, again for some
tokens at a time. Four matrix products instead of the loss's three. Rejected: a first forward pass of the
whole network without a graph to learn the weights (a third of a step's work, not a part of the head's)."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from stablelm.model.bfloat16_products import add_outer, back, linear

if TYPE_CHECKING:
    from stablelm.model.head import FrozenMatrix

ROWS = 256
"""Tokens whose logits are alive at once."""


def predictions(hidden: Tensor, weight: "Tensor | FrozenMatrix", ids: Tensor, group: Any = None) -> Tensor:
    """hidden [N, h] that predict ids [N] → [3, N], float32 or wider: ln p of the id, with its gradient; ln p
    of the likeliest; 1 where the id is the likeliest (the first of equal ones), else 0.

    `weight` [V/n, h] has this process's rows of the vocabulary, the i-th part of `group` (None: all)."""
    told: Tensor = _Predictions.apply(hidden, weight, ids, group)  # type: ignore[no-untyped-call]
    return told


class _Predictions(torch.autograd.Function):
    """Rows 1 and 2 of what it gives are without a gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: "Tensor | FrozenMatrix", ids: Tensor, group: Any) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        told = hidden.new_zeros(3, len(ids), dtype=exact)
        normalizers = hidden.new_zeros(len(ids), dtype=exact)  # ln Σ exp z
        for start in range(0, len(ids), ROWS):
            part = slice(start, start + ROWS)
            z = _logits(weight, hidden[part])  # [rows, V/n]
            own, here, first = _columns(z, ids[part], group)
            largest, place = z.max(dim=-1)
            place = place + first
            if group is not None:
                mine = largest.clone()
                dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
                place = torch.where(mine == largest, place, torch.iinfo(place.dtype).max)
                dist.all_reduce(place, dist.ReduceOp.MIN, group=group)
            z -= largest.unsqueeze(1)
            wanted = z.gather(1, own).squeeze(1)
            sums = torch.stack([z.exp_().sum(dim=-1), torch.where(here, wanted, 0)])
            if group is not None:
                dist.all_reduce(sums, group=group)
            normalizer = sums[0].log()
            normalizers[part] = normalizer + largest
            told[:, part] = torch.stack([sums[1] - normalizer, -normalizer, (place == ids[part]).to(exact)])
        matrix = weight if isinstance(weight, Tensor) else None
        ctx.save_for_backward(hidden, matrix, ids, normalizers)
        ctx.packed, ctx.group = None if isinstance(weight, Tensor) else weight, group
        return told

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, matrix, ids, normalizers = ctx.saved_tensors
        weight = matrix if ctx.packed is None else ctx.packed
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(matrix, dtype=normalizers.dtype) if wants_weight else None
        for start in range(0, len(ids), ROWS):
            part = slice(start, start + ROWS)
            z = _logits(weight, hidden[part])
            own, here, _ = _columns(z, ids[part], ctx.group)
            z = z.sub_(normalizers[part].unsqueeze(1)).exp_().neg_()  # −softmax
            z.scatter_add_(1, own, here.to(z.dtype).unsqueeze(1))  # one-hot − softmax
            z *= upstream[0][0, part].unsqueeze(1)
            d_logits = z.to(hidden.dtype)
            if d_hidden is not None and ctx.packed is None:
                back(d_logits, matrix, d_hidden[part])
            elif d_hidden is not None:
                ctx.packed.back(d_logits, d_hidden[part])
            if d_weight is not None:
                add_outer(d_logits, hidden[part], d_weight)
        if ctx.group is not None and d_hidden is not None:
            dist.all_reduce(d_hidden, group=ctx.group)
        return d_hidden, d_weight, None, None


def _logits(weight: "Tensor | FrozenMatrix", hidden: Tensor) -> Tensor:
    """Of hidden [rows, h], in float32 or wider."""
    if isinstance(weight, Tensor):
        z = linear(hidden, weight)
    else:
        z = hidden.new_empty(len(hidden), weight.rows)
        weight.times(hidden, z)
    return z.to(torch.promote_types(z.dtype, torch.float32))


def _columns(z: Tensor, ids: Tensor, group: Any) -> tuple[Tensor, Tensor, int]:
    """Where ids [rows] are in this process's logits z [rows, V/n]: columns [rows, 1], whether they are there
    [rows], and the first word."""
    first = 0 if group is None else dist.get_rank(group) * z.shape[1]
    own = (ids - first).clamp(0, z.shape[1] - 1).unsqueeze(1)
    return own, (ids >= first) & (ids < first + z.shape[1]), first
