"""One network under two names: GGUF's tensors and metadata, and ours.

What a file's network has follows from its tensors, as in llama.cpp: old converters wrote
`use_parallel_residual` wrongly, and none writes a flag for biases. A missing rotary base is 10,000, as there.
Names are one to one, except that the norms of a layer's query heads are the rows of one tensor, as are its
keys'."""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.config.schema import validate
from stablelm.interchange.gguf_header import GGUFTensor, Header
from stablelm.interchange.gguf_types import DENSE, decode
from stablelm.model import StableLM

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
MERGED = ("attn_q_norm.weight", "attn_k_norm.weight")
"""Endings of the tensors that hold a row for each head."""
_OURS = re.compile(r"(?:model\.layers\.(\d+)\.)?(.*?)(?:\.norms\.\d+)?\.(weight|bias)")


def network_metadata(config: ModelConfig) -> dict[str, Any]:
    """The entries that say what the network is."""
    return {
        "stablelm.context_length": config.max_position_embeddings,
        "stablelm.embedding_length": config.hidden_size,
        "stablelm.block_count": config.num_hidden_layers,
        "stablelm.feed_forward_length": config.intermediate_size,
        "stablelm.attention.head_count": config.num_attention_heads,
        "stablelm.attention.head_count_kv": config.num_key_value_heads,
        "stablelm.attention.layer_norm_epsilon": config.layer_norm_eps,
        "stablelm.rope.dimension_count": config.rotary_dim,
        "stablelm.rope.freq_base": config.rope_theta,
        "stablelm.use_parallel_residual": config.use_parallel_residual,
        # what llama.cpp has no key for, and skips
        "stablelm.use_norm_bias": config.use_norm_bias,
        "stablelm.initializer_range": config.initializer_range,
    }


def _gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_layernorm.norms.7.weight` → `blk.3.attn_q_norm.weight`."""
    found = _OURS.fullmatch(name)
    if found is None or found[2] not in _NAMES:
        raise InputError(
            f"tensor {name!r} has no place in a GGUF file. Merge what was added to the network first."
        )
    block = f"blk.{found[1]}." if found[1] is not None else ""
    return f"{block}{_NAMES[found[2]]}.{found[3]}"


def layout_of(
    tensors: dict[str, Tensor], config: ModelConfig
) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """Each GGUF tensor: its name, which of ours make it (none: zeros), its shape."""
    parts: dict[str, list[str]] = {}
    for name in tensors:
        parts.setdefault(_gguf_name(name), []).append(name)
    for name, ours in parts.items():
        shape = tuple(tensors[ours[0]].shape)
        merged = name.endswith(MERGED)
        yield name, ours, (len(ours), *shape) if merged else shape
        if name.endswith("_norm.weight") and not merged and not config.use_norm_bias:
            yield name.replace("weight", "bias"), [], shape


def described(header: Header) -> tuple[ModelConfig, dict[str, list[str]]]:
    """The network that a file holds, and our names for each of its tensors; all of them are there, in the
    right shape, and nothing else is."""
    config = _config(header)
    with torch.device("meta"):
        tensors = StableLM(config).state_dict()
    layout = {}
    for name, parts, shape in layout_of(tensors, config):
        found = header.tensors.get(name)
        if found is None and not parts:
            continue  # zero biases that another tool left out
        if found is None:
            why = " (llama.cpp wants it too: this network's head is a matrix of its own)" * (
                name == "output.weight"
            )
            raise header.broken(f"tensor {name!r} is missing{why}")
        if found.shape != shape:
            raise header.broken(
                f"tensor {name!r} has shape {list(found.shape)}, its metadata want {list(shape)}"
            )
        layout[name] = parts
    if foreign := sorted(header.tensors.keys() - layout.keys()):
        also = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise header.broken(f"tensor {foreign[0]!r}{also} has no place in what its metadata describe")
    return config, {name: parts for name, parts in layout.items() if parts}


def _config(header: Header) -> ModelConfig:
    architecture = header.text("general.architecture")
    if architecture != "stablelm":
        raise InputError(f"{header.path}: its architecture is {architecture!r}; 'stablelm' is wanted.")
    if (files := header.integer("split.count", 1)) > 1:
        raise InputError(f"{header.path}: one of {files} files; join them with `llama-gguf-split --merge`.")
    tensors, key = header.tensors, "stablelm.{}".format
    scaling = header.text(key("rope.scaling.type"), "none")
    factors = [header.number(key(f"rope.{name}"), 1.0) for name in ("scaling.factor", "scale_linear")]
    if (scaling != "none" and factors[0] != 1) or factors[1] != 1:
        raise InputError(
            f"{header.path}: its rotary positions are scaled ({scaling}), which is not supported."
        )
    heads = header.integer(key("attention.head_count"))
    hidden = header.integer(key("embedding_length"))
    width = hidden // max(heads, 1)
    for name in ("key", "value"):
        if header.integer(key(f"attention.{name}_length"), width) != width:
            raise InputError(
                f"{header.path}: attention.{name}_length is not embedding_length / head_count, {width}."
            )
    layers = header.integer(key("block_count"))
    held = len({name.split(".")[1] for name in tensors if name.startswith("blk.")})
    if layers != held:
        raise header.broken(f"its metadata say {layers:,} layers, its tensors are of {held:,}")
    if "token_embd.weight" not in tensors:
        raise header.broken("tensor 'token_embd.weight' is missing")
    rows = tensors["token_embd.weight"].shape[0]
    biases = [tensor for name, tensor in tensors.items() if name.endswith("_norm.bias")]
    stated = header.flag(key("use_norm_bias"), True)  # ours alone: False has only zeros
    values = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": header.integer(key("feed_forward_length")),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": header.integer(key("attention.head_count_kv"), heads),
        "max_position_embeddings": header.integer(key("context_length")),
        "partial_rotary_factor": _share(header.integer(key("rope.dimension_count"), width), width),
        "rope_theta": header.number(key("rope.freq_base"), 10_000.0),
        "layer_norm_eps": header.number(key("attention.layer_norm_epsilon")),
        "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
        "use_norm_bias": bool(biases) and (stated or any(_nonzero(header, bias) for bias in biases)),
        "initializer_range": header.number(key("initializer_range"), 0.02),
        **_ends(header, rows),
    }
    config = validate(ModelConfig, values, f"{header.path} (metadata)")
    elements = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if config.num_parameters > 100 * elements:  # before a network of absurd size is built
        raise header.broken(
            f"its metadata describe {config.num_parameters:,} parameters, it holds {elements:,}"
        )
    return config


def _share(rotated: int, width: int) -> float:
    """The factor that `ModelConfig.rotary_dim` turns into `rotated` of `width` dimensions."""
    factor = rotated / max(width, 1)
    return factor if int(width * factor) == rotated else math.nextafter(factor, math.inf)


def _nonzero(header: Header, tensor: GGUFTensor) -> bool:
    return tensor.type not in DENSE or bool(decode(header, tensor).count_nonzero())


def _ends(header: Header, rows: int) -> dict[str, int]:
    """Ids of the separator as beginning and end; 0 in a file that has none, as GPT-NeoX's."""
    wanted = {
        f"{end}_token_id": header.integer(f"tokenizer.ggml.{end}_token_id", 0) for end in ("bos", "eos")
    }
    for name, number in wanted.items():
        if number >= rows:
            raise header.broken(f"tokenizer.ggml.{name} is {number}, beyond the vocabulary of {rows:,}")
    return wanted
