"""From logits to the next id: pure functions of a row of logits, its history, and a number.

The transforms and their order are those of `transformers`: repetition penalty, temperature, top-k, top-p,
min-p. The draw inverts the cumulative distribution at one uniform number that is a hash of (seed, position):
no generator state, so a row's text never depends on who shares its batch, and any position can be drawn again
alone. Rejected: one `torch.Generator` a row (state to carry, other numbers on every device), exponential
noise over the vocabulary (50,304 numbers a token for one choice)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.storage import keyed_uint64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Out of range is an `InputError`."""

    temperature: float = 1.0
    """Logits are divided by it; 0 always takes the likeliest token, and the filters below change nothing."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities sum to at least this (Holtzman et al., 2020)."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest (Nguyen et al., 2024)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or text (Keskar et al., 2019)."""
    seed: int | None = None
    """Row i of a batch draws with seed + i. None takes a fresh one."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.0, math.inf),
        ):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not low <= value <= high:
                between = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
                raise InputError(f"{name} must be a number {between}, not {value!r}.")
        if self.repetition_penalty == 0:
            raise InputError("repetition_penalty must be above 0; 1 switches it off, 1.1 is a mild one.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(
                f"top_k must be a whole number of at least 0 (0 keeps all tokens), not {self.top_k!r}."
            )
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise InputError(f"seed must be a whole number, not {self.seed!r}.")


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """logits [B, V] with the repetition penalty where `seen` [B, V] is True."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [B, V] after temperature, top-k, top-p and min-p; at least one token keeps some."""
    # Shifted first, so that a tiny temperature overflows to -inf only; below 1e-30 float32 would divide by 0.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[:, -1:], -torch.inf)
    if sampling.top_p < 1:
        ascending, order = logits.sort(dim=-1)
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        dropped[:, -1] = False
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.min_p > 0:
        floor = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) with which `seed` draws its token at `position`; 52 bits, so u·x < x also when
    rounded."""
    return (keyed_uint64("sample", seed, position) >> 12) / 2**52


def draw(probabilities: Tensor, uniforms: Sequence[float]) -> Tensor:
    """For each row the id where the cumulative probability first exceeds its uniform number; ids [B]."""
    cumulative = probabilities.double().cumsum(-1)
    target = (
        torch.tensor(uniforms, dtype=torch.float64, device=cumulative.device)[:, None] * cumulative[:, -1:]
    )
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def choose(
    logits: Tensor, seen: Tensor | None, sampling: Sampling, seeds: Sequence[int], position: int
) -> Tensor:
    """The next id of each row [B], from logits [B, V]; `seen` [B, V] only for a repetition penalty."""
    if not bool(logits.amax(-1).isfinite().all()):  # NaN wins a maximum
        raise InputError(
            f"the logits of new token {position} are not finite: the weights hold NaN or infinity, or "
            "overflow in this dtype. Load the model in float32 or bfloat16, or check its files."
        )
    if seen is not None:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return draw(distribution(logits, sampling), [uniform(seed, position) for seed in seeds])
