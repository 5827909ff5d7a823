"""How far one model is from another that it should equal: a quantised one from its original.

KL(reference ‖ model) is the mean over positions of Σ p (ln p − ln q), in nats; logits are made for a slice of
positions at a time, so memory is slice × vocabulary, whatever the text's length. Costs one forward pass of
each."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stablelm.model import StableLM


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Means over all positions (the last of each row predicts nothing and counts for KL and top-1 only)."""

    kl: float
    """KL(reference ‖ model) in nats a token."""
    kl_largest: float
    """The largest of one position."""
    top1: float
    """Share of positions where both find the same token likeliest."""
    loss: float
    """The model's nats a token; its exponential is the perplexity."""
    reference_loss: float
    tokens: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {
            "kl": self.kl, "kl_largest": self.kl_largest, "top1_agreement": self.top1,
            "perplexity": math.exp(min(self.loss, 700.0)),
            "reference_perplexity": math.exp(min(self.reference_loss, 700.0)), "tokens": self.tokens,
        }  # fmt: skip


@torch.no_grad()
def hidden_of(model: StableLM, batches: Sequence[Tensor]) -> list[Tensor]:
    """Final hidden states [B, S, h] of batches of ids [B, S]: all that `fidelity` needs of the reference,
    beside its head."""
    return [model.hidden_states(ids) for ids in batches]


@torch.no_grad()
def fidelity(
    reference: Sequence[Tensor],
    head: torch.nn.Module,
    model: StableLM,
    batches: Sequence[Tensor],
    slice_: int = 64,
) -> Fidelity:
    """`model` beside a reference whose hidden states (`hidden_of`) and head are given, same batches."""
    kl, largest, same, nats, reference_nats, tokens, predicted = 0.0, 0.0, 0, 0.0, 0.0, 0, 0
    for theirs, ids in zip(reference, batches, strict=True):
        ours = model.hidden_states(ids).flatten(0, 1)
        labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1).flatten()
        for a, b, y in zip(
            *(torch.split(x, slice_) for x in (theirs.flatten(0, 1), ours, labels)), strict=True
        ):
            p, q = head(a).float().log_softmax(-1), model.lm_head(b).float().log_softmax(-1)  # [slice, V]
            each = (p.exp() * (p - q)).sum(-1)
            kl, largest = kl + float(each.sum()), max(largest, float(each.max()))
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            real, target = y >= 0, y.clamp(min=0)[:, None]
            nats -= float(q.gather(1, target)[:, 0][real].sum())
            reference_nats -= float(p.gather(1, target)[:, 0][real].sum())
            tokens, predicted = tokens + len(y), predicted + int(real.sum())
    predicted = max(predicted, 1)
    return Fidelity(kl / tokens, largest, same / tokens, nats / predicted, reference_nats / predicted, tokens)
