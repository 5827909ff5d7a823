"""One fake step in a process of its own, placed by nothing but `fully_shard`: `python fake_step.py JSON`.

Prints the result as JSON. The sections of the configuration that it adds are those that placing needs."""

import json
import sys
import warnings
from typing import Any

import torch
from pydantic import Field
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from stablelm.config import RunConfig
from stablelm.planning import layout_of
from stablelm.training.dry_run import fake_step


class Config(RunConfig):
    """With a mesh and recomputation."""

    parallel: dict[str, Any] = Field(default_factory=dict)
    recompute: str | int = "none"


class FullySharded:
    """Blocks one by one, the rest together; nothing is cut within a matrix."""

    def build_mesh(self, parallel: dict[str, Any], world: int, device_type: str) -> Any:
        replicate = world if parallel.get("zero") == 0 else parallel.get("replicate", 1)
        names = ("dp_replicate", "dp_shard")
        return init_device_mesh(device_type, (replicate, world // replicate), mesh_dim_names=names)

    def parallelize(self, model: Any, mesh: Any, config: Config, device_type: str) -> Any:
        layout, policy = layout_of(config, mesh.size()), MixedPrecisionPolicy(reduce_dtype=torch.float32)
        if config.precision == "bf16":
            model.compute_dtype = torch.bfloat16
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.model.layers:
            if config.recompute == "full":
                block.forward = recomputed(block.forward)
        used = mesh if layout.replicate > 1 else mesh["dp_shard"]
        for module in (*model.model.layers, model):
            fully_shard(module, mesh=used, reshard_after_forward=layout.zero == 3, mp_policy=policy)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return model


def recomputed(forward: Any) -> Any:
    return lambda *inputs: checkpoint(forward, *inputs, use_reentrant=False)


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    config = Config(**wanted["config"])
    print(json.dumps(fake_step(config, wanted["world"], wanted["rank"], FullySharded()).as_dict()))
