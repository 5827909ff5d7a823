"""Rotary position embeddings on the first quarter of each head (Su et al., 2021; Black et al., 2022).

Layout: GPT-NeoX's halves inside the rotated block, pairs (j, j + rotary_dim/2); the other dimensions pass
untouched. Angles, cosines and sines are computed in float32 whatever the network computes in (in bf16
neighbouring positions would share an angle), then rounded to the activations' precision, as in training
(GPT-NeoX) and in `transformers`: so bf16 logits are bit-equal to its. Rejected: rotating in float32, which is
no nearer to the float32 network (notebook); a cached table up to the context length (it gets cast with the
weights, and a longer context needs a new one); computing the angles anew costs under 0.1 % of a forward
pass."""

from collections.abc import Callable

import torch
from torch import Tensor

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, S, D]; cos, sin [S, r/2] or [B, 1, S, r/2], in x's dtype → x with its first r dimensions
    turned."""
    half = cos.shape[-1]
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


class Rotary:
    """The rotation for one forward pass, shared by all layers: built from positions, applied to q and k."""

    def __init__(self, positions: Tensor, rotary_dim: int, theta: float, turn: Turn = rotate) -> None:
        """`positions`: [S] for all rows alike, or [B, S]; `turn` is what rotates."""
        self.turn = turn
        exponents = torch.arange(0, rotary_dim, 2, device=positions.device, dtype=torch.float32) / rotary_dim
        angles = positions.float().unsqueeze(-1) * (1.0 / theta**exponents)  # [(B,) S, rotary/2]
        if angles.dim() == 3:
            angles = angles.unsqueeze(1)  # [B, 1, S, rotary/2]: the same for every head
        self.cos, self.sin = angles.cos(), angles.sin()

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, H, S, D] with its first rotary_dim dimensions rotated by the position's angles; dtype
        kept."""
        return self.turn(x, self.cos.to(x.dtype), self.sin.to(x.dtype))
