"""From logits to the next id: pure functions of a row of logits, its history, and a number.

The order, where `transformers` has the transform its order: logit bias with allowed and banned ids;
repetition, frequency and presence penalty; end ids before `min_new_tokens`; temperature, top-k, top-p, min-p,
typical. The draw inverts the cumulative distribution at one uniform number that is a hash of (seed,
position): no generator state, so a row's text never depends on who shares its batch, and any position can be
drawn again alone. Rejected: one `torch.Generator` a row (state to carry, other numbers on every device),
exponential noise over the vocabulary (50,304 numbers a token for one choice)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    typical_p: float = 1.0
    """Keep the tokens whose surprise is nearest the expected one, up to this sum (Meister et al., 2022)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the new text, as OpenAI defines it: not of the prompt."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit as often as it is in the new text."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Id → what is added to its logit."""
    banned_ids: Sequence[int] = ()
    """Ids that are never chosen."""
    allowed_ids: Sequence[int] | None = None
    """The only ids that may be chosen, the end of the text among them if it may end; None allows all."""
    min_new_tokens: int = 0
    """The text does not end by an end-of-text token before it has this many tokens."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.0, math.inf),
            ("typical_p", 0.0, 1.0),
            ("presence_penalty", -math.inf, math.inf),
            ("frequency_penalty", -math.inf, math.inf),
        ):
            value = getattr(self, name)
            if not _finite(value) or not low <= value <= high:
                between = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
                between = between if low > -math.inf else "that is finite"
                raise InputError(f"{name} must be a number {between}, not {value!r}.")
        if self.repetition_penalty == 0:
            raise InputError("repetition_penalty must be above 0; 1 switches it off, 1.1 is a mild one.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(
                f"top_k must be a whole number of at least 0 (0 keeps all tokens), not {self.top_k!r}."
            )
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise InputError(f"seed must be a whole number, not {self.seed!r}.")
        if not _is_id(self.min_new_tokens):
            raise InputError(
                f"min_new_tokens must be a whole number of at least 0, not {self.min_new_tokens!r}."
            )
        for name in ("logit_bias", "banned_ids", "allowed_ids"):
            if isinstance(value := getattr(self, name), str) or not all(map(_is_id, value or ())):
                raise InputError(f"{name} must name ids, whole numbers of at least 0, not {value!r}.")
        if not isinstance(self.logit_bias, Mapping) or not all(map(_finite, self.logit_bias.values())):
            raise InputError(f"logit_bias must map ids to finite numbers, not {self.logit_bias!r}.")

    def shifted(self, rows: int) -> "Sampling":
        """What row `rows` of a batch draws with, when it is alone."""
        return self if self.seed is None else replace(self, seed=self.seed + rows)

    @property
    def counts_tokens(self) -> bool:
        """Whether a penalty needs to know which tokens there were."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def bias(self, size: int, real_ids: int, device: torch.device) -> Tensor | None:
        """[V] to be added to all logits: the bias, and −∞ for ids that are not allowed. None changes nothing.

        `InputError` for ids that the vocabulary of `real_ids` lacks, and when nothing is left to choose."""
        named = [*self.logit_bias, *self.banned_ids, *(self.allowed_ids or ())]
        if named and max(named) >= real_ids:
            raise InputError(
                f"id {max(named):,} in logit_bias, banned_ids or allowed_ids: "
                f"the vocabulary has {real_ids:,}."
            )
        if not named and self.allowed_ids is None and real_ids >= size:
            return None
        bias = torch.zeros(size, device=device)
        for number, value in self.logit_bias.items():
            bias[number] = value
        if self.allowed_ids is not None:
            kept = bias[list(self.allowed_ids)]
            bias = torch.full_like(bias, -torch.inf)
            bias[list(self.allowed_ids)] = kept
        bias[list(self.banned_ids)] = -torch.inf
        bias[real_ids:] = -torch.inf
        if bool((bias == -torch.inf).all()):
            raise InputError("allowed_ids and banned_ids leave no id to choose; allow at least one.")
        return bias


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """logits [B, V] with the repetition penalty where `seen` [B, V] is True."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [B, V] after temperature, top-k, top-p, min-p and typical; at least one is above 0."""
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
    if sampling.typical_p < 1:
        surprise = -probabilities.log()  # ∞ where the probability is 0
        expected = torch.special.entr(probabilities).sum(-1, keepdim=True)
        distance = (surprise - expected).abs()
        nearest, order = distance.sort(dim=-1)
        enough = probabilities.gather(-1, order).cumsum(-1) < sampling.typical_p
        last = enough.sum(-1, keepdim=True).clamp(max=distance.shape[-1] - 1)
        probabilities = probabilities.masked_fill(distance > nearest.gather(-1, last), 0.0)
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


def adjust(
    logits: Tensor,
    sampling: Sampling,
    seen: Tensor | None,
    counts: Tensor | None,
    bias: Tensor | None,
    ends: Sequence[int] = (),
) -> Tensor:
    """logits [B, V] with bias, penalties and forbidden ids; what greedy takes the largest of.

    `seen` bool [B, V]: in prompt or text; `counts` [B, V]: how often in the new text; `ends` may not come
    yet."""
    if bias is not None:
        logits = logits + bias
    if seen is not None and sampling.repetition_penalty != 1:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if counts is not None:
        logits = logits - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    if ends:
        logits = logits.index_fill(-1, torch.tensor(list(ends), device=logits.device), -torch.inf)
        if bool((logits.amax(-1) == -torch.inf).any()):
            raise InputError(
                "min_new_tokens forbids the end of the text and the allowed ids name nothing else; "
                "allow another."
            )
    return logits


def require_finite(logits: Tensor, position: int) -> None:
    """`InputError` when the logits [B, V] of new token `position` hold NaN or infinity."""
    if not bool(logits.amax(-1).isfinite().all()):  # NaN wins a maximum
        raise InputError(
            f"the logits of new token {position} are not finite: the weights hold NaN or infinity, or "
            "overflow in this dtype. Load the model in float32 or bfloat16, or check its files."
        )


def choose(
    logits: Tensor,
    seen: Tensor | None,
    sampling: Sampling,
    seeds: Sequence[int],
    position: int,
    counts: Tensor | None = None,
    bias: Tensor | None = None,
    ends: Sequence[int] = (),
) -> Tensor:
    """The next id of each row [B], from logits [B, V]; the other tensors are those of `adjust`.

    `ends` are forbidden before `min_new_tokens` positions."""
    require_finite(logits, position)
    early = ends if position < sampling.min_new_tokens else ()
    logits = adjust(logits, sampling, seen, counts, bias, early)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return draw(distribution(logits, sampling), [uniform(seed, position) for seed in seeds])
