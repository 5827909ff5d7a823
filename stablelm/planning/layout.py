"""How a run lies on its devices: who holds what, and how a step is cut into passes.

A mesh (replicate, shard, tensor) with tensor innermost, so its group sits inside a node. Nothing here touches
a device or a process group: a layout of 256 GPUs is checked on a laptop."""

from dataclasses import dataclass

from stablelm.config import ModelConfig, RunConfig
from stablelm.config.optimization import BatchConfig
from stablelm.config.parallelism import ParallelConfig

PRECISIONS = {"bf16": (4, 2, 4), "fp32": (4, 4, 4), "bf16-pure": (2, 2, 4)}
"""Precision → bytes a number of the kept weights and moments, of the computation, of the reduction."""

MESH = ("replicate", "shard", "tensor", "zero", "sequence_parallel")


@dataclass(frozen=True)
class Layout:
    """One way to run a step."""

    replicate: int
    """Replicas of the sharded state."""
    shard: int
    """Devices over which weights, moments and gradients of one replica are sharded."""
    tensor: int
    """Devices that share every matrix product."""
    zero: int
    """What is sharded (Rajbhandari et al., 2020): 0 nothing, 1 moments, 2 gradients, 3 weights."""
    sequence_parallel: bool
    """Norms and residual stream are cut along the sequence over the tensor group."""
    micro_sequences: int
    """Sequences in one pass of one data-parallel rank."""
    micro_batches: int
    """Passes accumulated in a step."""
    sequence_length: int
    """Tokens in a sequence."""
    recompute: str | int = "none"
    """none, selective, full, or n: every n-th block."""
    precision: str = "bf16"
    """bf16, fp32, bf16-pure."""
    loss_chunk: int = 512
    """Tokens whose logits are alive at once."""
    compiled: bool = False
    """Blocks are compiled, which keep less of their forward pass."""
    ema: bool = False
    """A moving average of the weights is kept, in float32, sharded as they are."""

    @property
    def world(self) -> int:
        """Devices."""
        return self.replicate * self.shard * self.tensor

    @property
    def data(self) -> int:
        """Ranks that read different samples."""
        return self.replicate * self.shard

    @property
    def tokens(self) -> int:
        """Tokens in one pass of one rank."""
        return self.micro_sequences * self.sequence_length

    @property
    def step_tokens(self) -> int:
        """Tokens in one step, over all devices; what the last pass lacks is counted as if it were there."""
        return self.data * self.micro_batches * self.tokens

    @property
    def widths(self) -> tuple[int, int, int]:
        """Bytes a number: kept, computed with, reduced."""
        return PRECISIONS[self.precision]

    def describe(self) -> str:
        """The layout in a line."""
        tensor = f" × tensor {self.tensor}" if self.tensor > 1 else ""
        cut = " with sequence parallelism" if self.tensor > 1 and self.sequence_parallel else ""
        recompute = f"every {self.recompute}. block" if isinstance(self.recompute, int) else self.recompute
        return (
            f"replicate {self.replicate} × shard {self.shard}{tensor}{cut}, ZeRO {self.zero}, micro-batch "
            f"{self.micro_sequences} × {self.micro_batches}, recompute {recompute}, {self.precision}"
        )


def make_layout(
    model: ModelConfig,
    world: int,
    *,
    sequences: int,
    micro_sequences: int,
    sequence_length: int,
    replicate: int = 1,
    shard: int | None = None,
    tensor: int = 1,
    zero: int = 1,
    sequence_parallel: bool = True,
    recompute: str | int = "none",
    precision: str = "bf16",
    loss_chunk: int = 512,
    ema: bool = False,
) -> Layout:
    """The layout of a step of `sequences` on `world` devices; refuses what the trainer would refuse.

    `shard` None takes what is left. ZeRO 0 shards nothing: every data-parallel rank is a replica."""
    parallel = ParallelConfig(
        replicate=replicate, shard=shard, tensor=tensor, zero=zero, sequence_parallel=sequence_parallel
    )
    batch = BatchConfig(sequences=sequences, micro_sequences=micro_sequences, sequence_length=sequence_length)
    replicate, shard, tensor = degrees = parallel.check(world, model, batch)
    mine = sequences // degrees.data
    micro = min(micro_sequences, mine)
    return Layout(
        replicate, shard, tensor, zero, sequence_parallel, micro, -(-mine // micro), sequence_length,
        recompute, precision, loss_chunk, ema=ema,
    )  # fmt: skip


def layout_of(config: RunConfig, world: int, device_type: str = "cpu") -> Layout:
    """The layout of a run on `world` devices: its sections `batch` and `parallel`, its key `recompute`."""
    values = config.model_dump()
    batch, parallel = values["batch"], values["parallel"]
    return make_layout(
        config.model, world,
        **{key: batch[key] for key in ("sequences", "micro_sequences", "sequence_length")},
        **{key: parallel[key] for key in MESH},
        **{key: values[key] for key in ("precision", "recompute")},
        loss_chunk=config.loss_tokens(device_type),
        ema=config.ema.decay is not None,
    )  # fmt: skip
