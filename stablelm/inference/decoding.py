"""How a text is made beside how its tokens are drawn: read ahead, searched, the best of several, windowed.

One value for all of it, so that what does not go together is refused in one place, before any work."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.inference.cpu_runner import token_bytes
from stablelm.inference.prefix import PrefixCache, PrefixRunner
from stablelm.inference.runner import Runner, kv_bytes, require_memory
from stablelm.inference.sampling import Sampling
from stablelm.inference.window import Window, WindowRunner
from stablelm.model import StableLM


@dataclass(frozen=True)
class Decoding:
    """Out of range, and what does not go together, is an `InputError`."""

    lookup: bool = False
    """Read ahead what followed the same words before (`speculation.py`)."""
    beams: int = 1
    """Above 1: beam search (`beams.py`)."""
    length_penalty: float = 1.0
    """A hypothesis of n tokens scores its log-probability / n ** this; above 0 favours longer ones."""
    best_of: int = 1
    """So many texts are drawn, that of the highest mean log-probability is kept."""
    window: Window | None = None
    """What is seen of a text beyond the context (`window.py`)."""
    prefix: PrefixCache | None = None
    """What was read before (`prefix.py`)."""
    cache: str | None = None
    """Precision of keys and values in the CPU kernels (`cpu_runner.py`); a prefix has its own."""

    def __post_init__(self) -> None:
        for name in ("beams", "best_of"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}.")
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not math.isfinite(penalty):
            raise InputError(f"length_penalty must be a finite number, not {penalty!r}.")
        if penalty != 1 and self.beams == 1:
            raise InputError("length_penalty compares the hypotheses of a beam search; give beams above 1.")
        if self.beams > 1 and self.best_of > 1:
            raise InputError("beams search for one text and best_of draws several; choose one of them.")
        others = {"beams": self.beams > 1, "best_of": self.best_of > 1, "a window": self.window is not None,
                  "a prefix": self.prefix is not None}  # fmt: skip
        if self.lookup and any(others.values()):
            clash = next(name for name, given in others.items() if given)
            raise InputError(f"lookup reads ahead for one plain text; it does not go with {clash}.")
        if self.window is not None and self.cache is not None:
            raise InputError("a window has keys and values as the network computes them; leave cache away.")
        if self.window is not None and self.prefix is not None:
            raise InputError("a window forgets what a prefix keeps; leave one of them away.")

    @property
    def alone(self) -> bool:
        """Whether prompts are taken one by one: each is several rows, or must have no padding."""
        return self.beams > 1 or self.best_of > 1 or self.window is not None

    def check(self, sampling: Sampling) -> None:
        """`InputError` for settings of the draw that this way of decoding does not have."""
        if self.best_of > 1 and sampling.temperature == 0:
            raise InputError(
                f"best_of: at temperature 0 all {self.best_of} texts are the same. Raise the temperature."
            )
        if self.beams == 1:
            return
        plain = Sampling()
        for name in ("top_k", "top_p", "min_p", "typical_p", "seed"):
            if getattr(sampling, name) != getattr(plain, name):
                raise InputError(f"beam search draws nothing: {name} has no effect; leave it away.")
        if sampling.temperature not in (0, 1):
            raise InputError("beam search draws nothing: temperature has no effect; leave it away.")

    def runner(self, model: StableLM) -> Runner | None:
        """What computes; None leaves the choice to the loop."""
        if self.window is not None:
            return WindowRunner(model, self.window)
        if self.prefix is None:
            return None
        if self.prefix.model is not model:
            raise InputError("the prefix was made for another model; make one with PrefixCache(model).")
        if self.cache not in (None, self.prefix.kind):
            raise InputError("the prefix has keys and values of another kind; give cache to PrefixCache.")
        return PrefixRunner(self.prefix)

    def reserve(self, model: StableLM, length: int) -> None:
        """`InputError` when the rows that a prompt becomes (samples or beams) would not fit."""
        rows = max(self.best_of, self.beams)
        if rows > 1:
            if self.window is None:
                require_memory(model, rows, length, token_bytes(model, self.cache))
            else:
                require_memory(model, rows, self.window.slots(length), kv_bytes(model))


PLAIN = Decoding()
OnToken = Callable[[int, int], object]
"""Is called with the row and the id that was drawn for it."""
Begin = Callable[[Sequence[str], Sampling, OnToken, list[Tensor] | None], Iterator[tuple[int, str]]]
"""From prompts to (row, piece of text), as they come; the list receives log-probabilities [B] a step."""


def nothing(row: int, token: int) -> None:
    """An `OnToken` that nobody needs."""


def each_alone(begin: Begin, prompts: Sequence[str], sampling: Sampling, best_of: int) -> list[str]:
    """One prompt after the other, prompt i with seed + i; each in `best_of` rows, the likeliest is kept.

    All prompts are checked before the first is read."""
    begun = []
    for number, prompt in enumerate(prompts):
        tally = _Tally(best_of)
        pieces = begin([prompt] * best_of, sampling.shifted(number), tally.note, tally.nats)
        begun.append((tally, pieces))
    return [tally.likeliest(pieces) for tally, pieces in begun]


class _Tally:
    """Lengths and log-probabilities of the samples of one prompt: a number a token and row is kept."""

    def __init__(self, rows: int) -> None:
        self.lengths = [0] * rows
        self.nats: list[Tensor] = []

    def note(self, row: int, token: int) -> None:
        self.lengths[row] += 1

    def likeliest(self, pieces: Iterator[tuple[int, str]]) -> str:
        """The text with the highest mean log-probability of its ids, the end included; of equal ones the
        first."""
        texts = [""] * len(self.lengths)
        for row, piece in pieces:
            texts[row] += piece
        nats = torch.stack(self.nats) if self.nats else torch.zeros(1, len(texts))  # [steps, rows]
        means = [float(nats[:length, row].mean()) for row, length in enumerate(self.lengths)]
        return texts[means.index(max(means))]
