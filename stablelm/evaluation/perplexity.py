"""Loss, perplexity and bits per byte of a model on a token file.

Every token of the file is predicted once, document ends included; the first one from an end-of-document
token. Windows may overlap (`stride` below the window length) so that tokens late in a document keep their
context; the overlap is read again but not counted again. How sure the model is beside how often it is right
(calibration) comes from the same passes. Bits per byte divides by the UTF-8 bytes of the
text, so models with different tokenizers, and compressors, can be compared."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablelm.data.token_files import TokenFile
from stablelm.evaluation.calibration import Calibration
from stablelm.evaluation.shares import ALONE, Share
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
    calibration: Calibration
    """Confidence and accuracy of the predictions."""

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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte,
            "ece": self.calibration.error, "accuracy": self.calibration.accuracy,
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
    share: Share = ALONE,
) -> Perplexity:
    """The model's loss on `tokens`, whose text has `text_bytes` bytes, read in windows of `window` tokens.

    `windows` reads only that many windows, evenly spread; the bytes then counted are the file's mean per
    token. With a `share`, processes read together, and all have the result."""
    stride = stride or window
    assert 0 < stride <= window
    stream = np.concatenate(
        [[model.config.eos_token_id], tokens.tokens(0, tokens.num_tokens).astype(np.int64)]
    )
    starts = np.arange(0, max(1, len(stream) - 1 - window + stride), stride)
    if windows is not None and windows < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, windows).round().astype(int)]
    calibration, nats = Calibration(), torch.zeros(1, dtype=torch.float64)
    for chosen, counts in share.turns([starts[at : at + batch] for at in range(0, len(starts), batch)]):
        inputs = np.full((len(chosen), window), model.config.eos_token_id)
        labels = np.full_like(inputs, -1)
        for row, start in enumerate(chosen):
            piece = stream[start : start + window + 1]
            length = len(piece) - 1
            inputs[row, :length] = piece[:-1]
            repeated = 0 if start == 0 else window - stride
            labels[row, repeated:length] = piece[1 + repeated :]
        told = predicted(model, inputs, labels)
        if counts:
            nats -= told[0].double().sum()
            calibration.add(told)
    sums = share.total(torch.cat([nats, calibration.sums.flatten()]))
    calibration = Calibration(sums[1:].view_as(calibration.sums))
    counted = calibration.tokens
    return Perplexity(float(sums[0]), counted, text_bytes * counted / tokens.num_tokens, calibration)


@torch.no_grad()
def predicted(model: StableLM, inputs: np.ndarray, labels: np.ndarray) -> Tensor:
    """ids [B, S] with the id wanted after each [B, S], negative where none is → how each of those N is
    predicted [3, N], row by row, on the CPU."""
    flat = labels.ravel()
    places = np.flatnonzero(flat >= 0)
    ids, wanted, at = (torch.from_numpy(x).to(model.device) for x in (inputs, flat[places], places))
    told: Tensor = model(ids, labels=wanted, places=at)
    return told.cpu()
