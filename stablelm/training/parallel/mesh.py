"""Where a process stands in the mesh (dp_replicate, dp_shard, tp), and what that makes it read.

Neighbouring ranks share tensors, the outermost dimension is replication: the most talkative dimension gets
the nearest devices. ZeRO stage 0 is the mesh (N, 1): nothing is sharded. A plain process has no mesh."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from stablelm.config import RunConfig
from stablelm.config.parallelism import ParallelConfig

REPLICATE, SHARD, TENSOR = "dp_replicate", "dp_shard", "tp"


def build_mesh(parallel: ParallelConfig, world: int, device_type: str) -> DeviceMesh:
    """The mesh over all `world` processes of the group; `InputError` when the degrees do not make it."""
    return init_device_mesh(
        device_type, tuple(parallel.degrees(world)), mesh_dim_names=(REPLICATE, SHARD, TENSOR)
    )


@dataclass(frozen=True)
class Layout:
    """The part of a run that this process does."""

    mesh: DeviceMesh | None = None
    data: int = 1
    """Processes (or groups of them, with tensor parallelism) that read different samples."""
    part: int = 0
    """Which of these this one is."""

    @classmethod
    def of(cls, config: RunConfig, device_type: str) -> "Layout":
        """For the process group at hand, a plain process when there is none; refuses a mesh that does not
        fit the network or the batch."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        degrees = config.parallel.check(world, config.model, config.batch)
        if not dist.is_initialized():
            return cls()
        mesh = build_mesh(config.parallel, world, device_type)
        return cls(mesh, degrees.data, dist.get_rank() // degrees.tensor)

    @property
    def tensor(self) -> int:
        """Processes that compute a sequence together."""
        return 1 if self.mesh is None else self.mesh[TENSOR].size()

    @property
    def replicates(self) -> bool:
        """Whether gradients are also added up over replicas."""
        return self.mesh is not None and self.mesh[REPLICATE].size() > 1

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.data * self.tensor

    def share(self, count: int) -> tuple[int, int]:
        """First and one past the last of `count` rows that are this part's; the last parts may have fewer."""
        each = -(-count // self.data)
        return min(self.part * each, count), min((self.part + 1) * each, count)
