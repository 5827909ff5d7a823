"""What a training step needs on one device, by component, from formulas alone.

State: Rajbhandari et al. (2020, ZeRO). Activations: what autograd keeps of each operation of our block,
counted as Korthikanti et al. (2022) do, and in our network (18 + 8·m/h)·s·b·h + 4·s·b·a bytes in bf16 where
theirs is 34·s·b·h + 5·a·s²·b: SwiGLU, no dropout, no biases, attention scores never kept. What `fully_shard`
allocates is followed, not an ideal ZeRO: weights and moments are sharded at every stage; stages 1 and 2 keep
the gathered compute copy through the step, stage 1 also whole fp32 gradients while it accumulates.

The peak is the worst of four moments: the loss (all activations, the head's gradient twice), the backward
passes of the last block and of the first, the reduction of embedding and head. Tests hold them to what
PyTorch allocates in an eager step: from 2 % below to 7 % above. On an H200 a compiled step of the 3B model
stands beside them in `benchmarks/train_step_gpu.py`."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from stablelm.config import ModelConfig
from stablelm.planning.devices import GIB, Device
from stablelm.planning.flops import recomputed_blocks
from stablelm.planning.layout import Layout

RESERVED = int(1.5 * GIB)
"""Assumed for the driver's context, NCCL's buffers and cuBLAS workspaces of one process."""
FRAGMENTED = 0.04
"""Assumed share of a device's memory that the allocator cannot hand out."""

Cut = Literal[0, 1] | None
"""Dimension that tensor parallelism cuts; None is whole on each of its ranks."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that holds most, at the worst moment of a step."""

    weights: int
    """Kept weights, this device's shard."""
    moments: int
    """AdamW's two, this device's shard."""
    gradients: int
    """Those that exist at that moment: none in the backward pass of the last block of a single pass."""
    gathered: int
    """Weights as the computation reads them."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    passing: int
    """What lives for a moment: logits, the head's gradient, communication, the block at work."""
    average: int = 0
    """The moving average of the weights, this device's shard."""

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(asdict(self).values())

    @property
    def needed(self) -> int:
        """`total` and what the process takes besides tensors."""
        return self.total + RESERVED

    def fits(self, device: Device) -> bool:
        """Whether the device holds it, `FRAGMENTED` of its memory left out."""
        return self.needed <= usable(device)

    def as_dict(self) -> dict[str, int]:
        """For JSON: the components, their total, and what is needed."""
        return {**asdict(self), "total": self.total, "needed": self.needed}


def usable(device: Device) -> int:
    """Bytes of the device that a step may need."""
    return int(device.memory * (1 - FRAGMENTED))


def memory_of(model: ModelConfig, layout: Layout) -> Memory:
    """Bytes of one step of `model` in `layout`, on rank 0 (no rank holds more)."""
    return max(moments_of(model, layout), key=lambda moment: moment.total)


def moments_of(model: ModelConfig, layout: Layout) -> tuple[Memory, ...]:
    """Four moments of a step's last pass: the loss, the backward passes of the last block and of the first,
    the reduction of embedding and head."""
    kept, computed, reduced = layout.widths
    tokens, tensor = layout.tokens, layout.tensor
    alone = layout.world == 1  # no process group: each matrix is cast where it is used, no gradient moves
    local = sum(local_numbers(shape, cut, layout) for _, shape, cut in parameter_shapes(model))
    root, block = group_numbers(model, tensor)
    whole = root + model.num_hidden_layers * block
    head = model.vocab_size * model.hidden_size // tensor

    again = recomputed_blocks(model, layout.recompute)
    repeats = again > 0 or layout.recompute == "selective"
    last_repeats = again == model.num_hidden_layers or layout.recompute == "selective"
    cast = 0 if kept == computed else computed  # bytes a number of a copy made where it is used
    if alone:
        held = 0 if last_repeats else model.num_hidden_layers - again
        gathered = cast * (head + held * block)  # the embedding is read in place
    else:
        gathered = computed * (whole if layout.zero < 3 else root + 2 * block)
    before = 0  # gradients of earlier passes
    if layout.micro_batches > 1:
        # The embedding's gradient is not cut over the tensor group before it is reduced.
        uncut = whole + (tensor - 1) * head
        before = reduced * uncut if layout.zero <= 1 and not alone else kept * local
    after = kept * local + (before if layout.zero <= 1 and not alone else 0)

    stream = computed * tokens * model.hidden_size  # one tensor of the residual stream
    sliced = stream // tensor if layout.sequence_parallel else stream
    saved = block_activations(model, layout)
    plain = selective_activations(model, layout) if layout.recompute == "selective" else saved
    activations = again * sliced + (model.num_hidden_layers - again) * plain

    at_work = 2 * computed * tokens * model.intermediate_size // tensor + 2 * stream
    repeated = saved + (cast * block if alone else 0)
    moving = 0 if alone else reduced * block  # what the block before hands to its reduce-scatter
    # A root that is reduced in each pass keeps its reduce-scatter's input into the next.
    lingers = reduced * root if layout.zero >= 2 and layout.micro_batches > 1 and not alone else 0
    chunk = min(layout.loss_chunk, tokens) * model.vocab_size // tensor
    fused = layout.compiled and tensor == 1  # softmax and gradient in place
    logits = chunk * (computed + (4 if computed != 4 and not fused else 0))
    head_gradient = (kept if alone else computed) * head
    state, left = (kept * local, 2 * kept * local), 0 if alone else computed * root
    average = 4 * local if layout.ema else 0
    loss = 4 * head + max(logits, 4 * head + (computed * head if computed < 4 else 0)) + 2 * stream
    last = at_work + head_gradient + last_repeats * (repeated + moving)
    first = at_work + moving + repeats * repeated
    end = 0 if alone else (computed + reduced) * root
    return (
        Memory(
            *state, before, gathered, activations + 2 * sliced, loss + lingers, average
        ),  # last norm, head
        Memory(*state, before, gathered, activations, last + lingers, average),
        Memory(*state, after, left, sliced if again else plain, first, average),
        Memory(*state, after, left, 0, end, average),
    )


def parameter_shapes(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], Cut]]:
    """Name, shape and tensor-parallel cut of every weight, in the order of the network."""
    h, m, kv = model.hidden_size, model.intermediate_size, model.num_key_value_heads * model.head_dim

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...], Cut]]:
        yield f"{name}.weight", (h,), None
        if model.use_norm_bias:
            yield f"{name}.bias", (h,), None

    yield "model.embed_tokens.weight", (model.vocab_size, h), 0
    for index in range(model.num_hidden_layers):
        at = f"model.layers.{index}"
        yield from norm(f"{at}.input_layernorm")
        for name, width in (("q", h), ("k", kv), ("v", kv)):
            yield f"{at}.self_attn.{name}_proj.weight", (width, h), 0
            if model.use_qkv_bias:
                yield f"{at}.self_attn.{name}_proj.bias", (width,), 0
        yield f"{at}.self_attn.o_proj.weight", (h, h), 1
        if model.qk_layernorm:
            for name, heads in (("q", model.num_attention_heads), ("k", model.num_key_value_heads)):
                for head in range(heads):
                    yield f"{at}.self_attn.{name}_layernorm.norms.{head}.weight", (model.head_dim,), None
        if not model.use_parallel_residual:
            yield from norm(f"{at}.post_attention_layernorm")
        yield f"{at}.mlp.gate_proj.weight", (m, h), 0
        yield f"{at}.mlp.up_proj.weight", (m, h), 0
        yield f"{at}.mlp.down_proj.weight", (h, m), 1
    yield from norm("model.norm")
    yield "lm_head.weight", (model.vocab_size, h), 0


def local_numbers(shape: tuple[int, ...], cut: Cut, layout: Layout, rank: int = 0) -> int:
    """Numbers of a weight that `rank` keeps: cut over the tensor group, then rows over the shard group.

    Rows that do not divide go to the first ranks, as `torch.chunk` does: rank 0 has the most."""
    sizes = list(shape)
    if cut is not None:
        sizes[cut] //= layout.tensor
    rows, at = -(-sizes[0] // layout.shard), rank // layout.tensor % layout.shard
    sizes[0] = max(0, min(rows, sizes[0] - at * rows))
    return math.prod(sizes)


def group_numbers(model: ModelConfig, tensor: int) -> tuple[int, int]:
    """Numbers gathered at once on a tensor rank: embedding, last norm and head together; one block."""
    root = block = 0
    for name, shape, cut in parameter_shapes(model):
        size = math.prod(shape) // (1 if cut is None else tensor)
        if not name.startswith("model.layers."):
            root += size
        elif name.startswith("model.layers.0."):
            block += size
    return root, block


def block_activations(model: ModelConfig, layout: Layout) -> int:
    """Bytes that autograd keeps of one block's forward pass.

    Inputs of both norms, what the projections read (gathered under sequence parallelism), rotated q and k, v,
    the attention's result with its log-sum-exp and once more in the order that o reads, gate, up, silu(gate)
    where nothing is compiled, and their product."""
    width, tokens, tensor = layout.widths[1], layout.tokens, layout.tensor
    cut = tensor if layout.sequence_parallel else 1
    h, kv, heads = model.hidden_size, model.num_key_value_heads * model.head_dim, model.num_attention_heads
    norms = 1 if model.use_parallel_residual else 2
    # Compiled, silu(gate) is made again in the kernel that reads it.
    gated = 3 if layout.compiled else 4
    numbers = norms * (h / cut + h) + (3 * h + 2 * kv + gated * model.intermediate_size) / tensor
    exact = 4 * heads / tensor + 8 * norms / cut  # log-sum-exp; mean and deviation of each norm
    if model.qk_layernorm:  # in float32: what it reads and what it makes, mean and deviation of each head
        exact += 8 * (h + kv + heads + model.num_key_value_heads) / tensor
    return int(tokens * (width * numbers + exact))


def selective_activations(model: ModelConfig, layout: Layout) -> int:
    """Bytes kept of one block when only matrix products and attention are kept, and the rest is made again.

    The block's input, q, k, v before rotation, the attention's result, the outputs of o, gate, up, down."""
    width, tokens, tensor = layout.widths[1], layout.tokens, layout.tensor
    cut = tensor if layout.sequence_parallel else 1
    h, kv = model.hidden_size, model.num_key_value_heads * model.head_dim
    numbers = 3 * h / cut + (2 * h + 2 * kv + 2 * model.intermediate_size) / tensor
    return int(tokens * (width * numbers + 4 * model.num_attention_heads / tensor))
