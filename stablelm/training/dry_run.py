"""A whole step of any mesh on one machine without a GPU: real placements, fake tensors, nobody to talk to.

PyTorch's fake process group stands for all ranks but this one, fake tensors for all numbers: the step runs the
trainer's own network, placements, recomputation and optimizer, and allocates nothing. What it shows is held
against the plan: every weight's shard, the moments, the peak of memory (each storage that is alive is counted
at each operation), the number of collectives. About 10 s and 1 GiB for 2.8B parameters.

A process has one fake group: a second one breaks DTensor's look-up of groups by name. So each dry run has a
process of its own. Rejected: FSDPMemTracker (on fake CPU tensors it counts a thousand times the optimizer's
state, torch 2.13)."""

import multiprocessing
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stablelm.config import InputError, RunConfig
from stablelm.config.errors import RunError
from stablelm.config.run import run_config
from stablelm.model import StableLM
from stablelm.planning.devices import GIB
from stablelm.planning.layout import Layout, layout_of
from stablelm.planning.memory import local_numbers, memory_of, parameter_shapes
from stablelm.planning.traffic import traffic_of

PASSES = 2
"""Most passes of a step that are run: further ones repeat the last."""
KINDS = {
    "_allgather_base_": "all-gather", "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_coalesced": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter", "reduce_scatter_tensor": "reduce-scatter",
    "allreduce_": "all-reduce", "all_reduce": "all-reduce",
}  # fmt: skip
"""PyTorch's operator → what it is."""


@dataclass(frozen=True)
class DryRun:
    """What a fake step did, beside what the plan says; bytes of one rank."""

    world: int
    rank: int
    layout: str
    passes: int
    """Passes that were run."""
    weights: tuple[int, int]
    """Done, planned."""
    moments: tuple[int, int]
    peak: tuple[int, int]
    collectives: dict[str, tuple[int, int]]
    """Kind → done, planned."""
    faults: tuple[str, ...]
    """Where the step is not as planned, tensor by tensor; empty when all is well."""
    seconds: float

    def lines(self) -> list[str]:
        """The result for a reader."""
        counts = ", ".join(f"{done:,} {kind}" for kind, (done, _) in self.collectives.items())
        return [
            f"Dry run of rank {self.rank} of {self.world:,}: {self.layout}; {self.passes} of its passes",
            f"  weights {self.weights[0]:,} bytes, moments {self.moments[0]:,} bytes",
            f"  peak {self.peak[0] / GIB:,.2f} GiB, planned {self.peak[1] / GIB:,.2f}",
            f"  collectives: {counts or 'none'}",
            *(f"  NOT AS PLANNED: {fault}" for fault in self.faults),
            *([] if self.faults else ["  as planned: every weight's shard, the moments, every collective"]),
            f"  {self.seconds:.1f} s",
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
            pipe.send(("done", fake_step(run_config(values), world, rank)))
    except InputError as error:
        pipe.send(("input", str(error)))
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def fake_step(config: RunConfig, world: int, rank: int) -> DryRun:
    """The step itself; leaves a fake process group behind, so call it once in a process."""
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from stablelm.training.optimizer import make_optimizer, moments
    from stablelm.training.parallel import build_mesh, parallelize

    began, full = time.perf_counter(), layout_of(config, world)
    layout = replace(full, micro_batches=min(PASSES, full.micro_batches))
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    mesh = build_mesh(getattr(config,"parallel",None), world, "cpu")
    with torch.device("meta"):
        model = StableLM(config.model)
    model.lm_head.chunk = config.loss_chunk
    parallelize(model, mesh, config)
    alive = Alive()
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        model.to_empty(device="cpu")
        optimizer = make_optimizer(model, config.optimizer)
        state = moments(model, optimizer)
        weights = {name: _local(p) for name, p in model.named_parameters()}
        for tensor in (*weights.values(), *map(_local, state.values())):
            alive.see(tensor)
        shape = (layout.micro_sequences, layout.sequence_length)
        ids = torch.zeros(shape, dtype=torch.long)
        with CommDebugMode() as counter, alive:
            for index in range(layout.micro_batches):
                last_pass(model, layout, index == layout.micro_batches - 1)
                model(ids, labels=ids).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sizes = {_plain(name): weight.numel() for name, weight in weights.items()}
        held = sum(_bytes(weight) for weight in weights.values())
        moved = sum(_bytes(_local(tensor)) for tensor in state.values())
    done = Counter[str]()
    for operator, calls in counter.get_comm_counts().items():
        name = str(operator).rpartition(".")[2]
        done[KINDS.get(name, name)] += calls
    return _compared(config, layout, rank, sizes, held, moved, alive.peak, done, time.perf_counter() - began)


def last_pass(model: Any, layout: Layout, last: bool) -> None:
    """What the trainer tells `fully_shard` before each pass."""
    if layout.zero <= 1:
        model.set_requires_gradient_sync(last)
    if layout.zero <= 2:
        model.set_reshard_after_backward(last)
    model.set_is_last_backward(last)


class Alive(TorchDispatchMode):
    """Bytes of the storages that are alive: their most is `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, Any] = {}
        self.peak = 0

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
        result = function(*args, **(kwargs or {}))
        new = sum(self.see(leaf) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        if new > self.peak / 10_000:
            # Summed anew: fully_shard frees by resizing, which no operation shows.
            found = [reference() for reference in list(self.storages.values())]
            self.peak = max(self.peak, sum(storage.nbytes() for storage in found if storage is not None))
        return result


def _compared(
    config: RunConfig, layout: Layout, rank: int, sizes: Mapping[str, int], held: int, moved: int, peak: int,
    done: Counter[str], seconds: float,
) -> DryRun:  # fmt: skip
    """What was done beside what is planned, and every difference."""
    kept, model = layout.widths[0], config.model
    planned = {name: local_numbers(shape, cut, layout, rank) for name, shape, cut in parameter_shapes(model)}
    faults = [
        f"{name}: {sizes.get(name, 0):,} numbers on this rank, planned {planned.get(name, 0):,}"
        for name in dict.fromkeys((*planned, *sizes))
        if sizes.get(name) != planned.get(name)
    ]
    weights, moments = kept * sum(planned.values()), 2 * kept * sum(planned.values())
    rows = traffic_of(model, layout)
    calls = Counter[str]()
    for row in rows:
        calls[row.kind] += row.calls
    need = memory_of(model, layout).total
    for what, found, wanted in (("weights", held, weights), ("moments", moved, moments)):
        if found != wanted:
            faults.append(f"{what}: {found:,} bytes, planned {wanted:,}")
    if peak > 1.02 * need:
        faults.append(f"peak: {peak:,} bytes, planned {need:,}")
    for kind in dict.fromkeys((*calls, *done)):
        if calls[kind] != done[kind]:
            faults.append(f"{kind}: {done[kind]:,} calls, planned {calls[kind]:,}")
    kinds = {kind: (done[kind], calls[kind]) for kind in dict.fromkeys((*calls, *done))}
    return DryRun(
        layout.world, rank, layout.describe(), layout.micro_batches, (held, weights), (moved, moments),
        (peak, need), kinds, tuple(faults), round(seconds, 1),
    )  # fmt: skip


def _plain(name: str) -> str:
    """A weight's name without what recomputation and compilation wrap around modules."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
