"""Whether a network can copy: random ids, given twice in a row (Elhage et al., 2021; Olsson et al., 2022,
"In-context learning and induction heads").

Nothing predicts the first time but chance, ln of the vocabulary's size at best; the second time everything
follows from the first, if the network has learnt to look for what came after the same id before. The
sequences are the same at every step and on every machine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stablelm.evaluation.perplexity import predicted
from stablelm.evaluation.shares import ALONE, Share
from stablelm.model import StableLM

PERIOD = 128
"""Ids that are repeated; half a window where that is shorter."""
SEED = 20231003


def sequences(count: int, period: int, ids: Sequence[int]) -> np.ndarray:
    """`count` sequences of `period` ids drawn from `ids`, each once more: int64 [count, 2 · period]."""
    drawn = np.random.Philox(key=SEED).random_raw(count * period) % np.uint64(len(ids))
    once = np.asarray(ids, np.int64)[drawn.astype(np.int64)].reshape(count, period)
    return np.concatenate([once, once], axis=1)


def copying(
    model: StableLM,
    ids: Sequence[int],
    count: int,
    window: int,
    batch_tokens: int,
    share: Share = ALONE,
) -> dict[str, Any]:
    """Reads `count` sequences of ids drawn from `ids`, about `batch_tokens` tokens a pass, none longer than
    `window` → for JSON: `loss` and `first_loss` in nats a token of the second and the first half, `accuracy`
    of the second."""
    period = min(PERIOD, window // 2)
    labels = sequences(count, period, ids)
    inputs = np.concatenate([np.full((count, 1), model.config.eos_token_id), labels[:, :-1]], axis=1)
    wide = ((0, 0), (0, share.padded(2 * period) - 2 * period))
    inputs = np.pad(inputs, wide, constant_values=model.config.eos_token_id)
    labels = np.pad(labels, wide, constant_values=-1)
    rows = max(1, batch_tokens // inputs.shape[1])
    sums = torch.zeros(3, dtype=torch.float64)
    for lines, counts in share.turns([slice(at, at + rows) for at in range(0, count, rows)]):
        told = predicted(model, inputs[lines], labels[lines]).double().view(3, -1, 2, period)
        if counts:
            sums += torch.stack([-told[0, :, 0].sum(), -told[0, :, 1].sum(), told[2, :, 1].sum()])
    first, second, right = (share.total(sums) / (count * period)).tolist()
    return {"loss": second, "first_loss": first, "accuracy": right, "sequences": count, "period": period}
