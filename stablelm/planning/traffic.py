"""What a step sends over the network, by collective, in bytes that leave one device.

Ring algorithms: an all-gather or reduce-scatter of S bytes over n ranks sends S·(n − 1)/n from each, an
all-reduce twice that. A ring that spans nodes leaves each node once, so a node sends a group's bytes once for
each group that its devices belong to. Scalars (loss, norm) and the tiny reductions of norm gradients under
tensor parallelism are counted in `calls`, their bytes are nothing."""

from dataclasses import dataclass

from stablelm.config import ModelConfig
from stablelm.planning.flops import recomputed_blocks
from stablelm.planning.layout import Layout
from stablelm.planning.memory import group_numbers


@dataclass(frozen=True)
class Traffic:
    """One kind of collective in one step."""

    axis: str
    """Group: shard, replicate or tensor."""
    kind: str
    """all-gather, reduce-scatter or all-reduce."""
    what: str
    """What is sent."""
    calls: int
    """Collectives in a step."""
    sent: int
    """Bytes that leave one device in a step."""
    node_sent: int
    """Bytes that leave one node in a step; 0 where the group lies inside."""


def traffic_of(model: ModelConfig, layout: Layout, per_node: int = 8) -> list[Traffic]:
    """The collectives of one step on nodes of `per_node` devices."""
    _, computed, reduced = layout.widths
    root, block = group_numbers(model, layout.tensor)
    groups, numbers = model.num_hidden_layers + 1, root + model.num_hidden_layers * block
    passes, shard, replicate, tensor = (
        layout.micro_batches, layout.shard, layout.replicate, layout.tensor
    )  # fmt: skip
    rows: list[Traffic] = []

    def add(axis: str, kind: str, what: str, calls: int, payload: float, size: int, stride: int) -> None:
        """`payload`: bytes of all calls together, as they are on one rank when whole."""
        if size == 1:
            return
        sent = int(payload * (2 if kind == "all-reduce" else 1) * (size - 1) / size)
        inside = stride * size <= per_node
        rows.append(Traffic(axis, kind, what, calls, sent, 0 if inside else min(stride, per_node) * sent))

    gathers = 2 * passes if layout.zero == 3 else 1
    reductions = passes if layout.zero >= 2 else 1
    add("shard", "all-gather", "weights", gathers * groups, gathers * computed * numbers, shard, tensor)
    add(
        "shard",
        "reduce-scatter",
        "gradients",
        reductions * groups,
        reductions * reduced * numbers,
        shard,
        tensor,
    )
    add("replicate", "all-reduce", "gradients", groups, reduced * numbers / shard, replicate, tensor * shard)
    if tensor > 1:
        stream = computed * layout.tokens * model.hidden_size
        again = recomputed_blocks(model, layout.recompute)
        if layout.sequence_parallel:
            # A block that runs again stops before its last result is scattered.
            gathered = passes * (4 * model.num_hidden_layers + 2 * again + 2)
            scattered = passes * (4 * model.num_hidden_layers + again + 1)
            add("tensor", "all-gather", "activations", gathered, gathered * stream, tensor, 1)
            add("tensor", "reduce-scatter", "activations", scattered, scattered * stream, tensor, 1)
            norms = reductions * (2 * model.num_hidden_layers + 1) * (1 + model.use_norm_bias)
            add("tensor", "all-reduce", "gradients of norms", norms, 4 * norms * model.hidden_size, tensor, 1)
        else:
            # Two forward; backward one for each of q, k, v, gate and up. And the embedding.
            calls = passes * (7 * model.num_hidden_layers + again + 1)
            add("tensor", "all-reduce", "activations", calls, calls * stream, tensor, 1)
        chunks = -(-layout.tokens // layout.loss_chunk)
        calls, small = passes * (2 * chunks + 1), passes * 12 * layout.tokens
        add("tensor", "all-reduce", "loss", calls, small + passes * 2 * stream, tensor, 1)
    return rows
