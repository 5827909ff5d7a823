"""Writes GPT-NeoX checkpoints: the pipeline layout, for any number of tensor-parallel ranks.

What upstream's strict loading wants to find is all there: also biases that this network does not have, as
zeros, and the second LayerNorm of a tied parallel block, as the identity, which GPT-NeoX stores without using
it. There are no optimizer and no random states: load it there with `finetune: true`. The directory appears
whole or not at all; memory beside the model is one layer's part of one rank."""

from collections.abc import Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.interchange.neox import check_vocabulary
from stablelm.interchange.neox_config import to_neox
from stablelm.interchange.neox_layout import MlpNames, choose_layout, entries, require_width, split
from stablelm.model import StableLM
from stablelm.model.adapters import require_none
from stablelm.storage import atomic_directory, refuse_existing, require_space, write_text
from stablelm.tokenizer import Tokenizer

_HEADING = """# The architecture of this checkpoint in GPT-NeoX's keys. Add the keys of your training run,
# with `finetune: true`: there are no optimizer and no random states beside the weights.
"""


def save_neox(
    model: StableLM,
    tokenizer: Tokenizer | None,
    out: str | Path,
    *,
    width: int = 1,
    mlp_names: MlpNames = "new",
    qkv_layout: str | None = None,
    step: int = 0,
) -> None:
    """Writes `out` (new, or an empty directory) in the pipeline layout for `width` tensor-parallel ranks, in
    the model's own precision: latest, global_step{step}/ with configs/, and tokenizer.json.

    `mlp_names` "new" is linear1 (up, then gate) and linear2; "legacy" w1, w2, w3, of before the gated MLP's
    rewriting. `InputError` names what cannot be divided over `width`, or what GPT-NeoX has no place for."""
    out, config = Path(out), model.config
    refuse_existing(out)
    require_none(model, str(out))
    require_width(config, width, out)
    if config.qk_layernorm:
        raise InputError(
            f"{out}: qk_layernorm: GPT-NeoX has no LayerNorm for each head of queries and keys (its own "
            "spans all heads of a rank), so this model cannot be written in its format."
        )
    if mlp_names not in ("new", "legacy"):
        raise InputError(f"{out}: mlp_names {mlp_names!r} is not known; use new or legacy.")
    if type(step) is not int or step < 0:
        raise InputError(f"{out}: step {step!r}: a whole number from 0 on is wanted.")
    if tokenizer is not None:
        check_vocabulary(tokenizer, config)
    layout, _ = choose_layout(config, qkv_layout, out)
    tensors = model.state_dict()
    require_space(out, sum(tensor.nbytes for tensor in tensors.values()), "the model")
    dtype = str(model.dtype).removeprefix("torch.")
    values, args = to_neox(config, mlp_names, width, dtype, None if tokenizer is None else tokenizer.size)
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id")}
    state: dict[str, Any] = {
        "module": None, "optimizer": None, "lr_scheduler": None, "sparse_tensor_module_names": set(),
        "skipped_steps": 0, "global_steps": step, "dp_world_size": 1, "mp_world_size": width,
        "iteration": step, "args": args, "stablelm": ids,
    }  # fmt: skip
    with atomic_directory(out) as aside:
        tag = aside / f"global_step{step}"
        (tag / "configs").mkdir(parents=True)
        for layer, group in groupby(entries(config, mlp_names), attrgetter("layer")):
            parts = list(group)
            for rank in range(width):
                content = {
                    part.key: split(
                        part, [tensors[name].cpu() for name in part.names], config, layout, width, rank
                    )
                    for part in parts
                }
                _save(content | _idle(config, layer, model.dtype), tag, f"layer_{layer:02d}-model_{rank:02d}")
        for rank in range(width):
            _save(state, tag, f"mp_rank_{rank:02d}")
        text = yaml.safe_dump(values, sort_keys=False)
        write_text(tag / "configs" / "stablelm.yml", _HEADING + text)
        if tokenizer is not None:
            tokenizer.save(aside)
        write_text(aside / "latest", tag.name)


def _save(content: Mapping[str, Any], tag: Path, name: str) -> None:
    end = "_" if name.startswith("mp_rank") else "-"
    # Through a file of Python's, which says when the disk is full; PyTorch's own does not.
    with open(tag / f"{name}{end}model_states.pt", "wb") as file:
        torch.save(dict(content), file)


def _idle(config: ModelConfig, layer: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What GPT-NeoX's modules hold, and its strict loading wants, without an effect on this network."""
    last = config.num_hidden_layers + 2
    zeros, ones = torch.zeros(config.hidden_size, dtype=dtype), torch.ones(config.hidden_size, dtype=dtype)
    norms = ["input_layernorm", "post_attention_layernorm"] if 2 <= layer < last else []
    idle: dict[str, Tensor] = {}
    if config.use_parallel_residual and norms:
        idle |= {"post_attention_layernorm.weight": ones, "post_attention_layernorm.bias": zeros}
    if not config.use_norm_bias:
        idle |= {f"{norm}.bias": zeros for norm in (["norm"] if layer == last + 1 else norms)}
    if config.use_qkv_bias and norms:  # one switch for all of attention's biases
        idle["attention.dense.bias"] = zeros
    return {key: value.clone() for key, value in idle.items()}
