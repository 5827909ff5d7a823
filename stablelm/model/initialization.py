"""Initial weights, drawn for each parameter from (seed, its name).

Normal(0, 0.02), residual outputs (attention and MLP) 0.02/√(2·layers), as GPT-NeoX's `scaled_normal`;
LayerNorm starts as the identity. Because a parameter's draw depends on its name and shape alone, the weights
do not depend on construction order, device, process count or mesh: every process can draw the whole tensor
and keep its slice."""

import math

import torch
from torch import Tensor, nn

from stablelm.config import ModelConfig
from stablelm.storage import keyed_uint64

_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")


def initial_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """The initial float32 tensor of one parameter, drawn on the CPU."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    std = config.initializer_range
    if name.endswith(_RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * config.num_hidden_layers)
    generator = torch.Generator().manual_seed(keyed_uint64("initialize", seed, name) >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fills every parameter of `model` in place with its initial value."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_value(name, parameter.shape, config, seed))
