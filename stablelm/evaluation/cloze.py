"""Two small tasks made from a user's own held-out documents, with no download: how a passage goes on, and its
last word.

Passages are pieces of documents, evenly spread over all of them, always the same for the same data. After
seven eighths of a passage, its true continuation stands among those of three other passages of the same
source, all equally long, so their log-probabilities compare as they are; a quarter is right by chance. The
last word (after Paperno et al., 2016, LAMBADA) is the last whole one of three letters or more in the second
half of a passage; it is right when the network would write all of its tokens. Text without spaces between
words has no last words here."""

import dataclasses
import re
from typing import Any

import numpy as np

from stablelm.data.token_files import TokenFile
from stablelm.evaluation.scoring import Request, score
from stablelm.evaluation.shares import ALONE, Share
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

PASSAGE = 128
"""Tokens of a passage; a window where that is shorter, less where documents are short."""
LEAST = 16
OTHERS = 3
_WORD = re.compile(r"(?<=\S) ([^\W\d_]{3,})(?=\W)")


@dataclasses.dataclass(frozen=True)
class Cloze:
    """The items of one source."""

    choices: tuple[tuple[Request, ...], ...]
    """Of each passage: the true continuation first, then the others, after the same tokens."""
    words: tuple[Request, ...]
    """Of each passage that has one: the last word after what stands before it."""

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the continuations."""
        return sum(1 / len(item) for item in self.choices) / max(1, len(self.choices))


def make(tokens: TokenFile, tokenizer: Tokenizer, eos: int, count: int, window: int) -> Cloze | None:
    """At most `count` passages of `tokens`, read in windows of `window`; None for too little text: fewer than
    four passages of 16 tokens. `eos` ends documents and stands before every passage."""
    length = min(PASSAGE, window)
    while length >= LEAST and int((_sizes(tokens) // length).sum()) <= OTHERS:
        length //= 2
    if length < LEAST:
        return None
    passages = _passages(tokens, count, length)
    cut = length - length // 8
    number, choices, words = len(passages), [], []
    for i, passage in enumerate(passages):
        begin, truth = (eos, *passage[:cut]), passage[cut:]
        others = [passages[(i + k * number // (OTHERS + 1)) % number][cut:] for k in range(1, OTHERS + 1)]
        others = [other for other in others if other != truth]
        if others:
            choices.append(tuple((begin, after) for after in (truth, *others)))
        if (word := _last_word(tokenizer, passage, eos)) is not None:
            words.append(word)
    return Cloze(tuple(choices), tuple(words))


def evaluate(
    model: StableLM, cloze: Cloze, window: int, batch_tokens: int, share: Share = ALONE
) -> dict[str, Any]:
    """For JSON: how many continuations are told (`choice_accuracy`, beside `chance`), how many last words
    (`word_accuracy`), and −ln p of a word in nats (`word_loss`); what there is nothing of is left out."""
    requests = [request for item in cloze.choices for request in item] + list(cloze.words)
    found = score(model, requests, context=window, batch_tokens=batch_tokens, share=share)
    right, at = 0, 0
    for item in cloze.choices:
        values = [one.loglikelihood for one in found[at : at + len(item)]]
        right += values[0] > max(values[1:])
        at += len(item)
    words = found[at:]
    told: dict[str, Any] = {}
    if cloze.choices:
        told |= {"choice_accuracy": right / len(cloze.choices), "chance": cloze.chance}
    if words:
        told["word_accuracy"] = sum(one.greedy for one in words) / len(words)
        told["word_loss"] = -sum(one.loglikelihood for one in words) / len(words)
    return told | {"choices": len(cloze.choices), "words": len(words)}


def _sizes(tokens: TokenFile) -> np.ndarray:
    """Tokens of each document, as if each ended in EOD, which counts for nothing."""
    return np.maximum(tokens.sizes.astype(np.int64) - 1, 0)


def _passages(tokens: TokenFile, count: int, length: int) -> list[tuple[int, ...]]:
    """Pieces of `length` tokens that lie in one document each."""
    ends = np.cumsum(_sizes(tokens) // length)  # pieces up to and with each document
    every = int(ends[-1])
    found = []
    for piece in np.linspace(0, every - 1, min(count, every)).round().astype(np.int64).tolist():
        document = int(np.searchsorted(ends, piece, side="right"))
        place = piece - (int(ends[document - 1]) if document else 0)
        start = tokens.document_start(document) + place * length
        found.append(tuple(tokens.tokens(start, length).tolist()))
    return found


def _last_word(tokenizer: Tokenizer, passage: tuple[int, ...], eos: int) -> Request | None:
    text = tokenizer.decode(list(passage)).strip("\ufffd")
    found = [match for match in _WORD.finditer(text) if match.start() >= len(text) // 2]
    if not found:
        return None
    before, whole = tokenizer.encode_documents([text[: found[-1].start()], text[: found[-1].end()]])
    if not before or whole[: len(before)] != before or len(whole) == len(before):
        return None  # a tokenizer that joins words
    return (eos, *before), tuple(whole[len(before) :])
