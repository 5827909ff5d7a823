"""The small random network that the tests of generation run."""

import torch

from stablelm.config import preset
from stablelm.model import StableLM


def network(vocab_size: int = 512, seed: int = 5, factor: float = 5, **changes) -> StableLM:
    """Two layers whose matrices are `factor` times as large as at the start of training: attention prefers
    some tokens and distributions are far from uniform, so that equal texts mean equal arithmetic."""
    changes = {"num_hidden_layers": 2, **changes}
    model = StableLM(preset("stablelm-1m", vocab_size=vocab_size, **changes), seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor if parameter.dim() == 2 else 1)
    return model
