"""A step as it was done on fake tensors, beside the plan of it: every shard, every byte, every collective."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stablelm.config import ModelConfig
from stablelm.planning.devices import GIB
from stablelm.planning.layout import Layout
from stablelm.planning.memory import local_numbers, memory_of, parameter_shapes
from stablelm.planning.traffic import traffic_of

OVER, SMALL = 0.02, 4 << 20
"""How far the peak may be above the plan's: a share of it, and the bytes of small buffers that the formula
leaves out, which show in a network of a megabyte."""


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


def compare(
    model: ModelConfig, layout: Layout, rank: int, sizes: Mapping[str, int], weight_bytes: int,
    moment_bytes: int, peak: int, collectives: Mapping[str, int], seconds: float,
) -> DryRun:  # fmt: skip
    """What `rank` did beside the plan. `sizes`: weight → numbers it holds; `collectives`: kind → calls."""
    planned = {name: local_numbers(shape, cut, layout, rank) for name, shape, cut in parameter_shapes(model)}
    faults = [
        f"{name}: {sizes.get(name, 0):,} numbers on this rank, planned {planned.get(name, 0):,}"
        for name in dict.fromkeys((*planned, *sizes))
        if sizes.get(name) != planned.get(name)
    ]
    weights = layout.widths[0] * sum(planned.values())
    for what, found, wanted in (("weights", weight_bytes, weights), ("moments", moment_bytes, 2 * weights)):
        if found != wanted:
            faults.append(f"{what}: {found:,} bytes, planned {wanted:,}")
    need = memory_of(model, layout).total
    if peak > need + OVER * need + SMALL:
        faults.append(f"peak: {peak:,} bytes, planned {need:,}")
    calls = Counter[str]()
    for row in traffic_of(model, layout):
        calls[row.kind] += row.calls
    kinds = {kind: (collectives.get(kind, 0), calls[kind]) for kind in dict.fromkeys((*calls, *collectives))}
    for kind, (done, wanted) in kinds.items():
        if done != wanted:
            faults.append(f"{kind}: {done:,} calls, planned {wanted:,}")
    return DryRun(
        layout.world, rank, layout.describe(), layout.micro_batches, (weight_bytes, weights),
        (moment_bytes, 2 * weights), (peak, need), kinds, tuple(faults), round(seconds, 1),
    )  # fmt: skip
