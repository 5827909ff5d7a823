"""The loss on held-out examples, and how many of their answers the model would write token for token.

Both follow from one pass over the true text. An answer is right when each of its tokens, the separator behind
it too, is the likeliest after the true ones before it: then, and only then, it is what greedy decoding would
write. So nothing is generated, and it works on any mesh. Of a conversation each answer counts for itself."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stablelm.evaluation.shares import ALONE, Share
from stablelm.finetuning.packing import Rows
from stablelm.model import StableLM


@dataclass(frozen=True)
class HeldOut:
    """Sums over the trained tokens of some rows."""

    nats: float
    tokens: int
    right: int
    """Tokens that are the likeliest."""
    answers: int
    """Runs of neighbouring trained tokens in one example."""
    answers_right: int
    """Those of which every token is the likeliest."""

    def as_dict(self, text_bytes: int, *, answers: bool) -> dict[str, Any]:
        """For metrics.jsonl; `answers` only where the examples have some."""
        told = loss_numbers(self.nats, self.tokens, text_bytes) | {"accuracy": self.right / self.tokens}
        if answers:
            told |= {"answer_accuracy": self.answers_right / self.answers, "answers": self.answers}
        return told


def loss_numbers(nats: float, tokens: int, text_bytes: int) -> dict[str, Any]:
    """Loss, perplexity and bits per byte, for metrics.jsonl."""
    loss = nats / tokens
    return {
        "loss": loss, "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(1, text_bytes), "tokens": tokens, "text_bytes": text_bytes,
    }  # fmt: skip


@torch.no_grad()
def measure(model: StableLM, rows: Rows, count: int, batch: int, share: Share = ALONE) -> HeldOut:
    """Reads the first `count` rows, `batch` in a pass; the result is that of all processes together."""
    sums = torch.zeros(5, dtype=torch.float64)
    numbers = np.arange(count)
    for chosen, counts in share.turns([numbers[at : at + batch] for at in range(0, count, batch)]):
        samples, documents = rows.ids(chosen), rows.documents(chosen)
        inputs, labels = np.where(samples < 0, ~samples, samples)[:, :-1], samples[:, 1:].ravel()
        places = np.flatnonzero(labels >= 0)
        ids, wanted, at = (torch.from_numpy(x).to(model.device) for x in (inputs, labels[places], places))
        told = model(ids, labels=wanted, places=at, document_ids=torch.from_numpy(documents)).cpu().double()
        if not counts:
            continue
        begins = _begins(places, documents)
        right = np.logical_and.reduceat(told[2].numpy() > 0, begins) if len(begins) else np.zeros(0)
        found = (-float(told[0].sum()), len(places), float(told[2].sum()), len(begins), int(right.sum()))
        sums += torch.tensor(found, dtype=torch.float64)
    nats, *whole = share.total(sums).tolist()
    return HeldOut(nats, *map(round, whole))


def _begins(places: NDArray[np.int64], documents: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where, among the flat places [N] that predict trained tokens, an answer begins."""
    row, column = np.divmod(places, documents.shape[1])
    example = documents[row, column]
    new = (np.diff(places) > 1) | (np.diff(row) > 0) | (np.diff(example) > 0)
    return np.flatnonzero(np.concatenate([[True], new])) if len(places) else np.zeros(0, dtype=np.int64)
