"""How a run is laid out over processes: a mesh of (replicate, shard, tensor), and the ZeRO stage.

The degrees multiply to the number of processes; `shard: null` takes what the others leave, so one file runs
on any number of them. A mesh changes memory, traffic and speed, never what is computed (docs/parallelism.md).
`degrees` and `check` need no process group: a plan can ask them about machines that are not there."""

from typing import NamedTuple

from pydantic import Field

from stablelm.config.errors import InputError
from stablelm.config.model import ModelConfig
from stablelm.config.optimization import BatchConfig
from stablelm.config.schema import Schema


class Degrees(NamedTuple):
    """Sizes of the mesh's three dimensions, outermost first."""

    replicate: int
    shard: int
    tensor: int

    @property
    def data(self) -> int:
        """Processes that read different samples."""
        return self.replicate * self.shard


class ParallelConfig(Schema):
    """The mesh: replicate × shard × tensor = the number of processes."""

    replicate: int = Field(1, ge=1)
    """Groups of processes that each hold all weights and moments between them (hybrid sharding)."""
    shard: int | None = Field(None, ge=1)
    """Processes that weights and moments are shared out over; null: what replicate and tensor leave."""
    tensor: int = Field(1, ge=1)
    """Processes that compute one sequence together, each with its part of the heads, of the MLP and of the
    vocabulary."""
    zero: int = Field(1, ge=0, le=3)
    """ZeRO stage. 0: every process has all moments; 1: they are shared out; 2: gradients too, also while
    accumulating; 3: weights too, also between forward and backward."""
    sequence_parallel: bool = True
    """With tensor > 1: norms and residuals are shared out along the sequence."""
    timeout: float = Field(600, gt=0)
    """Seconds that a process waits for another before it gives up: at the start for one that is missing, then
    in each exchange."""

    def degrees(self, world: int) -> Degrees:
        """The mesh for `world` processes; `InputError` when the degrees do not multiply to it."""
        fixed = self.replicate * self.tensor
        shard = self.shard if self.shard is not None else max(1, world // fixed)
        if fixed * shard != world:
            asked = "what is left" if self.shard is None else self.shard
            raise InputError(
                f"parallel: replicate {self.replicate} × shard {asked} × tensor {self.tensor} does not make "
                f"{world} process{'es' * (world > 1)}. Start a multiple of {fixed} and leave `shard: null`, "
                "or change the degrees."
            )
        return Degrees(self.replicate * shard, 1, self.tensor) if self.zero == 0 else Degrees(
            self.replicate, shard, self.tensor
        )  # fmt: skip

    def check(self, world: int, model: ModelConfig, batch: BatchConfig) -> Degrees:
        """`degrees`, after making sure that they divide the network and the batch; else an `InputError`."""
        degrees = self.degrees(world)
        tensor = degrees.tensor
        parts = {
            "model.num_attention_heads": model.num_attention_heads,
            "model.num_key_value_heads": model.num_key_value_heads,
            "model.intermediate_size": model.intermediate_size,
            "model.vocab_size": model.vocab_size,
        }
        if self.sequence_parallel:
            parts["batch.sequence_length"] = batch.sequence_length
        for name, size in parts.items():
            if size % tensor:
                remedy = ", or switch parallel.sequence_parallel off" if name.startswith("batch") else ""
                raise InputError(
                    f"parallel.tensor {tensor} does not divide {name} {size:,}; choose a divisor{remedy}."
                )
        if tensor > 1 and model.qk_layernorm:
            raise InputError(
                f"parallel.tensor {tensor}: a network with qk_layernorm has a norm for each head and cannot "
                "be cut; use tensor: 1."
            )
        if batch.sequences % degrees.data:
            raise InputError(
                f"batch.sequences {batch.sequences:,} cannot be shared out evenly over {degrees.data} data-"
                f"parallel processes (replicate × shard); use a multiple of {degrees.data}, or another mesh."
            )
        return degrees
