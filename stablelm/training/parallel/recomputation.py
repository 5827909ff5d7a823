"""Activations that are computed again instead of kept, block by block.

`full` keeps what enters a block [B, S, h] and repeats its forward pass; `selective` keeps the results of
matrix products and of attention and repeats the cheap rest (norms, rotation, SwiGLU's product); a number n
does the former in every n-th block. It wraps a block's `forward`, inside `fully_shard`'s hooks, so no
parameter is renamed and weights are gathered once for both passes. Rejected: `checkpoint_wrapper` (a private
path, renames modules)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from stablelm.model import StableLM

_aten = torch.ops.aten
_KEPT = {
    packet.default
    for packet in (
        _aten.mm, _aten.addmm, _aten.bmm, _aten.linear,
        _aten._scaled_dot_product_flash_attention, _aten._scaled_dot_product_efficient_attention,
        _aten._scaled_dot_product_cudnn_attention, _aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.stablelm.widened_linear,
    )
}  # fmt: skip


def apply_recomputation(model: StableLM, mode: str | int) -> None:
    """`RunConfig.recompute`: none, selective, full, or every n-th block."""
    if mode == "none":
        return
    every = mode if isinstance(mode, int) else 1
    for block in list(model.model.layers)[every - 1 :: every]:
        _recompute(block, selective=mode == "selective")


def _recompute(block: nn.Module, *, selective: bool) -> None:
    forward: Callable[..., Tensor] = block.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)

    def repeated(*arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        out: Tensor = checkpoint(forward, *arguments, **options)
        return out

    block.forward = repeated


def _policy(context: Any, operator: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
