"""The matrix products of the blocks in 8-bit floating point (Micikevicius et al., 2022), through torchao.

Weights, moments and gradients stay as they are; activations, weights and their gradients are scaled and
rounded to float8 where they are multiplied. Torchao's `tensorwise` recipe takes one scale a tensor, e4m3
forward and e5m2 for gradients; `rowwise` one a row and e4m3 alone: nearer, slower. Embedding and head keep
bfloat16."""

import importlib.util
from typing import Any

import torch

from stablelm.config import InputError, RunConfig
from stablelm.model import StableLM
from stablelm.model.linear import Linear

DIVISOR = 16
"""What the widths of a float8 matrix product must be multiples of."""


def check_float8(config: RunConfig, device_type: str) -> None:
    """Refuses what float8 does not go with; `InputError`."""
    if config.fp8 is None:
        return
    if config.precision != "bf16":
        raise InputError(
            f"fp8: {config.fp8} goes with precision: bf16, not {config.precision}; leave one of them out."
        )
    if config.parallel.tensor > 1:
        raise InputError(
            "fp8 does not go with parallel.tensor above 1; leave fp8 out, or use data ranks alone."
        )
    model = config.model
    for name in ("hidden_size", "intermediate_size"):
        if (width := getattr(model, name)) % DIVISOR:
            raise InputError(f"fp8 needs a model.{name} that {DIVISOR} divides, not {width:,}.")
    if importlib.util.find_spec("torchao") is None:
        raise InputError("fp8: torchao is not installed. Run: pip install 'stablelm[gpu]'")
    if device_type != "cuda":
        raise InputError(f"fp8 needs a GPU with 8-bit matrix products (H100 and later), not {device_type}.")
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        raise InputError(
            f"fp8: {torch.cuda.get_device_name()} has no 8-bit floating-point products; leave fp8 out."
        )


def to_float8(model: StableLM, recipe: str, *, emulate: bool = False) -> StableLM:
    """Lets every plain linear layer of the blocks multiply in float8; `recipe` is tensorwise or rowwise.

    `emulate` computes the same numbers without 8-bit products (tests on a CPU)."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config: Any = Float8LinearConfig.from_recipe_name(recipe)
    if emulate:
        object.__setattr__(config, "emulate", True)
    for block in model.model.layers:
        convert_to_float8_training(block, config=config, module_filter_fn=_is_plain)
    return model


def _is_plain(module: torch.nn.Module, name: str) -> bool:
    return type(module) is Linear
