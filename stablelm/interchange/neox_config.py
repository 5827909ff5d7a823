"""The architecture behind a GPT-NeoX checkpoint: from the YAML copies beside it, or from its tensors; and the
YAML of ours.

A key that shapes the network is used, must have the one value that this network has, or is refused by name;
`-` and `_` are the same. Keys of training are passed over. What YAML says of sizes is checked against the
tensors, which are the truth: upstream's `intermediate_size` meant the MLP's width until its gated MLP was
rewritten, and three times that since (gpt-neox#1319), so both are read, and 3× is written for the new names.
Biases that are stored are part of the model whatever YAML says (StableLM 2 1.6B's YAML denies its own).
Without YAML the sizes come from the tensors and `args` of mp_rank_00, and what neither tells (rotary share
and base, ε) is the family's, with a warning."""

import difflib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablelm.config import PRESETS, InputError, ModelConfig, preset
from stablelm.config.model import from_huggingface
from stablelm.config.neox import mlp_widths
from stablelm.config.neox_file import ARCADE_100K, GPT2
from stablelm.config.neox_keys import NETWORK, one_of
from stablelm.config.schema import read_yaml, validate
from stablelm.interchange.neox_layout import MlpNames
from stablelm.storage import read_json

Values = dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """What the tensors alone say of the architecture."""

    blocks: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    qkv_rows: int
    mlp: MlpNames
    norm_bias: bool
    qkv_bias: bool
    post_attention_norm: bool
    head: bool


# What another value would make another network; and the one that is read from Hugging Face's files alone.
_FIXED = NETWORK | {
    "qk_norm": (
        False,
        one_of(False, None),
        "a norm for each head, but its fork's names for it are not public; use the Hugging Face files",
    ),
}
_USED = {
    "num_layers", "hidden_size", "num_attention_heads", "num_kv_heads", "attention_head_type", "seq_length",
    "max_position_embeddings", "rotary_pct", "rotary_emb_base", "layernorm_epsilon", "mlp_multiple_of",
    "intermediate_size", "expansion_factor", "no_weight_tying", "gpt_j_residual", "gpt_j_tied",
    "use_bias_in_norms", "use_bias_in_attn_linear", "use_bias_in_mlp", "init_method_std",
    "model_parallel_size", "pipe_parallel_size", "make_vocab_size_divisible_by", "vocab_file",
    "tokenizer_type",
}  # fmt: skip


def read_copies(folder: Path) -> tuple[Values, str] | None:
    """All keys of `folder`/configs, underscored, and the name for errors; None where there is no YAML."""
    inside = folder / "configs"
    files = sorted(f for f in inside.glob("*") if f.suffix in (".yml", ".yaml", ".json") and f.is_file())
    if not files:
        return None
    values: Values = {}
    for file in files:
        for key, value in read_settings(file).items():
            if key in values and values[key] != value:
                raise InputError(f"{file}: {key} is {value!r}, another file beside it says {values[key]!r}.")
            values[key] = value
    return values, str(files[0] if len(files) == 1 else inside)


def read_settings(file: Path) -> Values:
    """The keys of one GPT-NeoX YAML, with `_` for `-`; a key that looks like a misspelt one is refused."""
    values: Values = {}
    for name, value in read_yaml(file).items():
        key = str(name).replace("-", "_")
        if key in values and values[key] != value:
            raise InputError(f"{file}: {name} is given twice, with - and with _; keep one of them.")
        values[key] = value
        known = [*_USED, *_FIXED]
        if key not in known and (near := difflib.get_close_matches(key, known, 1, 0.88)):
            raise InputError(f"{file}: unknown key {name!r}; did you mean {near[0]!r}?")
    return values


def from_neox(values: Values, source: str, stored: Stored, ids: Mapping[str, int]) -> ModelConfig:
    """The architecture that YAML describes; `InputError` where it is not StableLM's or not the tensors'."""
    for key, (default, allowed, ours) in _FIXED.items():
        value = values.get(key, default)
        if not allowed(value) and not (key == "num_unique_layers" and value == values.get("num_layers")):
            given = "" if key in values else " (GPT-NeoX's default, as the key is not given)"
            raise InputError(f"{source}: {key} = {value!r}{given} is not supported; this network has {ours}.")
    heads = _number(values, "num_attention_heads", None, source)
    shared = values.get("num_kv_heads") or (1 if values.get("attention_head_type") == "multiquery" else None)
    parallel = bool(values.get("gpt_j_residual"))
    if parallel and not values.get("gpt_j_tied"):
        raise InputError(
            f"{source}: gpt_j_residual without gpt_j_tied has two LayerNorms side by side in each block; "
            "this network has one. It is GPT-NeoX-20B's and Pythia's; transformers' GPTNeoX reads it."
        )
    if not stored.head and not values.get("no_weight_tying"):
        raise InputError(
            f"{source}: no_weight_tying is not set, and there is no final_linear.weight: the head is the "
            "embedding. This network has a head of its own."
        )
    hidden = _number(values, "hidden_size", None, source)
    base = _number(values, "rotary_emb_base", 10_000, source)
    context = "max_position_embeddings" if "max_position_embeddings" in values else "seq_length"
    found = {
        "vocab_size": stored.vocab_size,
        "hidden_size": hidden,
        "intermediate_size": stored.intermediate_size,
        "num_hidden_layers": _number(values, "num_layers", None, source),
        "num_attention_heads": heads,
        "num_key_value_heads": shared or heads,
        "max_position_embeddings": _number(values, context, None, source),
        "partial_rotary_factor": _number(values, "rotary_pct", 1.0, source),
        "rope_theta": base,
        "layer_norm_eps": _number(values, "layernorm_epsilon", 1e-5, source),
        "initializer_range": _number(values, "init_method_std", 0.02, source),
        "use_parallel_residual": parallel,
        "use_norm_bias": stored.norm_bias or values.get("use_bias_in_norms") is True,
        "use_qkv_bias": stored.qkv_bias or values.get("use_bias_in_attn_linear") is True,
        **ids,
    }
    config = validate(ModelConfig, found, source)
    _check_width(values, source, hidden, stored)
    return config


def _check_width(values: Values, source: str, hidden: float, stored: Stored) -> None:
    """The MLP's width in the tensors must be one that YAML can mean, in the old reading or the new."""
    named = ("intermediate_size", "expansion_factor", "mlp_multiple_of")
    if not any(values.get(key) for key in named):
        return
    multiple = int(_number(values, "mlp_multiple_of", 1, source) or 1)
    if values.get("intermediate_size"):
        stated = int(_number(values, "intermediate_size", None, source))
    elif values.get("expansion_factor"):
        stated = int(hidden * _number(values, "expansion_factor", None, source))
    else:
        stated = int(4 * hidden)
    if multiple < 1 or not 0 < hidden < 2**31 or not 0 < stated < 2**31:
        raise InputError(f"{source}: hidden_size, intermediate_size or mlp_multiple_of is no sensible size.")
    given = bool(values.get("intermediate_size") or values.get("expansion_factor"))
    absolute, halved = mlp_widths(int(hidden), stated, given, multiple)
    if stored.intermediate_size not in (absolute, halved):
        said = ", ".join(f"{key} {values[key]}" for key in named if values.get(key))
        raise InputError(
            f"{source}: {said} makes an MLP {absolute:,} or (since gpt-neox's gated MLP) {halved:,} wide; "
            f"the tensors are {stored.intermediate_size:,} wide. One of the two belongs to another model."
        )


def from_tensors(args: Mapping[str, Any], source: str, stored: Stored, ids: Mapping[str, int]) -> ModelConfig:
    """The architecture where there is no YAML, from shapes and the `args` that GPT-NeoX saves; says by a
    warning what had to be taken from the family."""
    heads, context = args.get("num_attention_heads"), args.get("max_position_embeddings")
    if not all(type(value) is int and value > 0 for value in (heads, context)):
        raise InputError(
            f"{source}: no YAML in configs/, and no args with num_attention_heads and "
            "max_position_embeddings in mp_rank_00_model_states.pt: the architecture is not known. Give "
            "config=, a config.json, a preset's name or the run's YAML."
        )
    assert isinstance(heads, int)
    head_dim = stored.hidden_size // heads or 1
    shared, rest = divmod(stored.qkv_rows - stored.hidden_size, 2 * head_dim)
    sizes = {
        "vocab_size": stored.vocab_size,
        "hidden_size": stored.hidden_size,
        "intermediate_size": stored.intermediate_size,
        "num_hidden_layers": stored.blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if rest else shared,
        "max_position_embeddings": context,
    }
    like = next((n for n in PRESETS if all(getattr(preset(n), k) == v for k, v in sizes.items())), None)
    family = preset(like or "stablelm-3b-4e1t")
    warnings.warn(
        f"{source}: no YAML in configs/, so rotary_pct {family.partial_rotary_factor}, rotary_emb_base "
        f"{family.rope_theta:g}, layernorm_epsilon {family.layer_norm_eps:g} and a "
        f"{'sequential' if stored.post_attention_norm else 'parallel'} residual are "
        + (f"those of {like}, whose sizes these are" if like else "assumed, as StableLM-3B-4E1T's")
        + ". Give config= to be sure.",
        stacklevel=4,
    )
    kept = ("partial_rotary_factor", "rope_theta", "layer_norm_eps", "initializer_range")
    shape = {
        **{name: getattr(family, name) for name in kept},
        "use_norm_bias": stored.norm_bias,
        "use_qkv_bias": stored.qkv_bias,
        "use_parallel_residual": not stored.post_attention_norm,
    }
    return validate(ModelConfig, {**sizes, **shape, **ids}, source)


def from_user(given: ModelConfig | str | Path, stored: Stored, ids: Mapping[str, int]) -> ModelConfig:
    """The architecture that `config=` names: a preset, a config.json (or its directory), a GPT-NeoX YAML."""
    if isinstance(given, ModelConfig):
        return given
    if str(given) in PRESETS:
        return preset(str(given))
    path = Path(given)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix in (".yml", ".yaml"):
        return from_neox(read_settings(path), str(path), stored, ids)
    if path.suffix != ".json":
        raise InputError(f"config={str(given)!r}: give a config.json, a preset's name or a GPT-NeoX YAML.")
    return from_huggingface(read_json(path), str(path))


def token_ids(state: Mapping[str, Any], values: Values, vocab_size: int) -> dict[str, int]:
    """bos and eos: as saved by us; else those of the tokenizer that YAML names, else id 0."""
    kept = state.get("stablelm")
    if isinstance(kept, Mapping) and all(type(kept.get(f"{n}_token_id")) is int for n in ("bos", "eos")):
        return {f"{name}_token_id": kept[f"{name}_token_id"] for name in ("bos", "eos")}
    kind = values.get("tokenizer_type")
    end = {"GPT2BPETokenizer": GPT2, "HFGPT2Tokenizer": GPT2, "TiktokenTokenizer": ARCADE_100K}.get(
        str(kind), ARCADE_100K if "arcade100k" in str(values.get("vocab_file")) else 0
    )
    return dict.fromkeys(("bos_token_id", "eos_token_id"), end if end < vocab_size else 0)


def check_args(args: Any, config: ModelConfig, width: int, file: Path, source: str) -> None:
    """`args` of mp_rank are written by the run itself; YAML of another run is found out here."""
    if not isinstance(args, Mapping):
        return
    ours = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "padded_vocab_size": config.vocab_size,
        "model_parallel_size": width,
    }
    for name, value in ours.items():
        if args.get(name) not in (None, value):
            where = (
                "the files have" if name in ("model_parallel_size", "padded_vocab_size") else f"{source} has"
            )
            raise InputError(
                f"{file}: args say {name} {args[name]!r}, {where} {value:,}. They belong to different runs."
            )


def network_keys(config: ModelConfig) -> Values:
    """GPT-NeoX's keys of the network, but for the width of its MLP and its biases and norms of attention."""
    grouped = config.num_key_value_heads != config.num_attention_heads
    theta = config.rope_theta
    return {
        "num-layers": config.num_hidden_layers,
        "hidden-size": config.hidden_size,
        "num-attention-heads": config.num_attention_heads,
        **({"num_kv_heads": config.num_key_value_heads} if grouped else {}),
        "max-position-embeddings": config.max_position_embeddings,
        "norm": "layernorm",
        "layernorm_epsilon": config.layer_norm_eps,
        "pos-emb": "rotary",
        "rotary_pct": config.partial_rotary_factor,
        "rotary_emb_base": int(theta) if theta == int(theta) else theta,
        "no-weight-tying": True,
        "gpt_j_residual": config.use_parallel_residual,
        "gpt_j_tied": config.use_parallel_residual,
        "output_layer_parallelism": "column",
        "init_method_std": config.initializer_range,
        "output_layer_init_method": "scaled_normal",
        "use_bias_in_norms": config.use_norm_bias,
        "use_bias_in_mlp": False,
    }


def to_neox(
    config: ModelConfig, mlp: MlpNames, width: int, dtype: str, ids: int | None
) -> tuple[Values, Values]:
    """YAML keys of this architecture for GPT-NeoX, and the `args` that it checks them against; `ids` is the
    tokenizer's size."""
    wide = config.intermediate_size
    # GPT-NeoX pads the tokenizer's size to this multiple; it must arrive at the size that is stored.
    divisor = 128 * width
    pads = config.vocab_size % divisor == 0 and (
        ids is None or -(-ids // divisor) * divisor == config.vocab_size
    )
    multiple = 128 if pads else config.vocab_size // width
    values: Values = {
        "pipe-parallel-size": 1,
        "model-parallel-size": width,
        **network_keys(config),
        "seq-length": config.max_position_embeddings,
        "mlp_multiple_of": 256 if wide % 256 == 0 else 1,
        "intermediate_size": 3 * wide if mlp == "new" else wide,
        **({"activation": "swiglu"} if mlp == "new" else {"mlp_type": "llama", "activation": "silu"}),
        "use_bias_in_attn_linear": config.use_qkv_bias,
        "precision": {"float32": "fp32", "float16": "fp16"}.get(dtype, dtype),
        "make_vocab_size_divisible_by": multiple,
        "tokenizer-type": "HFTokenizer",
        "vocab-file": "tokenizer.json",
    }
    args = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "make_vocab_size_divisible_by": multiple,
        "padded_vocab_size": config.vocab_size,
        "tokenizer_type": "HFTokenizer",
        "model_parallel_size": width,
    }
    return values, args


def _number(values: Values, key: str, default: float | None, source: str) -> float:
    value = values.get(key)
    if value is None:
        value = default
    if value is None:
        raise InputError(f"{source}: the key {key!r} is missing.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{source}: {key} = {value!r}: a number is wanted.")
    return value
