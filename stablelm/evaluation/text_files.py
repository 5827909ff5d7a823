"""Loss, perplexity and bits per byte of a model on text files, with standard errors over documents.

Each document is read alone, from the separator on; its tokens are predicted once, the separator after it is
not, so that bits per byte are those of the text. A document longer than the window goes in windows: with a
stride below the window, later ones read again what comes before their tokens, and count only those. The
standard error is that of a ratio of sums over documents drawn at random (linearised; Cochran, 1977, §2.11):
the tokens of one document are not independent, so an error over tokens would be too small. One document has
none. Calibration (`evaluation/calibration.py`) is over all tokens, loss by position (`positions.py`) over the
windows that are full."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stablelm.config import InputError
from stablelm.evaluation.calibration import Calibration
from stablelm.evaluation.positions import Positions, ratio
from stablelm.evaluation.scoring import Request, score
from stablelm.model import StableLM
from stablelm.storage.json_lines import decoded, json_lines
from stablelm.tokenizer import Tokenizer

GROUP_TOKENS = 1 << 18
"""Documents are read until they have so many tokens, then scored together."""


@dataclass
class TextScores:
    """One entry for each document that has text."""

    nats: list[float] = field(default_factory=list)
    """Summed −ln p of its tokens."""
    tokens: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    """Of its UTF-8."""
    calibration: Calibration = field(default_factory=Calibration)
    """Of the predictions of all tokens together."""
    positions: Positions | None = None
    """Loss by position, where it is asked for."""

    def __add__(self, other: "TextScores") -> "TextScores":
        positions = self.positions or other.positions
        if self.positions is not None and other.positions is not None:
            positions = self.positions + other.positions
        return TextScores(
            self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes,
            self.calibration + other.calibration, positions,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the errors are null for one document."""
        loss, loss_error = ratio(self.nats, self.tokens)
        per_byte, per_byte_error = ratio(self.nats, self.bytes)
        perplexity = math.exp(min(loss, 700.0))
        return {
            "documents": len(self.nats), "tokens": sum(self.tokens), "text_bytes": sum(self.bytes),
            "loss": loss, "loss_standard_error": loss_error,
            "perplexity": perplexity,
            "perplexity_standard_error": None if loss_error is None else perplexity * loss_error,
            "bits_per_byte": per_byte / math.log(2),
            "bits_per_byte_standard_error": None if per_byte_error is None else per_byte_error / math.log(2),
            "calibration": self.calibration.as_dict(),
            **({} if self.positions is None else {"by_position": self.positions.as_dicts()}),
        }  # fmt: skip


def documents(path: Path, key: str = "text") -> Iterator[str]:
    """The documents of a file: of .jsonl the text under `key` of each line, of any other the whole file.

    `InputError` names the line, or the byte, that cannot be read."""
    if path.suffix != ".jsonl":
        yield decoded(path.read_bytes(), f"{path}")
        return
    for _, where, record in json_lines(path):
        text = record.get(key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise InputError(f"{where}: no text under {key!r} (found: {found}). Name its key with --key.")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{where}: half of a surrogate pair under {key!r}, which is no character.")
        yield text


def score_texts(
    model: StableLM,
    tokenizer: Tokenizer,
    texts: Iterator[str],
    window: int,
    stride: int,
    progress: Callable[[int], object] = lambda tokens: None,
    parts: int = 0,
) -> TextScores:
    """Reads `texts` in windows of `window` tokens, each `stride` after the last; empty texts do not count.

    `progress` hears of the tokens done. With `parts`, which wants windows that do not overlap, also the loss
    by position in so many equal parts of the window."""
    positions = Positions(window, parts) if parts else None
    assert positions is None or stride == window
    found = TextScores(positions=positions)
    waiting: list[tuple[int, int]] = []
    requests: list[Request] = []
    owners: list[int] = []

    def work() -> None:
        sums = [0.0] * len(waiting)
        placed = np.zeros((len(waiting), max(1, parts)))
        full = [0] * len(waiting)

        def hear(told: Tensor, members: Sequence[int]) -> None:
            found.calibration.add(told)
            at = 0
            for number in members if positions is not None else ():
                count = len(requests[number][1])
                if positions is not None and count == window:
                    placed[owners[number]] += positions.sums(-told[0, at : at + count].numpy())
                    full[owners[number]] += 1
                at += count

        results = score(model, requests, context=window, on_tokens=hear)
        if positions is not None:
            for nats, count in zip(placed, full, strict=True):
                positions.add(nats, count)
        for owner, result in zip(owners, results, strict=True):
            sums[owner] -= result.loglikelihood
        found.nats.extend(sums)
        found.tokens.extend(count for count, _ in waiting)
        found.bytes.extend(size for _, size in waiting)
        for held in (waiting, requests, owners):
            held.clear()
        progress(sum(found.tokens))

    for text in texts:
        ids = tokenizer.encode_documents([text])[0]
        if not ids:
            continue
        for before, after in windows([model.config.eos_token_id, *ids], window, stride):
            requests.append((before, after))
            owners.append(len(waiting))
        waiting.append((len(ids), len(text.encode())))
        if sum(count for count, _ in waiting) >= GROUP_TOKENS:
            work()
    if waiting:
        work()
    return found


def windows(ids: Sequence[int], window: int, stride: int) -> Iterator[Request]:
    """(what is read before, what is predicted) such that every id after the first is predicted once."""
    assert 0 < stride <= window
    end = 1
    for start in range(0, len(ids) - 1, stride):
        stop = min(start + window + 1, len(ids))
        yield ids[start:end], ids[end:stop]
        if stop == len(ids):
            return
        end = stop
