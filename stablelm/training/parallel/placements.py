"""How tensor parallelism cuts the network (Shoeybi et al., 2019; Korthikanti et al., 2022), as constants.

Column-cut projections give each process whole heads, or a slice of the MLP, or of the vocabulary; the row-cut
ones after them add the parts up. With sequence parallelism the sum is scattered along the sequence and
gathered before the next column cut, so norms and residuals are computed once, not on every process. q, k, v,
gate and up are separate matrices: no cut needs a permutation, and a checkpoint is the same on every mesh. The
head is cut in `loss.py`."""

from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
)

SEQUENCE = 1
"""The dimension of [batch, sequence, hidden] that sequence parallelism shards."""


def root_plan(sequence_parallel: bool) -> dict[str, ParallelStyle]:
    """Cuts outside the blocks, the head apart."""
    if not sequence_parallel:
        return {"model.embed_tokens": RowwiseParallel(input_layouts=Replicate())}
    return {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(SEQUENCE)),
        "model.norm": SequenceParallel(),
    }


def block_plan(sequence_parallel: bool, parallel_residual: bool) -> dict[str, ParallelStyle]:
    """Cuts inside a block."""
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    rows = ("self_attn.o_proj", "mlp.down_proj")
    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in columns}
    if not sequence_parallel:
        return plan | {name: RowwiseParallel() for name in rows}
    norms = ("input_layernorm",) if parallel_residual else ("input_layernorm", "post_attention_layernorm")
    return (
        plan
        | {name: RowwiseParallel(output_layouts=Shard(SEQUENCE)) for name in rows}
        | {name: SequenceParallel() for name in norms}
        | {
            # One entry for each positional argument; None is left alone (rotary, mask, cache).
            "self_attn": PrepareModuleInput(
                input_layouts=(Shard(SEQUENCE), None, None, None),
                desired_input_layouts=(Replicate(), None, None, None),
            ),
            "mlp": PrepareModuleInput(input_layouts=(Shard(SEQUENCE),), desired_input_layouts=(Replicate(),)),
        }
    )
