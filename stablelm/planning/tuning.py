"""What fine-tuning needs on one device, by method: all weights, an adapter, an adapter upon packed weights.

All weights: `memory.py`, as in training. With an adapter the model is frozen and kept in the precision of the
computation, or packed; only the adapter has gradients and moments, in float32; the head's gradient, the
largest passing tensor of full tuning, does not exist. What a block keeps for its backward pass is the same
(inputs of its matrices feed the adapter), and r numbers a token and matrix more. Packed weights add pieces of
dense ones. Tests hold it to what PyTorch allocates in a step, within 10 %."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stablelm.config import InputError, ModelConfig
from stablelm.inference.packed_products import PIECE
from stablelm.kernels.cpu.packing import shapes
from stablelm.planning.devices import GIB
from stablelm.planning.estimate_text import columns
from stablelm.planning.layout import Layout, make_layout
from stablelm.planning.memory import (
    FRAGMENTED,
    RESERVED,
    Memory,
    block_activations,
    memory_of,
    parameter_shapes,
)

SIZES = (8, 16, 24, 40)
"""GB of the devices that are asked about."""
MOST_ROWS = 1024
"""More are not looked for."""


@dataclass(frozen=True)
class Method:
    """One way to tune."""

    name: str
    precision: str = "bf16"
    rank: int | None = None
    """Of an adapter on every projection of the blocks; None tunes all weights."""
    bits: int | None = None
    """Of packed weights under the adapter; the head has 8."""


def methods(rank: int) -> tuple[Method, ...]:
    """Those that `stablelm finetune` has, hungriest first."""
    return (
        Method("full"),
        Method("full, bf16-pure", "bf16-pure"),
        Method(f"LoRA {rank}", rank=rank),
        Method(f"QLoRA {rank}, 8 bits", rank=rank, bits=8),
        Method(f"QLoRA {rank}, 4 bits", rank=rank, bits=4),
    )


@dataclass(frozen=True)
class Need:
    """What a method needs for rows of a length."""

    method: Method
    memory: Memory
    """With one row in a pass."""
    rows: dict[int, int]
    """Device's GB → the most rows of this length in a pass; 0 does not fit."""
    longest: dict[int, int]
    """Device's GB → tokens of the longest single row that fits, up to the model's context."""


@dataclass(frozen=True)
class TuningEstimate:
    """The answer of `stablelm plan --finetune`."""

    title: str
    model: ModelConfig
    length: int
    recompute: str | int
    sizes: tuple[int, ...]
    needs: tuple[Need, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; bytes."""
        needs = [{**asdict(need), "memory": need.memory.as_dict()} for need in self.needs]
        return {
            "model": self.title, "parameters": self.model.num_parameters, "sequence_length": self.length,
            "recompute": self.recompute, "sizes_gb": list(self.sizes), "methods": needs,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For a reader."""
        table = [["", "one row", *(f"{size} GB" for size in self.sizes)]]
        for need in self.needs:
            cells = [self._cell(need, size) for size in self.sizes]
            table.append([need.method.name, f"{need.memory.needed / 1e9:,.1f} GB", *cells])
        parts = [["GB for one row", "model", "gradients", "moments", "casts", "activations", "at work"]]
        for need in self.needs:
            values = [f"{value / 1e9:,.2f}" for value in _parts(need.memory)]
            parts.append([need.method.name, *values])
        mode = f"recompute: {self.recompute}"
        return [
            f"Fine-tuning {self.title}, {self.model.num_parameters:,} parameters, on one device; {mode}",
            f"Rows of {self.length:,} tokens that fit in one pass (batch.micro_sequences); where none does,",
            "the longest row that does:",
            *columns(table),
            "",
            *columns(parts),
            "  model: with the adapter; at work: logits, the head's gradient, the block in hand. Besides:",
            f"  {RESERVED / 1e9:.1f} GB for driver and process; {FRAGMENTED:.0%} of a device stay free.",
        ]

    def _cell(self, need: Need, size: int) -> str:
        rows, longest = need.rows[size], need.longest[size]
        if rows:
            return f"{rows:,}{'+' * (rows == MOST_ROWS)} row{'s' * (rows > 1)}"
        return f"{longest:,} tokens" if longest else "no"


def _parts(memory: Memory) -> tuple[int, ...]:
    return (
        memory.weights, memory.gradients, memory.moments, memory.gathered, memory.activations, memory.passing
    )  # fmt: skip


def estimate_tuning(
    model: ModelConfig,
    title: str,
    *,
    rank: int = 16,
    length: int | None = None,
    sizes: Sequence[int] = SIZES,
    recompute: str | int = "full",
    loss_chunk: int = 512,
) -> TuningEstimate:
    """Every method on devices of some GB; `length` None takes the model's context, at most 2,048."""
    length = length or min(2048, model.max_position_embeddings)
    if not 2 <= length <= model.max_position_embeddings:
        raise InputError(
            f"--sequence-length {length:,}: from 2 to the model's context, {model.max_position_embeddings:,}."
        )
    if rank > (side := min(min(shape) for shape in projections_of(model))):
        raise InputError(f"--rank {rank:,}: at most {side:,} is a rank of this model's matrices.")
    if wrong := [size for size in sizes if size < 1]:
        raise InputError(f"--memory {wrong[0]}: GB of a device, as 24.")

    def needed(method: Method, rows: int, tokens: int) -> Memory:
        layout = make_layout(
            model, 1, sequences=2 * rows, micro_sequences=rows, sequence_length=tokens, recompute=recompute,
            precision=method.precision, loss_chunk=loss_chunk,
        )  # fmt: skip
        return tuning_memory(model, layout, method)

    def most(method: Method, size: int, limit: int, rows: int | None) -> int:
        """The most rows, or (with `rows`) tokens of a row, up to `limit` that fit in `size` GB; 0: none."""
        fits, fails = 0, limit + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            memory = needed(method, middle, length) if rows is None else needed(method, rows, max(2, middle))
            fits, fails = (middle, fails) if memory.needed <= usable(size) else (fits, middle)
        return fits

    def need(method: Method) -> Need:
        rows = {size: most(method, size, MOST_ROWS, None) for size in sizes}
        longest = {size: most(method, size, model.max_position_embeddings, 1) for size in sizes}
        return Need(method, needed(method, 1, length), rows, longest)

    return TuningEstimate(
        title, model, length, recompute, tuple(sizes), tuple(need(method) for method in methods(rank))
    )


def usable(size: int) -> int:
    """Bytes of a device of `size` GB, as its maker says it, that a step may need."""
    return int(size * GIB * (1 - FRAGMENTED))


def tuning_memory(model: ModelConfig, layout: Layout, method: Method) -> Memory:
    """Bytes at the worst moment of a step on one device."""
    if method.rank is None:
        return memory_of(model, replace(layout, precision=method.precision))
    return max(_moments(model, layout, method, method.rank), key=lambda moment: moment.total)


def projections_of(model: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of every projection of one block."""
    at = "model.layers.0."
    return [
        (shape[0], shape[1])
        for name, shape, _ in parameter_shapes(model)
        if name.startswith(at) and len(shape) == 2
    ]


def frozen_bytes(model: ModelConfig, method: Method, width: int, group: int = 64) -> int:
    """The model under an adapter: in `width` bytes a number, its matrices packed if `method` says so."""
    if method.bits is None:
        return width * model.num_parameters

    def packed(rows: int, columns: int, bits: int) -> int:
        (tiles, size), scale = shapes(rows, columns, bits, group)
        return tiles * size + 2 * scale[0] * scale[1] * scale[2]

    blocks = model.num_hidden_layers * sum(packed(*size, method.bits) for size in projections_of(model))
    head = packed(model.vocab_size, model.hidden_size, 8)
    matrices = model.num_hidden_layers * sum(rows * columns for rows, columns in projections_of(model))
    rest = model.num_parameters - matrices - model.vocab_size * model.hidden_size
    return blocks + head + width * rest


def _moments(model: ModelConfig, layout: Layout, method: Method, rank: int) -> tuple[Memory, ...]:
    """Three moments of a step's last pass: the loss, the backward passes of the last block and the first."""
    width, tokens, layers = layout.widths[1], layout.tokens, model.num_hidden_layers
    sizes = projections_of(model)
    one = rank * sum(rows + columns for rows, columns in sizes)  # numbers of a block's adapter
    cast = width * one if width != 4 else 0
    state = frozen_bytes(model, method, width) + 4 * layers * one, 8 * layers * one
    again = layers if layout.recompute in ("full", "selective") else 0
    if isinstance(layout.recompute, int):
        again = layers // layout.recompute
    stream = width * tokens * model.hidden_size
    low = width * tokens * rank * len(sizes)  # A x of every matrix
    saved = block_activations(model, layout) + low
    gathered = (layers - again) * cast
    activations = again * stream + (layers - again) * saved
    piece = head_piece = 0  # of dense weights
    if method.bits is not None:
        piece = width * min(PIECE, max(rows * columns for rows, columns in sizes))
        head_piece = width * min(PIECE, model.vocab_size * model.hidden_size)
    chunk = min(layout.loss_chunk, tokens) * model.vocab_size
    loss = chunk * (width + (4 if width != 4 else 0)) + 2 * stream + head_piece
    at_work = 2 * width * tokens * model.intermediate_size + 2 * stream + piece
    repeated = saved + cast if again else 0
    gradients = 4 * layers * one
    before = gradients if layout.micro_batches > 1 else 0
    return (
        Memory(*state, before, gathered, activations + 2 * stream, loss),
        Memory(*state, before, gathered, activations + stream, at_work + repeated),
        Memory(*state, gradients, 0, stream if again else saved, at_work + repeated),
    )
