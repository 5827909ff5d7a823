"""GPT-NeoX checkpoints, read in every layout that its trainer has written (`neox_writing.py` writes them).

First every file is compared with the others and every stored shape with the architecture, on the memory maps
alone; then tensors are read layer by layer, so memory holds the model and one layer. Vectors that every
tensor-parallel rank keeps a copy of (LayerNorms) are averaged in float64 as upstream's converter does, with a
warning, and refused where they differ by more than `neox_layout.TOLERANCE`. A stored bias that this network
has no place for is refused, unless it is all zeros and does nothing; the second LayerNorm of a tied parallel
block, which GPT-NeoX stores but never reads, is passed over. Padding rows of the vocabulary stay."""

import contextlib
import warnings
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.interchange.neox_config import (
    Stored,
    Values,
    check_args,
    from_neox,
    from_tensors,
    from_user,
    read_copies,
    token_ids,
)
from stablelm.interchange.neox_files import NeoxFiles, find_neox, is_neox
from stablelm.interchange.neox_layout import (
    TOLERANCE,
    MlpNames,
    QkvLayout,
    choose_layout,
    disagreement,
    entries,
    layer_indices,
    merge,
    require_width,
)
from stablelm.interchange.weights import DTYPES
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

__all__ = ["NeoxCheckpoint", "is_neox", "load_neox", "open_neox"]
_IGNORED = ("rotary_emb.inv_freq", "_extra_state")  # follows from the configuration; empty


@dataclass(frozen=True)
class NeoxCheckpoint:
    """A checkpoint whose every shape is known to fit; its weights are not read yet."""

    files: NeoxFiles
    config: ModelConfig
    mlp: MlpNames
    qkv_layout: QkvLayout
    reason: str
    """Why this `qkv_layout`."""
    source: str
    """Where the architecture was read."""
    step: int | None
    dtype: torch.dtype
    tokenizer: Path | None
    averaged: float
    """Largest difference between ranks' copies of one vector, as a share of its largest value."""
    state: dict[str, Any] = field(repr=False)


def load_neox(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    build: type[StableLM] = StableLM,
    *,
    qkv_layout: str | None = None,
    config: ModelConfig | str | Path | None = None,
) -> tuple[StableLM, Tokenizer | None]:
    """The model (an instance of `build`) and the tokenizer, None where no tokenizer.json is beside it.

    `path` is a tag's directory or the one above. `dtype` None keeps the stored precision. `qkv_layout` is
    "interleaved", "concatenated" or "grouped" (None: as GPT-NeoX stores this architecture today). `config`
    replaces the YAML copies: a ModelConfig, a preset's name, a config.json or a YAML. `InputError` names the
    file, the tensor or key and the remedy."""
    opened = open_neox(path, qkv_layout=qkv_layout, config=config)
    tokenizer = _read_tokenizer(opened)
    if opened.averaged:
        warnings.warn(
            f"{opened.files.folder}: the tensor-parallel ranks' copies of LayerNorms differ (by up to "
            f"{opened.averaged:.2g} of the largest value); their mean is used.",
            stacklevel=2,
        )
    with torch.device("meta"):
        model = build(opened.config)
    model.load_state_dict(_read(opened, dtype or opened.dtype, device), assign=True)
    return model.eval(), tokenizer


def open_neox(
    path: str | Path, *, qkv_layout: str | None = None, config: ModelConfig | str | Path | None = None
) -> NeoxCheckpoint:
    """Finds out what the checkpoint at `path` is and checks that its files, shapes and YAML belong together;
    arguments and errors as for `load_neox`."""
    files = find_neox(path)
    copies = read_copies(files.folder) if config is None else None
    values, source = copies or ({}, str(files.folder))
    state = files.state()
    args = state.get("args")
    if config is None:
        _check_ranks(files, values, args if isinstance(args, dict) else {}, source)
    found = files.indices()
    stored = _stored(files, found)
    tokenizer = _find_tokenizer(files.folder, values)
    ids = token_ids(state, values, stored.vocab_size)
    if "stablelm" not in state and tokenizer is not None:
        with contextlib.suppress(InputError):  # a tokenizer without an end of text says nothing about it
            end = Tokenizer.from_file(tokenizer).eos_id
            ids = dict.fromkeys(ids, end) if end < stored.vocab_size else ids
    if config is not None:
        source = "config" if isinstance(config, ModelConfig) else str(config)
        settled = from_user(config, stored, ids)
    elif copies is not None:
        settled = from_neox(values, source, stored, ids)
    else:
        settled = from_tensors(args if isinstance(args, dict) else {}, source, stored, ids)
    denied = values.get("use_bias_in_norms") is False or not settled.use_norm_bias
    if stored.norm_bias and denied:
        # GPT-NeoX stores biases in any case, so only those that are not zero are known to be meant.
        used = not _norm_biases_are_zero(files, found, settled)
        settled = settled.model_copy(update={"use_norm_bias": used})
    _check_layers(files, found, stored.blocks, settled, source)
    require_width(settled, files.width, files.folder)
    averaged, dtype = _check_tensors(files, settled, stored.mlp, source)
    if config is None and 0 in files.ranks:
        check_args(args, settled, files.width, files.ranks[0], source)
    layout, reason = choose_layout(settled, qkv_layout, files.folder)
    step = state.get("iteration", files.step)
    step = step if type(step) is int else files.step
    return NeoxCheckpoint(
        files, settled, stored.mlp, layout, reason, source, step, dtype, tokenizer, averaged, state
    )


def _read(opened: NeoxCheckpoint, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    table = entries(opened.config, opened.mlp)
    for layer, group in groupby(table, attrgetter("layer")):
        ranks = [opened.files.tensors(layer, rank) for rank in range(opened.files.width)]
        for entry in group:
            merged = merge(entry, [rank[entry.key] for rank in ranks], opened.config, opened.qkv_layout)
            for name, value in merged.items():
                state[name] = value.to(device=device, dtype=dtype)
        del ranks  # or the next layer would be mapped beside this one
    return state


def _stored(files: NeoxFiles, found: set[int]) -> Stored:
    embedding = [_tensor(files, 0, rank, "word_embeddings.weight") for rank in range(files.width)]
    last = max(found)
    ending = files.tensors(last, 0)
    head = "final_linear.weight" in ending
    first = min((layer for layer in found if layer >= 2), default=2)
    block = files.tensors(first, 0)
    if "mlp.dense_h_to_4h.weight" in block:
        raise InputError(
            f"{files.file(first, 0)}: tensor 'mlp.dense_h_to_4h.weight' is of an MLP without a gate; "
            "StableLM's has one. transformers' GPTNeoX reads such models."
        )
    mlp: MlpNames = "legacy" if "mlp.w1.weight" in block else "new"
    down = _tensor(files, first, 0, "mlp.w2.weight" if mlp == "legacy" else "mlp.linear2.weight")
    qkv = _tensor(files, first, 0, "attention.query_key_value.weight")
    if any(value.ndim != 2 for value in (*embedding, down, qkv)):
        raise InputError(f"{files.folder}: the weights of layers 0 and {first} are no matrices.")
    return Stored(
        blocks=last - 4 if head else last - 3 if "norm.weight" in ending else last - 1,
        vocab_size=sum(value.shape[0] for value in embedding),
        hidden_size=embedding[0].shape[1],
        intermediate_size=down.shape[1] * files.width,
        qkv_rows=qkv.shape[0] * files.width,
        mlp=mlp,
        norm_bias="input_layernorm.bias" in block,
        qkv_bias="attention.query_key_value.bias" in block,
        post_attention_norm="post_attention_layernorm.weight" in block,
        head=head,
    )


def _tensor(files: NeoxFiles, layer: int, rank: int, key: str) -> Tensor:
    tensors = files.tensors(layer, rank)
    if key not in tensors:
        raise InputError(
            f"{files.file(layer, rank)}: tensor {_shown(files, layer, key)} is missing. The file is "
            "incomplete, or this is not a GPT-NeoX model of StableLM's kind."
        )
    return tensors[key]


def _shown(files: NeoxFiles, layer: int, key: str) -> str:
    return repr(f"sequential.{layer}.{key}" if files.layout == "sequential" else key)


def _check_layers(files: NeoxFiles, found: set[int], blocks: int, config: ModelConfig, source: str) -> None:
    if config.num_hidden_layers != blocks:
        raise InputError(
            f"{source}: num_layers {config.num_hidden_layers:,}, but {files.folder} holds {blocks} blocks. "
            "Files are missing, or one of the two belongs to another model."
        )
    missing = sorted(set(layer_indices(config)) - found)
    if missing:
        what = (
            f"{files.ranks[0]}: sequential.{missing[0]} is"
            if files.layout == "sequential"
            else f"{files.file(missing[0], 0)}:"
        )
        raise InputError(
            f"{what} missing; {source} describes {config.num_hidden_layers} blocks, layers 0 to "
            f"{config.num_hidden_layers + 4}. Download or copy the file again."
        )


def _check_ranks(files: NeoxFiles, values: Values, args: Values, source: str) -> None:
    for where, width in (
        (source, values.get("model_parallel_size")),
        ("args", args.get("model_parallel_size")),
    ):
        if width not in (None, files.width):
            place = files.ranks[0] if where == "args" else where
            raise InputError(
                f"{place}: model_parallel_size {width!r}, but {files.folder} holds files of {files.width} "
                f"rank{'s' * (files.width > 1)}. Files are missing, or belong to another checkpoint."
            )


def _check_tensors(
    files: NeoxFiles, config: ModelConfig, mlp: MlpNames, source: str
) -> tuple[float, torch.dtype]:
    """Every tensor of every rank: there, of the shape that `config` wants, no other beside them."""
    averaged, dtype = 0.0, torch.float32
    for layer, group in groupby(entries(config, mlp), attrgetter("layer")):
        table = {entry.key: entry for entry in group}
        ranks = [files.tensors(layer, rank) for rank in range(files.width)]
        for rank, tensors in enumerate(ranks):
            file = files.file(layer, rank)
            for key, entry in table.items():
                wanted, tensor = entry.shape_of_rank(files.width), _tensor(files, layer, rank, key)
                if tuple(tensor.shape) != wanted:
                    raise InputError(
                        f"{file}: tensor {_shown(files, layer, key)} has shape {list(tensor.shape)}, "
                        f"{source} wants {list(wanted)}. One of the two belongs to another model."
                    )
                if tensor.dtype not in DTYPES.values():
                    raise InputError(
                        f"{file}: tensor {_shown(files, layer, key)} is {tensor.dtype}, no weights."
                    )
            for key in tensors.keys() - table.keys():
                _check_foreign(tensors[key], key, config, f"{file}: tensor {_shown(files, layer, key)}")
        for key in (key for key, entry in table.items() if entry.cut == "whole"):
            apart = disagreement([rank[key] for rank in ranks])
            if apart > TOLERANCE:
                raise InputError(
                    f"{files.file(layer, 0)}: tensor {_shown(files, layer, key)} differs between the ranks "
                    f"by {apart:.2g} of its largest value (at most {TOLERANCE:.2g} is rounding). Their files "
                    "belong to different checkpoints."
                )
            averaged = max(averaged, apart)
        dtype = ranks[0][next(iter(table))].dtype
    return averaged, dtype


def _check_foreign(tensor: Tensor, key: str, config: ModelConfig, what: str) -> None:
    if key.endswith(_IGNORED):
        return
    if config.use_parallel_residual and key.startswith("post_attention_layernorm."):
        return
    if not key.endswith(".bias") or key == "attention.qk_layernorm.bias":
        raise InputError(f"{what} has no place in this network. This is another kind of model.")
    if bool((tensor != 0).any()):
        raise InputError(f"{what} is a bias that this network does not have, and it is not zero.")


def _norm_biases_are_zero(files: NeoxFiles, found: set[int], config: ModelConfig) -> bool:
    keys = ["input_layernorm.bias", "norm.bias"]
    keys += ["post_attention_layernorm.bias"] * (not config.use_parallel_residual)
    ranks = (files.tensors(layer, rank) for layer in found - {0} for rank in range(files.width))
    return not any(bool((tensors[key] != 0).any()) for tensors in ranks for key in keys if key in tensors)


def _find_tokenizer(folder: Path, values: Values) -> Path | None:
    names = ["tokenizer.json"]
    if values.get("tokenizer_type") in (None, "HFTokenizer") and isinstance(values.get("vocab_file"), str):
        names.append(Path(values["vocab_file"]).name)  # its folder is one of the machine that trained
    places = [place / name for name in names for place in (folder, folder.resolve().parent)]
    return next((file for file in places if file.suffix == ".json" and file.is_file()), None)


def _read_tokenizer(opened: NeoxCheckpoint) -> Tokenizer | None:
    if opened.tokenizer is None:
        return None
    tokenizer = Tokenizer.from_file(opened.tokenizer)
    check_vocabulary(tokenizer, opened.config)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuses a tokenizer with ids that the model has no row for."""
    if tokenizer.size > config.vocab_size:
        raise InputError(
            f"{tokenizer.source}: {tokenizer.size:,} ids are more than the model's vocab_size "
            f"{config.vocab_size:,}; it is not this model's tokenizer."
        )
