"""FLOPs of training, by the count in which this project states model FLOPs utilisation (MFU)."""

from stablelm.config import ModelConfig


def flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """6N + 12·L·h·s for one token, forward and backward (Chowdhery et al., 2022): 20.80 GFLOP for
    StableLM-3B-4E1T.

    N counts every weight, the input embedding too; attention is counted in full, not halved for causality."""
    attention = 12 * config.num_hidden_layers * config.hidden_size * sequence_length
    return 6 * config.num_parameters + attention
