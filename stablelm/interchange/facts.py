"""What is told of every model, whatever format it lies in."""

from typing import Any

from stablelm.config import ModelConfig
from stablelm.tokenizer import Tokenizer


def architecture_facts(config: ModelConfig) -> dict[str, Any]:
    """Sizes and switches of the network, by the names that `stablelm inspect` shows."""
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dimensions": config.head_dim,
        "rotary_dimensions": config.rotary_dim,
        "rotary_base": int(config.rope_theta) if config.rope_theta.is_integer() else config.rope_theta,
        "mlp": config.intermediate_size,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "residual": "parallel" if config.use_parallel_residual else "sequential",
        "norm_biases": "yes" if config.use_norm_bias else "no",
        "qkv_biases": "yes" if config.use_qkv_bias else "no",
        "query_key_norms": "yes" if config.qk_layernorm else "no",
        "kv_bytes_per_token": config.kv_bytes_per_token(),
    }


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids, the separators and the hash of the file."""
    return {
        "ids": tokenizer.size,
        "end_of_text": tokenizer.eos_id,
        "padding": tokenizer.pad_id,
        "sha256": tokenizer.sha256,
    }
