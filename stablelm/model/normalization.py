"""LayerNorm (Ba et al., 2016), mean and variance in float32 or better; and one for each attention head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

AddNorm = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]


class LayerNorm(nn.LayerNorm):
    """(x − mean) / √(variance + eps) · weight (+ bias) over the last dimension; returns the dtype of x."""

    __call__: Callable[..., Tensor]

    def __init__(self, width: int, eps: float, bias: bool = True) -> None:
        super().__init__(width, eps, bias=bias)
        self.fused: AddNorm | None = None
        """Replaces `after`; chosen once for the whole model (`StableLM.use_kernels`)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., h] → [..., h]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x, delta [..., h] → x + delta, and its norm."""
        if self.fused is not None:
            return self.fused(x, delta, self.weight, self.bias, self.eps)
        x = x + delta
        return x, self(x)


class HeadNorm(nn.Module):
    """A LayerNorm without bias for each head, with weights of its own (StableLM 2 12B)."""

    __call__: Callable[..., Tensor]

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(head_dim, eps, bias=False) for _ in range(num_heads))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, S, D] → the same shape."""
        weight = torch.stack([norm.weight for norm in self.norms]).unsqueeze(1)  # type: ignore[misc]  # [H, 1, D]
        exact = torch.promote_types(x.dtype, torch.float32)  # rounded once, as `layer_norm` does inside
        return (functional.layer_norm(x.to(exact), x.shape[-1:], eps=self.eps) * weight.to(exact)).to(x.dtype)
