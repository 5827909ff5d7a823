"""The SwiGLU feed-forward network (Shazeer, 2020): down(silu(gate(x)) · up(x)), no biases."""

from torch import Tensor, nn
from torch.nn import functional

from stablelm.model.linear import Linear


class FeedForward(nn.Module):
    """Two projections in, their gated product, one projection out."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, h] → [B, S, h]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
