"""Who am I among how many: ranks as torchrun or srun tell them, then one process group.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK and the address. srun sets SLURM_PROCID and SLURM_STEP_NUM_TASKS;
the meeting point is then the first node of the step, at a port made from the job's number, unless MASTER_ADDR
or MASTER_PORT say otherwise. One process alone makes no group, and computes as if this room did not exist.
CUDA talks NCCL, and gloo for what lies in host memory; a CPU gloo alone."""

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.training.parallel.meeting import meet


@dataclass(frozen=True)
class Place:
    """This process among those that were started together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Its number on its machine, which is its GPU."""
    address: str = "127.0.0.1"
    port: int = 29500


def discover(environment: Mapping[str, str]) -> Place:
    """The place that torchrun or srun gave this process; alone when neither did."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, world, local = (_number(environment, name, 0) for name in names)
    elif "SLURM_PROCID" in environment and _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        rank, world, local = (_number(environment, name, 0) for name in names)
    else:
        return Place()
    if not 0 <= rank < world:
        raise InputError(
            f"{names[0]} {rank} is not below {names[1]} {world}; start the run with torchrun or srun."
        )
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    address = environment.get("MASTER_ADDR") or (first_node(nodes) if nodes else "127.0.0.1")
    port = 20_000 + _number(environment, "SLURM_JOB_ID", 9_500) % 20_000
    return Place(rank, world, local, address, _number(environment, "MASTER_PORT", port))


def world_size() -> int:
    """How many processes there are: in the group, or, before there is one, as torchrun or srun tell."""
    return dist.get_world_size() if dist.is_initialized() else discover(os.environ).world


def first_node(nodes: str) -> str:
    """The first name of a Slurm node list: gpu[003-010,12],x → gpu003."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if text and not text.isdecimal():
        raise InputError(f"environment variable {name} is {text!r}; a whole number is wanted.")
    return int(text) if text else default


def start(device: torch.device, timeout: float) -> tuple[torch.device, bool]:
    """Joins the other processes, if any → the device of this one, and whether a group was made here.

    `RunError` when not all of them come within `timeout` seconds."""
    place = discover(os.environ)
    if dist.is_initialized() or place.world == 1:
        return device, False
    if device.type == "cuda":
        device = _gpu(device, place)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store = meet(os.environ, place.rank, place.world, timeout)
        address = f"tcp://{place.address}:{place.port}" if "RANK" not in os.environ else "env://"
        dist.init_process_group(
            backend, store=store, init_method=None if store is not None else address,
            rank=place.rank, world_size=place.world, timeout=datetime.timedelta(seconds=timeout),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:  # DistStoreError and its like are RuntimeErrors
        if "address already in use" in str(error).lower():
            raise RunError(
                f"process {place.rank} of {place.world}: port {place.port} of {place.address}, where all "
                "meet, is in use by another program, perhaps another run. Choose a free one: MASTER_PORT in "
                "the environment of all, or torchrun --master-port."
            ) from error
        raise RunError(
            f"process {place.rank} of {place.world}: not all of them came to {place.address}:{place.port} "
            f"within {timeout:,.0f} s ({str(error).splitlines()[0][:200]}). Look at the log of the one that "
            "is missing; parallel.timeout waits longer."
        ) from error
    return device, True


def _gpu(device: torch.device, place: Place) -> torch.device:
    count = torch.cuda.device_count()
    if count > 1 and device.index is not None:
        raise InputError(f"device {device} is one GPU for all processes of a machine; use cuda or auto.")
    if count > 1 and place.local_rank >= count:
        raise InputError(
            f"process {place.rank} is number {place.local_rank + 1} on a machine with {count} GPUs; start as "
            "many processes a machine as it has GPUs."
        )
    index = place.local_rank if count > 1 else 0  # srun may show each process its own alone
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def finish(started: bool) -> None:
    """Leaves the group that `start` made."""
    if started and dist.is_initialized():
        dist.destroy_process_group()
