"""What the record of a step says beside its loss and its gradient norm.

Every step: perplexity, bits per byte where the data know their bytes, and where there are several sources the
loss of each. That costs two numbers a target, which the loss makes anyway, and a sum over them in each pass;
the sums travel in the all-reduce that the loss needs, so there is no message of their own. At the steps that
are shown (`logging.every`) also what changes slowly: epochs read of each source, which follow from the step
alone, and memory.

Bits per byte of a step are an estimate: a source's tokens count as many bytes as they have in all of its
training text. Those of held-out text, which evaluation measures, are exact."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablelm.data.run_data import TrainingData
from stablelm.model.head import Head
from stablelm.training.batches import Batch

LOSS, EPOCHS = "loss/", "epochs/"
"""Before the name of a source, in a record."""


class Measures:
    """Sums over the targets of one step, by source."""

    def __init__(self, data: TrainingData, names: Sequence[str], z_loss: float) -> None:
        """`names`: the sources, in the order of their numbers in `Batch.sources`."""
        self.names, self.z_loss = tuple(names), z_loss
        self.listens = len(self.names) > 1 or z_loss > 0
        """Whether the loss alone does not say it all."""
        self.likelihood = True
        """Whether the loss is −ln p a token, of which perplexity and bits per byte are made."""
        known = data.summary()["sources"]
        self.bytes = [_bytes_a_token(known.get(name, {}).get("train", {})) for name in self.names]
        """Of each source's training text, bytes a token; 0 where the data do not know."""
        self.nats = [0.0] * len(self.names)
        self.targets = [0.0] * len(self.names)
        self.squares = 0.0
        """Of the last step: −ln p and targets by source; ln²Z of all targets."""

    def begin(self, batch: Batch, device: torch.device) -> None:
        """Before the passes of a step."""
        rows = len(batch.samples)
        sources = torch.zeros(rows, dtype=torch.int64) if batch.sources is None else batch.sources
        self._sources = sources.to(device)
        self._sums = torch.zeros(2, len(self.names) + 1, dtype=torch.float64, device=device)

    def listen(self, head: Head, labels: Tensor) -> None:
        """Before a pass: has the loss tell what each of `labels` [R, L] costs."""
        if self.listens:
            head.told = torch.zeros(2, labels.numel(), device=labels.device)

    def add(self, head: Head, labels: Tensor, part: slice) -> None:
        """After a pass over the rows `part` of the batch."""
        if head.told is None:
            return
        nats, log_z = head.told.view(2, *labels.shape)
        head.told = None
        by_row = torch.stack([nats.sum(1, dtype=torch.float64), (labels >= 0).sum(1)])  # [2, R]
        self._sums[:, :-1].index_add_(1, self._sources[part], by_row)
        self._sums[:, -1] += torch.stack([nats.sum(dtype=torch.float64), log_z.square().sum()])

    def total(self, loss: Tensor, summed: Callable[[Tensor], Tensor]) -> float:
        """The step's Σ −ln p, given the sum of all losses here; with `summed`, over all processes."""
        whole, *sums = summed(torch.cat([loss.reshape(1), self._sums.flatten()])).tolist()
        sources = len(self.names)
        self.nats, plain = sums[:sources], sums[sources]
        self.targets, self.squares = sums[sources + 1 : -1], sums[-1]
        # A loss that is not finite must be seen also where it is only the z-term.
        return float(plain if self.z_loss and math.isfinite(whole) else whole)

    def record(self, loss: float, targets: int) -> dict[str, float]:
        """What a step says whose mean loss is `loss`."""
        told: dict[str, float] = {}
        known = dict(zip(self.names, zip(self.nats, self.targets, self.bytes, strict=True), strict=True))
        if not self.listens:
            known = {self.names[0]: (loss * targets, float(targets), self.bytes[0])}
        if self.likelihood:
            told["perplexity"] = math.exp(min(loss, 700.0))
            read = [(count, size) for _, count, size in known.values() if count]
            if read and all(size for _, size in read):
                text = sum(count * size for count, size in read)
                told["bits_per_byte"] = loss * sum(count for count, _ in read) / text / math.log(2)
        if len(known) > 1:
            told |= {LOSS + n: round(nats / count, 6) for n, (nats, count, _) in known.items() if count}
        if self.z_loss:
            told["z_loss"] = self.z_loss * self.squares / max(1, targets)
        return told


def state_of_run(seen: dict[str, dict[str, Any]], device: torch.device) -> dict[str, float]:
    """What changes slowly: epochs read of each source (`Samples.seen`), memory in bytes."""
    return {EPOCHS + name: round(about["epochs"], 6) for name, about in seen.items()} | memory(device)


def memory(device: torch.device) -> dict[str, float]:
    """Bytes of this process: on CUDA the most that tensors have taken so far, and what the allocator holds;
    elsewhere what is resident now (its peak, on systems without /proc)."""
    if device.type == "cuda":
        return {
            "memory": float(torch.cuda.max_memory_allocated(device)),
            "memory_reserved": float(torch.cuda.max_memory_reserved(device)),
        }
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return {"memory": float(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory": peak * (1.0 if sys.platform == "darwin" else 1024.0)}


def _bytes_a_token(about: dict[str, Any]) -> float:
    """Of a side's summary; of examples only the trained text and tokens count."""
    tokens = about.get("trained_tokens") or about.get("tokens")
    return float(about.get("bytes", 0)) / tokens if tokens else 0.0
