"""LayerNorm with learned weight and bias (Ba et al., 2016), mean and variance in float32 or better."""

from torch import Tensor, nn
from torch.nn import functional


class LayerNorm(nn.LayerNorm):
    """(x − mean) / √(variance + eps) · weight + bias over the last dimension; returns the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., h] → [..., h]."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
