"""How each layer is doing, every `logging.health` steps: gradients, activations, attention logits, updates.

* `gradient`: RMS of a block's gradients, before clipping;
* `activation`: RMS of what leaves the block;
* `attention_logit`: the largest q · k / √D that its softmax sees, over all heads, positions and documents;
* `update`: ‖ΔW‖ / ‖W‖ of the step, weight decay included; healthy is about 1e-3 of the weights.

Nothing of the step itself changes, so losses are bit-equal with it and without. What is measured hangs on
hooks around blocks, which compilation, recomputation and sharding leave alone. For the logits the block's
norm, projections and rotation are run once more on the same input, uncompiled and without gradients; then q
kᵀ is made a few rows of queries at a time, in float32, never S × S. The update is computed from AdamW's
moments after the step, so no copy of the weights is kept; with weights in bf16 it is the one before rounding.

A step that is measured costs one or two forward passes more, others nothing. Rejected: changing the attention
function for a step (compiled blocks would be compiled again), a copy of the weights (4 bytes a parameter)."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stablelm.model import Documents, StableLM
from stablelm.model.backends import Mask
from stablelm.training.parallel import Layout
from stablelm.training.parallel.gradients import held

SCORES = 1 << 24
"""Attention logits that are alive at once (64 MB)."""
MEASURES = ("gradient", "activation", "attention_logit", "update")
"""Lists of a record, one number a layer."""


class Health:
    """Measures the layers of one model."""

    def __init__(self, every: int, model: StableLM, layout: Layout) -> None:
        """`every`: steps between measurements; 0 never measures."""
        self.every, self.model, self.alone = every, model, layout.mesh is None
        self._parts: list[list[nn.Parameter]] = [
            [p for p in module.parameters() if p.requires_grad]
            for module in (
                *model.model.layers,
                model.model.embed_tokens,
                nn.ModuleList([model.model.norm, model.lm_head]),
            )
        ]
        self._layers = len(model.model.layers)
        self._due = self._counts = False

    @contextlib.contextmanager
    def listening(self, step: int) -> Iterator[None]:
        """Around the passes of a step, whose gradients are then measured too."""
        self._due = bool(self.every) and step % self.every == 0
        if not self._due:
            yield
            return
        zeros = torch.zeros(self._layers, dtype=torch.float64, device=self.model.device)
        self._squares, self._numbers, self._logits = zeros, zeros.clone(), zeros - math.inf
        self._updates: Tensor | None = None
        hooks = [self.model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for number, block in enumerate(self.model.model.layers):
            listener = _Listener(self, number)
            hooks += [block.register_forward_pre_hook(listener.before)]
            hooks += [block.register_forward_hook(listener.after)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        gradients = [[p.grad for p in part if p.grad is not None] for part in self._parts]
        self._gradients = self._table(map(_squares, gradients))

    def _begin(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        labels = named.get("labels")
        # A row that only keeps a process in step with the others is not of the data.
        self._counts = labels is None or bool((labels >= 0).any())

    def updated(self, optimizer: torch.optim.Optimizer) -> None:
        """After the optimizer's step."""
        if self._due:
            groups = {p: group for group in optimizer.param_groups for p in group["params"]}
            self._updates = self._table(_update(part, optimizer, groups) for part in self._parts)

    def _table(self, rows: Iterable[tuple[float | Tensor, ...]]) -> Tensor:
        """float64 [parts, 2]."""
        made = [[torch.as_tensor(n, dtype=torch.float64, device=self.model.device) for n in r] for r in rows]
        return torch.stack([torch.stack(row) for row in made])

    def record(self, step: int) -> dict[str, Any] | None:
        """What was measured in the step, over all processes; None when it was not to be. A number that is not
        finite is null; a rejected step has no update, nor have weights that are not trained."""
        if not self._due:
            return None
        tables = [self._gradients, *([] if self._updates is None else [self._updates])]
        sums = torch.cat([self._squares, self._numbers, *(table.flatten() for table in tables)])
        if not self.alone:
            dist.all_reduce(sums)
            dist.all_reduce(self._logits, dist.ReduceOp.MAX)
        squares, numbers, *rest = sums.split([self._layers] * 2 + [table.numel() for table in tables])  # type: ignore[no-untyped-call]
        told = {"activation": squares / numbers, "gradient": _ratio(rest[0])}
        if len(rest) > 1:
            told["update"] = _ratio(rest[1])
        found: dict[str, Any] = {"step": step, "kind": "health"}
        lists = {name: [_plain(v) for v in values.sqrt().tolist()] for name, values in told.items()}
        lists["attention_logit"] = [_plain(value) for value in self._logits.tolist()]
        for name in (name for name in MEASURES if name in lists):
            layers, outside = lists[name][: self._layers], lists[name][self._layers :]
            known = [value for value in layers if value is not None]
            found |= {name: layers, f"{name}_max": max(known) if known else None}
            found |= dict(zip((f"{name}_embedding", f"{name}_head"), outside, strict=False))
        return found


class _Listener:
    """The hooks of one block, and the `LayerCache` by which its attention hands over q and k."""

    def __init__(self, health: Health, number: int) -> None:
        self.health, self.number = health, number

    @torch.no_grad()
    def before(self, block: Any, given: tuple[Any, ...]) -> None:
        """Runs the block's attention, as far as q and k."""
        x, rotary, mask, _ = given
        if self.health._counts:
            block.self_attn(block.input_layernorm(x), rotary, mask, self)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Keeps the largest logit; what it gives back is not used."""
        best = self.health._logits[self.number]
        torch.maximum(best, largest_logit(q, k, mask).to(best.dtype), out=best)
        return q

    @torch.no_grad()
    def after(self, block: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        """Adds up what leaves the block."""
        if self.health._counts:
            norm = torch.linalg.vector_norm(out, dtype=torch.float64)
            self.health._squares[self.number] += norm.square()
            self.health._numbers[self.number] += out.numel()


def largest_logit(q: Tensor, k: Tensor, mask: Mask) -> Tensor:
    """max q · k / √D over what a query may look at, a scalar; q [B, H, S, D], k [B, K, S, D], both rotated.

    At most `SCORES` logits exist at a time, or one row of queries."""
    if isinstance(mask, Documents):
        pieces = [(b, i, j) for b, ends in enumerate(mask.ends) for i, j in mask.spans(ends)]
        found = [largest_logit(q[b, None, :, i:j], k[b, None, :, i:j], None) for b, i, j in pieces]
        return torch.stack(found).amax()
    batch, heads, length, width = q.shape
    exact = torch.promote_types(q.dtype, torch.float32)
    keys = k.to(exact).unsqueeze(2).transpose(3, 4)  # [B, K, 1, D, S]
    rows = max(1, SCORES // (batch * heads * length))
    best = torch.full((), -math.inf, dtype=exact, device=q.device)
    for first in range(0, length, rows):
        queries = q[:, :, first : first + rows].to(exact)
        queries = queries.reshape(batch, k.shape[1], -1, queries.shape[2], width)  # [B, K, H/K, r, D]
        last = first + queries.shape[3]
        if mask is None:
            scores = queries @ keys[..., :last]  # [B, K, H/K, r, last]
            later = torch.ones(last - first, last - first, dtype=torch.bool, device=q.device).triu(1)
            scores[..., first:].masked_fill_(later, -math.inf)
        else:
            scores = (queries @ keys).masked_fill(~mask[:, :, None, first:last], -math.inf)
        best = torch.maximum(best, scores.amax())
    return best * torch.tensor(width**-0.5, dtype=exact, device=q.device)


def _squares(tensors: list[Tensor]) -> tuple[float | Tensor, ...]:
    """Of the elements that this process is to count: Σ squares, their number."""
    if not tensors:
        return 0.0, 0.0
    parts = [held(tensor) for tensor in tensors]
    norms = torch.stack(torch._foreach_norm([part for part, _ in parts], 2.0, dtype=torch.float64))
    copies = torch.tensor([copies for _, copies in parts], dtype=torch.float64, device=norms.device)
    return (norms.square() / copies).sum(), sum(part.numel() / copies for part, copies in parts)


@torch.no_grad()
def _update(
    parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, groups: dict[Any, dict[str, Any]]
) -> tuple[float | Tensor, ...]:
    """Σ squares of what AdamW's last step changed, and of the weights before it."""
    changed: float | Tensor = 0.0
    before: float | Tensor = 0.0
    for parameter in parameters:
        state, group = optimizer.state[parameter], groups[parameter]
        (weight, copies), (first, _), (second, _) = (
            held(x) for x in (parameter.data, state["exp_avg"], state["exp_avg_sq"])
        )
        exact, step = torch.promote_types(weight.dtype, torch.float32), float(state["step"])
        (beta, beta_2), lr, decay = group["betas"], float(group["lr"]), group["weight_decay"]
        scale = (second.to(exact) / (1 - beta_2**step)).sqrt_().add_(group["eps"])
        change = first.to(exact) / scale * (lr / (1 - beta**step))
        old = (weight.to(exact) + change) / (1 - lr * decay)
        change += lr * decay * old
        changed = changed + torch.linalg.vector_norm(change, dtype=torch.float64).square() / copies
        before = before + torch.linalg.vector_norm(old, dtype=torch.float64).square() / copies
    return changed, before


def _ratio(table: Tensor) -> Tensor:
    first, second = table.view(-1, 2).unbind(1)
    return first / second


def _plain(value: float) -> float | None:
    """Six digits; None for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
