"""An exponential moving average of the weights, beside the run and without a trace in it.

After each accepted step t, with d = min(decay, (1 + t) / (10 + t)),

    average ← d · average + (1 − d) · weights

from the initial weights on. The bound is TensorFlow's (tf.train.ExponentialMovingAverage, `num_updates`): a
plain average would hold on to the random initial weights for 1 / (1 − decay) steps. Rejected: dividing by
1 − decay^t as Adam does, which starts from zero and would make of a resumed or adapted model another one.

It is kept in float32, also of weights in bf16 (whose updates of this size bf16 rounds away), and sharded as
they are: each process averages what it holds, nothing is sent. Costs 4 bytes a parameter, and one pass over
weights and average a step. A rejected step leaves it alone; going back takes that of the checkpoint."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stablelm.config.ema import EmaConfig
from stablelm.interchange.native import EMA

_PIECE = 64 << 20
"""Numbers that are cast at once where weights are not kept in the average's precision."""


class Ema:
    """The average of one model's trained weights, on this process."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._average: dict[str, Tensor] = {}
        self.restart()

    @classmethod
    def of(cls, config: EmaConfig, model: nn.Module) -> "Ema | None":
        """That of a run; None where it keeps none."""
        return None if config.decay is None else cls(model, config.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew from the weights as they are."""
        self.updates = 0
        for name, weight in self._weights.items():
            precision = torch.promote_types(weight.dtype, torch.float32)
            self._average[name] = weight.detach().to(precision, copy=True)

    @torch.no_grad()
    def update(self) -> None:
        """Takes up the weights after one more accepted step."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, weights = _local(self._average.values()), _local(self._weights.values())
        if all(a.dtype == w.dtype for a, w in zip(averages, weights, strict=True)):
            torch._foreach_lerp_(averages, weights, share)
            return
        for average, weight in zip(averages, weights, strict=True):
            for first in range(0, average.numel(), _PIECE):
                part = slice(first, first + _PIECE)
                average.view(-1)[part].lerp_(weight.view(-1)[part].to(average.dtype), share)

    def tensors(self) -> dict[str, Tensor]:
        """The average, by the weights' names; what is loaded into them counts."""
        return self._average

    def state(self) -> dict[str, Any]:
        """For a checkpoint, beside the tensors."""
        return {EMA: {"decay": self.decay, "updates": self.updates}}

    def restore(self, state: dict[str, Any]) -> bool:
        """Goes on from a checkpoint whose tensors are loaded; from the weights, where it has no average.

        Returns whether it had one."""
        found: dict[str, Any] | None = state.get(EMA)
        if found is None:
            self.restart()
            return False
        self.updates = int(found["updates"])
        return True


def kept(ema: Ema | None, state: dict[str, Any] | None = None) -> dict[str, dict[str, Tensor]]:
    """Folder of a checkpoint → tensors; nothing without an average, or where `state` says it has none."""
    return {} if ema is None or (state is not None and EMA not in state) else {EMA: ema.tensors()}


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.to_local() if isinstance(t, DTensor) else t.detach() for t in tensors]
