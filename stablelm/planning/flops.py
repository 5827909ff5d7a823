"""FLOPs of training, by the three counts that people state, each under its own name.

The same run is "40 %", "35 %" and "53 %" of an A100 by them, so a utilisation without its count says nothing.
None counts norms, rotations or the softmax: a percent, and not matrix products."""

from dataclasses import dataclass

from stablelm.config import InputError, ModelConfig

COUNTS = {
    "mfu": "6N + 12·L·h·s (Chowdhery et al., 2022)",
    "mfu_causal": "6·(N − input embedding) + 6·L·h·s, half of the attention",
    "hfu": "6N + 12·L·h·s, and the forward pass of the recomputed blocks once more",
}
"""Name of a utilisation → the FLOPs a token that it counts."""


@dataclass(frozen=True)
class Utilization:
    """Shares of a device's peak, by the three counts; `COUNTS` says what each is."""

    mfu: float
    mfu_causal: float
    hfu: float


def flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """6N + 12·L·h·s for one token, forward and backward (Chowdhery et al., 2022): 20.80 GFLOP for
    StableLM-3B-4E1T.

    N counts every weight, the input embedding too; attention is counted in full, not halved for causality."""
    attention = 12 * config.num_hidden_layers * config.hidden_size * sequence_length
    return 6 * config.num_parameters + attention


def causal_flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """6·(N − V·h) + 6·L·h·s: the input embedding is a look-up, half the attention is masked; 18.0 GFLOP."""
    attention = 6 * config.num_hidden_layers * config.hidden_size * sequence_length
    return 6 * (config.num_parameters - config.vocab_size * config.hidden_size) + attention


def hardware_flops_per_token(config: ModelConfig, sequence_length: int, recompute: str | int) -> int:
    """`flops_per_token`, and one more forward pass of every recomputed block: 27.22 GFLOP when all are.

    Selective recomputation repeats no matrix product and counts as none."""
    block = 2 * block_parameters(config) + 4 * config.hidden_size * sequence_length
    return flops_per_token(config, sequence_length) + recomputed_blocks(config, recompute) * block


def block_parameters(config: ModelConfig) -> int:
    """Weights in one block."""
    final_norm = config.hidden_size * (1 + config.use_norm_bias)
    outside = 2 * config.vocab_size * config.hidden_size + final_norm
    return (config.num_parameters - outside) // config.num_hidden_layers


def recomputed_blocks(config: ModelConfig, recompute: str | int) -> int:
    """Blocks whose whole forward pass runs a second time: all, none, or every n-th."""
    if recompute in ("none", "selective"):
        return 0
    if recompute == "full":
        return config.num_hidden_layers
    if isinstance(recompute, int) and recompute >= 1:
        return config.num_hidden_layers // recompute
    raise InputError(f"recompute: {recompute!r} is none of none, selective, full and a number from 1 on.")


def utilization(
    config: ModelConfig, sequence_length: int, recompute: str | int, tokens_per_second: float, peak: float
) -> Utilization:
    """The three utilisations of one device that trains `tokens_per_second` and could do `peak` FLOP/s."""
    share = tokens_per_second / peak
    return Utilization(
        mfu=share * flops_per_token(config, sequence_length),
        mfu_causal=share * causal_flops_per_token(config, sequence_length),
        hfu=share * hardware_flops_per_token(config, sequence_length, recompute),
    )
