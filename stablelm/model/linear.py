"""A linear map that computes in the dtype of its input.

Weights stay in the precision they are kept in (float32 when training) and are cast on use, so one switch, the
dtype of the residual stream, sets the arithmetic of the whole network. Replaces `torch.autocast`, which would
cast every activation once per projection that reads it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stablelm.model.bfloat16_products import linear


class Linear(nn.Linear):
    """y = x Wᵀ (+ b) with W [out, in], cast to the dtype of x. Left uninitialised: `initialize` fills it."""

    __call__: Callable[..., Tensor]  # what nn.Module leaves untyped

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Does nothing: weights are drawn by name (`model.initialization`), or loaded."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        return linear(x, self.weight, self.bias)

    def row_norms(self) -> Tensor:
        """L2 norm of each row of W [out], in float32 or better."""
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(self.weight.detach(), dim=1, dtype=exact)
        return norms
