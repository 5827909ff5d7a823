"""The SwiGLU feed-forward network (Shazeer, 2020): down(silu(gate(x)) · up(x)), no biases."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from stablelm.model.linear import Linear

Gated = Callable[[Tensor, Tensor], Tensor]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    return functional.silu(gate) * up


class FeedForward(nn.Module):
    """Two projections in, their gated product, one projection out."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)
        self.gated: Gated = swiglu
        """Chosen once for the whole model (`StableLM.use_kernels`)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, h] → [B, S, h]."""
        return self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))
