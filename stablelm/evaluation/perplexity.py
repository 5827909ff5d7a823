"""Loss, perplexity and bits per byte of a model on a token file.

Every token of the file is predicted once, document ends included; the first one from an end-of-document
token. Windows may overlap (`stride` below the window length) so that tokens late in a document keep their
context; the overlap is read again but not counted again. Bits per byte divides by the UTF-8 bytes of the
text, so models with different tokenizers, and compressors, can be compared."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

from stablelm.data.token_files import TokenFile
from stablelm.model import StableLM


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Sums over the predicted tokens of one file."""

    nats: float
    """Summed −ln p of the predicted tokens."""
    tokens: int
    """Predicted tokens."""
    text_bytes: float
    """UTF-8 bytes of the text they stand for."""

    @property
    def loss(self) -> float:
        """Mean nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits needed for one byte of text."""
        return self.nats / math.log(2) / self.text_bytes

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {
            "loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens, "text_bytes": self.text_bytes,
        }  # fmt: skip


@torch.no_grad()
def perplexity(
    model: StableLM,
    tokens: TokenFile,
    text_bytes: int,
    window: int,
    *,
    stride: int | None = None,
    windows: int | None = None,
    batch: int = 8,
    part: tuple[int, int] = (0, 1),
    total: Callable[[float], float] | None = None,
) -> Perplexity:
    """The model's loss on `tokens`, whose text has `text_bytes` bytes, read in windows of `window` tokens.

    `windows` reads only that many windows, evenly spread; the bytes then counted are the file's mean per
    token. Processes may share the work: the one with `part` (i, n) reads every n-th batch, each makes as many
    forward passes, and `total` adds their sums up."""
    stride = stride or window
    assert 0 < stride <= window
    stream = np.concatenate(
        [[model.config.eos_token_id], tokens.tokens(0, tokens.num_tokens).astype(np.int64)]
    )
    starts = np.arange(0, max(1, len(stream) - 1 - window + stride), stride)
    if windows is not None and windows < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, windows).round().astype(int)]
    nats, counted = 0.0, 0
    for group in range(part[0] * batch, len(starts) + part[0] * batch, batch * part[1]):
        chosen = starts[group : group + batch]  # none where the last round has no batch left for this process
        inputs = np.full((max(1, len(chosen)), window), model.config.eos_token_id)
        labels = np.full_like(inputs, -100)
        for row, start in enumerate(chosen):
            piece = stream[start : start + window + 1]
            length = len(piece) - 1
            inputs[row, :length] = piece[:-1]
            repeated = 0 if start == 0 else window - stride
            labels[row, repeated:length] = piece[1 + repeated :]
        counted += int((labels >= 0).sum())
        loss = model(
            torch.from_numpy(inputs).to(model.device), labels=torch.from_numpy(labels).to(model.device)
        )
        nats += float(loss)
    if total is not None:
        nats, counted = total(nats), round(total(counted))
    return Perplexity(nats, counted, text_bytes * counted / tokens.num_tokens)
