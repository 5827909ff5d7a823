"""Dropout on the way into an adapter while it is trained: PEFT's `lora_dropout` (Srivastava et al., 2014).

What A multiplies loses each of its numbers with probability p, the others grow by 1 / (1 − p); what the base
model computes, and DoRA's rows, are left alone. Which numbers is a pure function of the seed, the matrix and
the sample's number: a resumed run drops those of the undisturbed one, on any number of processes, however
rows are cut into passes, and a block that is computed again in the backward pass drops the same. Drawn on the
device, about 5 ns a number and matrix on one core; a byte a number is kept for the backward pass."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.finetuning.passing import Passing
from stablelm.model import StableLM
from stablelm.model.adapters import DEFAULT, HEAD, parts_of
from stablelm.storage import keyed_uint64


class AdapterDropout(Passing):
    """Stands in every part of the model's adapter, and as a forward hook on the embedding, where a pass
    begins; does nothing outside `on`."""

    def __init__(self, model: StableLM, rate: float, seed: int) -> None:
        """`rate`: p. `InputError` for an adapter on the head, whose losses see tokens without their
        samples."""
        parts = parts_of(model, DEFAULT)
        if HEAD in parts:
            raise InputError(
                f"adapter.dropout does not go with {HEAD} among adapter.targets; leave one of them away."
            )
        super().__init__()
        self.rate, self.seed = rate, seed
        for place, part in parts.items():
            part.drop = partial(self.dropped, place)
        model.model.embed_tokens.register_forward_hook(self._begin_pass)

    def _begin_pass(self, module: Any, inputs: Any, embedded: Tensor) -> None:
        self.take(len(embedded))  # none outside a step, in evaluation

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # no compiler sees a generator
    def dropped(self, place: str, x: Tensor) -> Tensor:
        """x [B, L, in] of the samples that are being read, without what the matrix `place` does not see."""
        if not self.now:
            return x
        gone = torch.stack([self.gone(place, number, x.shape[1:], x.device) for number in self.now])
        return x.masked_fill(gone, 0) / (1 - self.rate)

    def gone(self, place: str, number: int, shape: torch.Size, device: torch.device) -> Tensor:
        """What a sample loses before a matrix, bool [L, in]."""
        generator = torch.Generator(device)
        generator.manual_seed(keyed_uint64(self.seed, "adapter dropout", place, number) >> 1)
        lost = torch.empty(shape, dtype=torch.bool, device=device)
        return lost.bernoulli_(self.rate, generator=generator)
