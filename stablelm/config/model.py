"""The architecture: what fixes a StableLM network, its sizes, and how Hugging Face's `config.json` spells it.

Names are Hugging Face's, so a checkpoint's config needs no translation. Sizes left out are derived by the
rules of the original run (GPT-NeoX's `mlp_multiple_of: 256`)."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from stablelm.config.errors import InputError
from stablelm.config.schema import Schema, suggest, validate


def swiglu_width(hidden_size: int, multiple: int = 256) -> int:
    """MLP width of the original run: int(2·h·4/3) rounded up to a multiple of 256 (2560 → 6912)."""
    return -(-int(2 * hidden_size * 4 / 3) // multiple) * multiple


class ModelConfig(Schema):
    """The network's architecture."""

    vocab_size: int = 50_304
    """Rows of the embedding and of the head; at least the tokenizer's ids, usually padded to a multiple of
    128."""
    hidden_size: int = 2560
    """Width of the residual stream."""
    intermediate_size: int = 6912
    """Width of the SwiGLU MLP; left out, it is int(2·hidden·4/3) rounded up to a multiple of 256."""
    num_hidden_layers: int = 32
    """Transformer blocks."""
    num_attention_heads: int = 32
    """Attention heads; they divide hidden_size."""
    num_key_value_heads: int = 32
    """Heads of keys and values; fewer than attention heads share them in groups (Ainslie et al., 2023). Left
    out, as many as attention heads."""
    max_position_embeddings: int = Field(4096, ge=1)
    """Context length in tokens."""
    partial_rotary_factor: float = 0.25
    """Share of each head's dimensions that is rotated (Black et al., 2022)."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary frequencies."""
    layer_norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance in every LayerNorm."""
    use_qkv_bias: bool = False
    """Biases on the query, key and value projections (StableLM 2 1.6B)."""
    qk_layernorm: bool = False
    """A LayerNorm without bias on every query and key head, before the rotation (StableLM 2 12B)."""
    use_parallel_residual: bool = False
    """Attention and MLP read the same LayerNorm and are added together (StableLM 2 12B)."""
    use_norm_bias: bool = True
    """Biases in the LayerNorms of the residual stream."""
    initializer_range: float = Field(0.02, ge=0)
    """Standard deviation of initial weights; residual outputs get it divided by √(2·layers), as in
    GPT-NeoX."""
    bos_token_id: int = 0
    """Id of the document separator, as beginning of text."""
    eos_token_id: int = 0
    """Id of the document separator, as end of text; generation stops at it."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        preset = values.pop("preset", None)
        if preset is not None:
            if not isinstance(preset, str) or preset not in PRESETS:
                raise ValueError(f"preset {preset!r} does not exist{suggest(str(preset), list(PRESETS))}")
            base = dict(PRESETS[preset])
            if "hidden_size" in values and "intermediate_size" not in values:
                base.pop("intermediate_size", None)
            values = {**base, **values}
        hidden = values.get("hidden_size")
        if values.get("intermediate_size") is None:
            values.pop("intermediate_size", None)
            if isinstance(hidden, int):
                values["intermediate_size"] = swiglu_width(hidden)
        if values.get("num_key_value_heads") is None:
            values.pop("num_key_value_heads", None)
            if "num_attention_heads" in values:
                values["num_key_value_heads"] = values["num_attention_heads"]
        return values

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads; "
                "choose num_attention_heads that divides it"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} cannot share {self.num_key_value_heads} "
                "key-value heads evenly; choose num_key_value_heads that divides it"
            )
        if self.head_dim % 2 or self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"head_dim {self.head_dim} with partial_rotary_factor {self.partial_rotary_factor} rotates "
                f"{self.rotary_dim} dimensions; an even number from 2 to head_dim is wanted"
            )
        for name in ("bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} is outside the vocabulary of {self.vocab_size}"
                )
        return self

    @property
    def head_dim(self) -> int:
        """Dimensions of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of each head that are rotated: int(head_dim · factor)."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def num_parameters(self) -> int:
        """Weights in the network, both embeddings included."""
        h, m, kv = self.hidden_size, self.intermediate_size, self.num_key_value_heads * self.head_dim
        norm = h * (1 + self.use_norm_bias)
        layer = 2 * h * h + 2 * h * kv + 3 * h * m + norm * (1 if self.use_parallel_residual else 2)
        layer += (h + 2 * kv) * self.use_qkv_bias + (h + kv) * self.qk_layernorm
        return 2 * self.vocab_size * h + self.num_hidden_layers * layer + norm

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of key-value cache that one token needs over all layers (bf16 by default)."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value


PRESETS: dict[str, dict[str, Any]] = {
    "stablelm-3b-4e1t": {},
    "stablelm-zephyr-3b": {},
    "stable-code-3b": dict(max_position_embeddings=16_384, rope_theta=1_000_000.0),
    "stablelm-2-1_6b": dict(
        vocab_size=100_352,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        use_qkv_bias=True,
        bos_token_id=100_257,
        eos_token_id=100_257,
    ),
    "stablelm-2-12b": dict(
        vocab_size=100_352,
        hidden_size=5120,
        intermediate_size=13_824,
        num_hidden_layers=40,
        num_key_value_heads=8,
        qk_layernorm=True,
        use_parallel_residual=True,
        use_norm_bias=False,
        initializer_range=0.01,
        bos_token_id=100_257,
        eos_token_id=100_257,
    ),
    "stablelm-1m": dict(
        vocab_size=2048,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
    ),
    "stablelm-5m": dict(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
    ),
    "stablelm-12m": dict(
        vocab_size=4096,
        hidden_size=384,
        num_hidden_layers=5,
        num_attention_heads=6,
        max_position_embeddings=512,
    ),
    "stablelm-34m": dict(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=1024,
    ),
    "stablelm-160m": dict(
        hidden_size=768, num_hidden_layers=10, num_attention_heads=12, max_position_embeddings=2048
    ),
    "stablelm-1b": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named architecture, with some keys changed."""
    return validate(ModelConfig, {"preset": name, **changes}, f"preset {name}")


# Keys of config.json that say nothing about the network's arithmetic here, or only what is fixed for this
# model.
_NEUTRAL = {
    "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "use_cache", "model_type",
    "num_heads", "pad_token_id", "_name_or_path", "head_dim", "return_dict", "output_hidden_states",
    "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id",
    "problem_type", "hidden_dropout", "attention_dropout",
}  # fmt: skip
_SPELLINGS = {
    "norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor", "rotary_pct": "partial_rotary_factor",
}  # fmt: skip
_EPOCH_NAMES = {"layer_norm_eps": "norm_eps", "partial_rotary_factor": "rope_pct"}
Spelling = Literal["stablelm", "stablelm_epoch"]
"""How `config.json` names the architecture."""
# Switches with one value that this network has; another value is another network.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu", "tie_word_embeddings": False, "rotary_scaling_factor": 1.0, "rope_scaling": None,
}  # fmt: skip


def from_huggingface(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The architecture that a `config.json` describes, in any spelling seen in released StableLM checkpoints.

    Raises `InputError` naming the key for another architecture or for a feature that this network does not
    have."""
    if not isinstance(values, Mapping) or not isinstance(values.get("rope_parameters") or {}, Mapping):
        raise InputError(f"{source}: not a model's configuration: a mapping of keys to values is wanted.")
    if values.get("model_type") not in ("stablelm", "stablelm_epoch"):
        raise InputError(
            f"{source}: model_type {values.get('model_type')!r} is not StableLM; 'stablelm' is wanted."
        )
    keys: dict[str, Any] = {}
    for name, value in values.items():
        if name == "rope_parameters":
            rope = dict(value or {})
            if rope.pop("rope_type", "default") != "default":
                raise InputError(
                    f"{source}: rope_parameters.rope_type {value['rope_type']!r} is not supported."
                )
            keys |= {k: v for k, v in rope.items() if v is not None}
        elif name in _FIXED:
            if value != _FIXED[name]:
                raise InputError(
                    f"{source}: {name} = {value!r} is not supported; this network has {_FIXED[name]!r}."
                )
        elif name == "initializer_range" or name not in _NEUTRAL:
            keys[_SPELLINGS.get(name, name)] = value
    heads, hidden, width = (values.get(n) for n in ("num_attention_heads", "hidden_size", "head_dim"))
    if isinstance(width, int) and isinstance(heads, int) and heads * width != hidden:
        raise InputError(
            f"{source}: head_dim = {width} is not supported; here it is hidden_size / num_attention_heads."
        )
    known = {name: value for name, value in keys.items() if name in ModelConfig.model_fields}
    missing = [
        n for n in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers") if n not in known
    ]
    if missing:
        raise InputError(f"{source}: the key {missing[0]!r} is missing.")
    return validate(ModelConfig, known, source)


def to_huggingface(config: ModelConfig, dtype: str, spelling: Spelling = "stablelm") -> dict[str, Any]:
    """The `config.json` of this architecture; `dtype` as in "float32".

    "stablelm" is what `transformers` reads since 4.38 (`StableLmForCausalLM`); "stablelm_epoch" is how the
    first released files spelled it, for tools of that time. Neither names code to load (`auto_map`): none is
    written beside it. `InputError` for an architecture that the older spelling has no key for."""
    if spelling == "stablelm_epoch":
        return _to_epoch(config, dtype)
    return {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        **config.model_dump(),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def _to_epoch(config: ModelConfig, dtype: str) -> dict[str, Any]:
    foreign = [
        name
        for name, usual in (
            ("qk_layernorm", False),
            ("use_parallel_residual", False),
            ("use_norm_bias", True),
        )
        if getattr(config, name) != usual
    ]
    if foreign:
        raise InputError(
            f"the spelling stablelm_epoch has no key for {foreign[0]} = {getattr(config, foreign[0])}; write "
            "this architecture as `huggingface`."
        )
    kept = config.model_dump(exclude={"qk_layernorm", "use_parallel_residual", "use_norm_bias"})
    renamed = {_EPOCH_NAMES.get(name, name): value for name, value in kept.items()}
    return {
        "architectures": ["StableLMEpochForCausalLM"],
        "model_type": "stablelm_epoch",
        **renamed,  # use_qkv_bias among them, also when false: later readers took a missing one for true
        "num_heads": config.num_attention_heads,
        "hidden_act": "silu",
        "rotary_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": dtype,
    }
