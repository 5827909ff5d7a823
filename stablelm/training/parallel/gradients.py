"""The global gradient norm and clipping, right when parameters live on different meshes.

Each process sums the squares of what it holds, every parameter's divided by the number of processes that hold
the same elements, and one all-reduce over all processes adds them up in float64: an element counts once,
whether it is sharded, replicated, or on a mesh of its own (norms under tensor parallelism without sequence
parallelism). Rejected: `torch.nn.utils.clip_grad_norm_`, which refuses mixed meshes. Placements are asked
`is_replicate`: of a weight cut twice, `_StridedShard.is_shard()` is False."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def held(tensor: Tensor) -> tuple[Tensor, int]:
    """What this process has of a weight or gradient, and how many processes have the same elements."""
    copies = dist.get_world_size() if dist.is_initialized() else 1
    if not isinstance(tensor, DTensor):
        return tensor, copies
    for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        assert not placement.is_partial(), f"a gradient that is not summed up: {placement}"
        copies //= 1 if placement.is_replicate() else size
    return tensor.to_local(), copies


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients, a float64 scalar that is equal on all processes."""
    parts = [held(parameter.grad) for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm([part for part, _ in parts], 2.0, dtype=torch.float64))
    copies = torch.tensor([copies for _, copies in parts], dtype=torch.float64, device=norms.device)
    total = (norms.square() / copies).sum()
    dist.all_reduce(total)
    return total.sqrt()


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiplies every gradient, in place."""
    gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters
                 if p.grad is not None]  # fmt: skip
    torch._foreach_mul_(gradients, factor)
