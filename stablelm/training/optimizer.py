"""AdamW over float32 master weights, in the two groups of the original run.

Matrices and embeddings decay; LayerNorm weights and biases do not (GPT-NeoX's rule). PyTorch's fused
implementation: one pass over weights, gradients and moments."""

import torch
from torch import Tensor, nn

from stablelm.config.optimization import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with a decayed group (parameters of two or more dimensions) and an undecayed one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name: all weights, or those of an adapter alone."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moment tensors, as `exp_avg.<parameter name>`; zeros before the first step."""
    result: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        result |= {f"{moment}.{name}": state[moment] for moment in MOMENTS}
    return result


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets every parameter's update count, which AdamW's bias correction reads."""
    for state in optimizer.state.values():
        state["step"].fill_(step)
