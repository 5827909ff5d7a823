"""Log-probabilities of given ids, in bounded memory.

The network is read once with a key-value cache, `positions` at a time, and only their logits exist at once:
256 × 50,304 × 4 B = 51 MB, not the 824 MB of a whole context. The first id of a text has nothing before it,
so it has no log-probability; put the separator in front to score it. To score what was generated, give prompt
and output together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.inference.cache import KVCache
from stablelm.inference.runner import kv_bytes, require_memory
from stablelm.model import StableLM


@dataclass(frozen=True)
class Scores:
    """Of one text of N ids; entry i belongs to id i + 1. Float32 on the CPU."""

    log_probabilities: Tensor
    """[N − 1], nats."""
    top_ids: Tensor
    """[N − 1, top]: the likeliest ids, likeliest first; equal ones in any order."""
    top_log_probabilities: Tensor
    """[N − 1, top]; where the id itself is among them, the identical number."""

    @property
    def greedy(self) -> bool:
        """Whether every id was the likeliest; wants `top` ≥ 1."""
        return bool((self.log_probabilities == self.top_log_probabilities[:, 0]).all())


@torch.inference_mode()
def score_ids(model: StableLM, ids: Sequence[int], *, top: int = 0, positions: int = 256) -> Scores:
    """How likely each id is after those before it, with the `top` likeliest alternatives.

    `InputError` for fewer than two ids, ids out of range, more than the context, and logits not finite."""
    context, size = model.config.max_position_embeddings, model.config.vocab_size
    if not 2 <= len(ids) <= context + 1:
        raise InputError(
            f"a text of {len(ids):,} tokens cannot be scored: from 2 to {context + 1:,} (the context and one "
            "more) are wanted. Cut it into windows, or put the separator before a single token."
        )
    if not 0 <= min(ids) <= max(ids) < size:
        raise InputError(f"the text holds an id outside the model's vocabulary of {size:,}.")
    if not 0 <= top <= size or positions < 1:
        raise InputError(
            f"top must be from 0 to {size:,} and positions at least 1, not {top} and {positions}."
        )
    dtype, device = model.compute_dtype or model.dtype, model.device
    inputs, labels = (torch.tensor([list(part)], device=device) for part in (ids[:-1], ids[1:]))
    require_memory(model, 1, inputs.shape[1], kv_bytes(model))
    cache = KVCache(model.config, 1, inputs.shape[1], dtype, device, model.attention.function)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, inputs.shape[1], positions):
        hidden = model.hidden_states(inputs[:, start : start + positions], None, cache)
        logits = model.lm_head(hidden[0]).float()  # [positions, V]
        nats = logits.log_softmax(-1)
        if not bool(nats.amax(-1).isfinite().all()):
            raise InputError(
                f"the logits after token {start:,} are not finite: the weights hold NaN or infinity, or "
                "overflow in this dtype. Load the model in float32 or bfloat16, or check its files."
            )
        label = labels[0, start : start + positions, None]
        best = nats.topk(top, dim=-1)
        found.append((nats.gather(1, label)[:, 0].cpu(), best.indices.cpu(), best.values.cpu()))
    own, names, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Scores(own, names, values)
