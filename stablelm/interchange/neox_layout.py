"""GPT-NeoX's tensors and ours: names, the cut over tensor-parallel ranks, the row order of the fused QKV.

One table (`entries`) serves reader and writer. Of L blocks, pipeline layer 0 is the embedding, 2 … L+1 are
the blocks, L+3 the final norm, L+4 the head; 1 and L+2 are functions and store nothing. Facts of
EleutherAI/gpt-neox at ea7aefd (`megatron/model/transformer.py`, `tools/ckpts/convert_neox_to_hf.py`).

The fused QKV has rows in one of three orders, and nothing in a file says which: shapes are equal, and a wrong
choice gives a model that writes gibberish.

    interleaved   [head 0: q k v][head 1: q k v] …   multi-head attention, every version
    concatenated  [all q][all k][all v]              grouped queries, since gpt-neox#1315 (November 2024)
    grouped       [head 0: q, a share of k, of v] …  grouped queries before that; a share is head_dim·K/H rows

Each holds within one rank. Chosen from the configuration unless the user says otherwise. Rejected: guessing
from the weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from stablelm.config import InputError, ModelConfig

QkvLayout = Literal["interleaved", "concatenated", "grouped"]
MlpNames = Literal["new", "legacy"]
Cut = Literal["rows", "columns", "whole", "qkv", "up_gate"]

TOLERANCE = 2.0**-6
"""Largest difference between ranks' copies of one vector that still is rounding of the same training run, as
a share of its largest value. Beyond it the files belong to different checkpoints."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a GPT-NeoX checkpoint: where it is, how ranks cut it, which of ours it holds."""

    layer: int
    key: str
    cut: Cut
    names: tuple[str, ...]
    shape: tuple[int, ...]
    """On one rank of a checkpoint of width 1."""

    def shape_of_rank(self, width: int) -> tuple[int, ...]:
        """What each of `width` ranks stores; `require_width` was asked before."""
        rows, *rest = self.shape
        if self.cut == "columns":
            return (rows, rest[0] // width)
        return (rows // (1 if self.cut == "whole" else width), *rest)


def entries(config: ModelConfig, mlp: MlpNames) -> Iterator[Entry]:
    """Every tensor that a checkpoint of this architecture stores, in the order of the pipeline's layers."""
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    fused = hidden + 2 * config.num_key_value_heads * config.head_dim
    parts = ("weight", "bias") if config.use_norm_bias else ("weight",)
    yield Entry(
        0, "word_embeddings.weight", "rows", ("model.embed_tokens.weight",), (config.vocab_size, hidden)
    )
    for index in range(layers):
        at, block = index + 2, f"model.layers.{index}."
        norms = ["input_layernorm"] + ["post_attention_layernorm"] * (not config.use_parallel_residual)
        for norm in norms:
            for part in parts:
                yield Entry(at, f"{norm}.{part}", "whole", (f"{block}{norm}.{part}",), (hidden,))
        for part in ("weight", "bias") if config.use_qkv_bias else ("weight",):
            names = tuple(f"{block}self_attn.{which}_proj.{part}" for which in "qkv")
            shape = (fused, hidden) if part == "weight" else (fused,)
            yield Entry(at, f"attention.query_key_value.{part}", "qkv", names, shape)
        out = (f"{block}self_attn.o_proj.weight",)
        yield Entry(at, "attention.dense.weight", "columns", out, (hidden, hidden))
        gate, up, down = (f"{block}mlp.{which}_proj.weight" for which in ("gate", "up", "down"))
        if mlp == "new":
            yield Entry(at, "mlp.linear1.weight", "up_gate", (up, gate), (2 * wide, hidden))
            yield Entry(at, "mlp.linear2.weight", "columns", (down,), (hidden, wide))
        else:
            yield Entry(at, "mlp.w1.weight", "rows", (gate,), (wide, hidden))
            yield Entry(at, "mlp.w3.weight", "rows", (up,), (wide, hidden))
            yield Entry(at, "mlp.w2.weight", "columns", (down,), (hidden, wide))
    for part in parts:
        yield Entry(layers + 3, f"norm.{part}", "whole", (f"model.norm.{part}",), (hidden,))
    yield Entry(layers + 4, "final_linear.weight", "rows", ("lm_head.weight",), (config.vocab_size, hidden))


def layer_indices(config: ModelConfig) -> list[int]:
    """The pipeline layers that store tensors."""
    last = config.num_hidden_layers + 4
    return [0, *range(2, last - 2), last - 1, last]


def require_width(config: ModelConfig, width: int, where: object) -> None:
    """Refuses, by name, a number of tensor-parallel ranks over which this architecture cannot be cut."""
    if width < 1:
        raise InputError(f"{where}: width {width}: a number of tensor-parallel ranks is at least 1.")
    for name in ("num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size"):
        size = getattr(config, name)
        if size % width:
            raise InputError(
                f"{where}: {name} {size:,} does not divide over {width} tensor-parallel ranks. "
                "Choose a width that divides it."
            )


def choose_layout(config: ModelConfig, asked: str | None, where: object) -> tuple[QkvLayout, str]:
    """The row order of the fused QKV, and why; `asked` None leaves the choice to the configuration."""
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if asked is None:
        if heads == shared:
            return "interleaved", "GPT-NeoX's only order for multi-head attention"
        return "concatenated", "GPT-NeoX's order for grouped queries since gpt-neox#1315; before it: grouped"
    if asked not in get_args(QkvLayout):
        raise InputError(
            f"{where}: qkv_layout {asked!r} is not known; use one of {get_args(QkvLayout)}, or leave it out."
        )
    if asked == "interleaved" and heads != shared:
        raise InputError(
            f"{where}: qkv_layout interleaved is for multi-head attention; this model has {heads} query and "
            f"{shared} key-value heads. Use concatenated or grouped."
        )
    if asked == "grouped" and config.head_dim * shared % heads:
        raise InputError(
            f"{where}: qkv_layout grouped needs head_dim·kv_heads/heads = {config.head_dim}·{shared}/{heads} "
            "to be a whole number. Use concatenated."
        )
    return asked, "asked for"  # type: ignore[return-value]


def possible_layouts(config: ModelConfig) -> list[QkvLayout]:
    """The row orders that differ for this architecture, the one GPT-NeoX would use first."""
    if config.num_attention_heads == config.num_key_value_heads:
        return ["interleaved", "concatenated"]
    whole = config.head_dim * config.num_key_value_heads % config.num_attention_heads == 0
    return ["concatenated", "grouped"] if whole else ["concatenated"]


def _runs(config: ModelConfig, width: int, layout: QkvLayout) -> tuple[int, list[int]]:
    """How often a rank's rows repeat (q rows, k rows, v rows), and these three counts."""
    heads = config.num_attention_heads // width
    q, kv = heads * config.head_dim, config.num_key_value_heads // width * config.head_dim
    repeats = 1 if layout == "concatenated" else heads
    return repeats, [q // repeats, kv // repeats, kv // repeats]


def _grouped(rows: Tensor, repeats: int) -> Tensor:
    return rows.reshape(repeats, -1, *rows.shape[1:])


def merge(entry: Entry, ranks: Sequence[Tensor], config: ModelConfig, layout: QkvLayout) -> dict[str, Tensor]:
    """Our tensors from what every rank stores, in memory of their own, each copied once."""
    if entry.cut == "whole":
        return {entry.names[0]: _agreed(ranks)}
    if entry.cut == "qkv":
        repeats, counts = _runs(config, len(ranks), layout)
        pieces = [torch.split(_grouped(rank, repeats), counts, 1) for rank in ranks]  # 3 × [repeats, n, …]
        return {
            name: torch.cat(parts).flatten(0, 1)
            for name, parts in zip(entry.names, zip(*pieces, strict=True), strict=True)
        }
    halves = [rank.chunk(len(entry.names)) for rank in ranks]  # two of up_gate, else the whole
    along = 1 if entry.cut == "columns" else 0
    return {
        name: torch.cat(parts, along)
        for name, parts in zip(entry.names, zip(*halves, strict=True), strict=True)
    }


def split(
    entry: Entry, tensors: Sequence[Tensor], config: ModelConfig, layout: QkvLayout, width: int, rank: int
) -> Tensor:
    """What `rank` of `width` stores of our tensors (in the order of `entry.names`); a copy of its own."""
    if entry.cut == "whole":
        return tensors[0].clone(memory_format=torch.contiguous_format)
    along = 1 if entry.cut == "columns" else 0
    mine = [tensor.chunk(width, along)[rank] for tensor in tensors]
    if entry.cut == "qkv":
        repeats, _ = _runs(config, width, layout)
        return torch.cat([_grouped(part, repeats) for part in mine], 1).flatten(0, 1)
    return torch.cat(mine) if len(mine) > 1 else mine[0].clone(memory_format=torch.contiguous_format)


def disagreement(ranks: Sequence[Tensor]) -> float:
    """Largest difference between the ranks' copies of one vector, as a share of its largest value."""
    if all(torch.equal(ranks[0], rank) for rank in ranks[1:]):
        return 0.0
    stacked = torch.stack([rank.double() for rank in ranks])
    largest = float(stacked.abs().max())
    return float((stacked.amax(0) - stacked.amin(0)).max()) / largest if largest else 0.0


def _agreed(ranks: Sequence[Tensor]) -> Tensor:
    # Equal copies are taken as they are: a mean in bf16 could round.
    if disagreement(ranks) == 0:
        return ranks[0].clone()
    return torch.stack([rank.double() for rank in ranks]).mean(0).to(ranks[0].dtype)
