"""The head under tensor parallelism: its weight is cut by rows of the vocabulary, and told its group.

The loss itself is `model.head`'s, which adds maxima, normalisers and label logits up over that group. Its
gradient with respect to the hidden states leaves the loss already summed over the group, hence
`Replicate`."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from stablelm.training.parallel.placements import SEQUENCE


class VocabularyParallel(ParallelStyle):
    """Shards `Head.weight` [V, h] by rows; with sequence parallelism also gathers what enters the head."""

    def __init__(self, sequence_parallel: bool) -> None:
        super().__init__()
        self.sequence_parallel = sequence_parallel

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        head: Any = module
        weight = distribute_tensor(head.weight, device_mesh, [Shard(0)], src_data_rank=None)
        head.weight, head.group, head.own = nn.Parameter(weight), device_mesh.get_group(), _local

        def gathered(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, *rest = arguments
            if self.sequence_parallel:
                if not isinstance(hidden, DTensor):
                    hidden = DTensor.from_local(hidden, device_mesh, [Shard(SEQUENCE)], run_check=False)
                hidden = hidden.redistribute(placements=[Replicate()])
                hidden = hidden.to_local(grad_placements=[Replicate()])
            return (hidden, *rest)

        module.register_forward_pre_hook(gathered)
        return module


def _local(weight: Tensor) -> Tensor:
    """A DTensor's part on this process; its gradient is placed alike."""
    assert isinstance(weight, DTensor)
    return weight.to_local(grad_placements=weight.placements)
