"""How each of some tokens is predicted: its probability, and that of the likeliest token.

What evaluation asks of a network, in place of the loss's sum: perplexity, accuracy, calibration and scores of
continuations all follow from three numbers a token. Logits are made for some tokens at a time, so memory is
rows × vocabulary, whatever the text's length. A head whose rows are shared out over processes puts maxima and
normalisers together, never logits. No gradients."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROWS = 256
"""Tokens whose logits are alive at once."""


@torch.no_grad()
def predictions(logits: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor, group: Any = None) -> Tensor:
    """hidden [N, h] that predict ids [N] → [3, N], float32 or wider: ln p of the id; ln p of the likeliest;
    1 where the id is the likeliest (the first of equal ones), else 0.

    `logits` gives those of this process's rows of the vocabulary, the i-th part of `group` (None: of all)."""
    found = []
    for h, wanted in zip(torch.split(hidden, ROWS), torch.split(ids, ROWS), strict=True):
        z = logits(h)
        z = z.to(torch.promote_types(z.dtype, torch.float32))  # [rows, V/n]
        first = 0 if group is None else dist.get_rank(group) * z.shape[1]
        largest, place = z.max(dim=-1)
        place = place + first
        if group is not None:
            mine = largest.clone()
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
            place = torch.where(mine == largest, place, torch.iinfo(place.dtype).max)
            dist.all_reduce(place, dist.ReduceOp.MIN, group=group)
        z -= largest.unsqueeze(1)
        here = (wanted >= first) & (wanted < first + z.shape[1])
        own = z.gather(1, (wanted - first).clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
        sums = torch.stack([z.exp_().sum(dim=-1), torch.where(here, own, 0)])
        if group is not None:
            dist.all_reduce(sums, group=group)
        normalizer = sums[0].log()
        found.append(torch.stack([sums[1] - normalizer, -normalizer, (place == wanted).to(z.dtype)]))
    if not found:
        return hidden.new_zeros(3, 0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return torch.cat(found, dim=1)
