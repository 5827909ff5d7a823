"""NEFTune: noise on the embeddings while a model is tuned (Jain et al., 2023).

Each embedded token of an example of L tokens gets uniform noise within ± α / √(L · d). The noise is a pure
function of the seed and the sample's number: a resumed run has that of the undisturbed one, on any number of
processes. Drawn on the CPU, a few ns a number."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablelm.finetuning.packing import ExampleSamples, Rows
from stablelm.finetuning.passing import Passing
from stablelm.storage import keyed_uint64


class EmbeddingNoise(Passing):
    """A forward hook of the embedding; does nothing outside `on`."""

    def __init__(self, alpha: float, order: ExampleSamples, seed: int, width: int) -> None:
        """`width`: d, the hidden size."""
        super().__init__()
        self.alpha, self.order, self.seed, self.width = alpha, order, seed, width

    def hook(self, module: Any, inputs: Any, embedded: Tensor) -> Tensor:
        """embedded [B, L, d], with the noise of the next B samples."""
        numbers = self.take(len(embedded))
        if not numbers:  # evaluation, or a pass of a process that no sample is left for
            return embedded
        return embedded + torch.stack([self.of(number) for number in numbers]).to(embedded)

    def of(self, number: int) -> Tensor:
        """The noise of a sample, float32 [L, d]; none on padding."""
        length = self.order.sequence_length
        generator = torch.Generator().manual_seed(keyed_uint64(self.seed, "embedding noise", number) >> 1)
        drawn = 2 * torch.rand(length, self.width, generator=generator) - 1
        row = int(self.order.mixture.address(np.array([number]))[2][0])
        assert isinstance(self.order.rows, Rows)  # the configuration refuses noise on pairs
        sizes = self.order.rows.sizes(row)
        scales = np.repeat(self.alpha / np.sqrt(np.array(sizes) * self.width), sizes)
        scales = np.concatenate([scales, np.zeros(max(0, length - len(scales)))])[:length]
        return drawn * torch.from_numpy(scales.astype(np.float32))[:, None]
