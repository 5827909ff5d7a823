"""A whole step of any mesh on one machine without a GPU: real placements, fake tensors, nobody to talk to.

PyTorch's fake process group stands for all ranks but this one, fake tensors for all numbers: the step runs
the trainer's own network, placements, recomputation and optimizer, and allocates nothing. What it shows is
held against the plan: every weight's shard, the moments, the peak of memory (each storage that is alive is
counted at each operation), the number of collectives. About 10 s and 1 GiB for 2.8B parameters.

A process has one fake group: a second one breaks DTensor's look-up of groups by name. So each dry run has a
process of its own. Rejected: FSDPMemTracker (on fake CPU tensors it counts a thousand times the optimizer's
state, torch 2.13), CommDebugMode (it loses its place in the second pass of a step)."""

import multiprocessing
import time
import warnings
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stablelm.config import InputError, RunConfig
from stablelm.config.errors import RunError
from stablelm.config.run import run_config
from stablelm.model import StableLM
from stablelm.planning.comparison import DryRun, compare
from stablelm.planning.layout import layout_of

PASSES = 2
"""Most passes of a step that are run: further ones repeat the last."""
KINDS = {
    "_allgather_base_": "all-gather", "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_coalesced": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter", "reduce_scatter_tensor": "reduce-scatter",
    "allreduce_": "all-reduce", "all_reduce": "all-reduce",
}  # fmt: skip
"""PyTorch's operator → what it is."""


def dry_run(config: RunConfig, world: int, rank: int = 0, *, limit: float = 600) -> DryRun:
    """One fake step of `config` as `rank` of `world`, in a process of its own that has `limit` seconds.

    Raises `InputError` where the mesh does not fit, `RunError` where the step itself fails."""
    if not 0 <= rank < world:
        raise InputError(f"rank {rank}: a number from 0 to {world - 1} is wanted.")
    layout_of(config, world)  # refuses here, before a process is started
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(config.model_dump(mode="json"), world, rank, theirs))
    child.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            raise RunError(f"the dry run took more than {limit:g} s; it was stopped.")
        kind, result = ours.recv()
    except EOFError:
        raise RunError(f"the dry run's process died (exit code {child.exitcode}).") from None
    finally:
        child.kill()
        child.join()
        ours.close()
    if kind == "input":
        raise InputError(result)
    if kind == "failed":
        raise RunError(f"the dry run's step failed: {result}")
    done: DryRun = result
    return done


def _child(values: dict[str, Any], world: int, rank: int, pipe: Any) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.send(("done", fake_step(run_config(values | {"compile": False}), world, rank)))
    except InputError as error:
        pipe.send(("input", str(error)))
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def fake_step(config: RunConfig, world: int, rank: int) -> DryRun:
    """The step itself; leaves a fake process group behind, so call it once in a process."""
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from stablelm.interchange.native import EMA
    from stablelm.training.ema import Ema, kept
    from stablelm.training.optimizer import make_optimizer, moments
    from stablelm.training.parallel import build_mesh, parallelize
    from stablelm.training.parallel.apply import accumulate

    began, full = time.perf_counter(), layout_of(config, world)
    layout = replace(full, micro_batches=min(PASSES, full.micro_batches))
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    mesh = build_mesh(config.parallel, world, "cpu")
    with torch.device("meta"):
        model = StableLM(config.model)
    model.lm_head.chunk = config.loss_tokens("cpu")
    parallelize(model, mesh, config, "cpu")
    alive = Alive()
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        model.to_empty(device="cpu")
        optimizer = make_optimizer(model, config.optimizer)
        state = moments(model, optimizer)
        weights = {name: _local(p) for name, p in model.named_parameters()}
        average = kept(Ema.of(config.ema, model)).get(EMA, {})
        for tensor in (*weights.values(), *map(_local, (*state.values(), *average.values()))):
            alive.see(tensor)
        shape = (layout.micro_sequences, layout.sequence_length)
        ids = torch.zeros(shape, dtype=torch.long)

        def passes() -> None:
            for index in range(layout.micro_batches):
                accumulate(model, layout.replicate > 1, layout.zero, index == layout.micro_batches - 1)
                model(ids, labels=ids).backward()

        # What DTensor does once is not counted: it finds placements by tensors of whole size, in the first
        # pass of a tensor-parallel network and in the optimizer, which needs no memory of its own.
        if layout.tensor > 1:
            passes()
            optimizer.zero_grad(set_to_none=True)
        with alive:
            passes()
        optimizer.step()
        sizes = {_plain(name): weight.numel() for name, weight in weights.items()}
        held = sum(_bytes(weight) for weight in weights.values())
        moved = sum(_bytes(_local(tensor)) for tensor in state.values())
    return compare(
        config.model, layout, rank, sizes, held, moved, alive.peak, alive.collectives,
        time.perf_counter() - began,
    )  # fmt: skip


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that are alive, their most as `peak`; and the collectives, by kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, Any] = {}
        self.peak = 0
        self.collectives = Counter[str]()

    def see(self, tensor: torch.Tensor) -> int:
        """Counts a tensor's storage from now on, until it is freed; returns its bytes if it is new."""
        storage = _local(tensor).untyped_storage()
        key = storage._cdata
        if key in self.storages:
            return 0
        self.storages[key] = weakref.ref(storage, lambda _: self.storages.pop(key, None))
        return int(storage.nbytes())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from torch.distributed.tensor import DTensor

        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back as operations on local tensors
        if (
            function.namespace in ("c10d", "_c10d_functional")
            and (name := function.overloadpacket.__name__) in KINDS
        ):
            self.collectives[KINDS[name]] += 1
        result = function(*args, **(kwargs or {}))
        new = sum(self.see(leaf) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        if new > self.peak / 10_000:
            # Summed anew: fully_shard frees by resizing, which no operation shows.
            found = [reference() for reference in list(self.storages.values())]
            self.peak = max(self.peak, sum(storage.nbytes() for storage in found if storage is not None))
        return result


def _plain(name: str) -> str:
    """A weight's name without what recomputation and compilation wrap around modules."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
