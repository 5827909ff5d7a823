"""Forward and backward passes of one step, over all processes: the loss, its gradients, their norm.

The loss is the sum over all targets of the step divided by their number, counted over all processes before
the first pass, so every target weighs the same wherever it is read. Every process makes equally many passes,
also in a short last step: one with no row left passes a row without targets. What is returned is the same
number on every process, so all of them decide alike."""

import math
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from stablelm.config import RunConfig
from stablelm.model import StableLM
from stablelm.training.batches import Batch
from stablelm.training.measures import Measures
from stablelm.training.parallel.apply import accumulate
from stablelm.training.parallel.gradients import gradient_norm, scale_gradients
from stablelm.training.parallel.mesh import Layout


def backward(
    model: StableLM, batch: Batch, config: RunConfig, layout: Layout, measures: Measures | None = None
) -> tuple[float, Tensor, int]:
    """Leaves the step's gradients in the parameters → mean loss, gradient norm before clipping, targets.

    The loss is −ln p a target, also where a z-loss is learned from; `measures` receive what else is known."""
    device, micro = model.device, config.batch.micro_sequences
    targets = int(summed(layout, torch.tensor(float((batch.samples[:, 1:] >= 0).sum()), device=device)))
    samples = batch.samples.to(device)
    inputs, labels = torch.where(samples < 0, ~samples, samples)[:, :-1], samples[:, 1:]
    total = torch.zeros((), dtype=torch.promote_types(model.dtype, torch.float32), device=device)
    if measures is not None:
        measures.begin(batch, device)
    passes, rows = math.ceil(math.ceil(batch.count / layout.data) / micro), micro * batch.pieces
    for number in range(passes):
        part = slice(number * rows, (number + 1) * rows)
        x, y, ids = inputs[part], labels[part], None if batch.documents is None else batch.documents[part]
        if not len(x):
            x, y = inputs[part], labels[part]
        if not len(x):
            part = slice(0, 1)
            x, y = inputs[part], torch.full_like(labels[part], -1)
        ids = None if batch.documents is None else batch.documents[part]
        accumulate(model, layout.replicates, config.parallel.zero, last=number == passes - 1)
        if measures is not None:
            measures.listen(model.lm_head, y)
        loss = model(x, labels=y, document_ids=ids)
        if measures is not None:
            measures.add(model.lm_head, y, part)
        (loss / max(1, targets)).backward()
        total += loss.detach()
    if batch.fault is not None:
        total.fill_(math.nan)  # which all processes see, and reject the step
    add = partial(summed, layout)
    value = (float(add(total)) if measures is None else measures.total(total, add)) / max(1, targets)
    return value, norm_of(model, layout), targets


def norm_of(model: StableLM, layout: Layout) -> Tensor:
    """The L2 norm of all gradients, equal on all processes."""
    if layout.mesh is None:
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return gradient_norm(model.parameters())


def clip(model: StableLM, largest: float, norm: Tensor, layout: Layout) -> None:
    """Scales the gradients so that their norm, which is `norm`, becomes at most `largest`; 0 does nothing."""
    if not largest or float(norm) <= largest:
        return
    if layout.mesh is None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    else:
        scale_gradients(model.parameters(), largest / (float(norm) + 1e-6))


def summed(layout: Layout, mine: Tensor) -> Tensor:
    """Added up over the parts that read different samples."""
    if layout.mesh is None:
        return mine
    total = mine.to(torch.float64)
    dist.all_reduce(total)
    return total / layout.tensor  # each member of a tensor group brought the same number
