"""Examples as the model will read them: every token, those that are trained apart from the others.

In a terminal trained tokens are green and the others grey, neighbours in two shades, so that one sees where
tokens end; elsewhere trained stretches stand between ⟦ and ⟧. Control characters of a text are shown as
escapes, never sent to the terminal."""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np

from stablelm.finetuning.data import TuningData
from stablelm.finetuning.examples import Example
from stablelm.finetuning.pairs import Pair
from stablelm.tokenizer import Tokenizer

_SHADES = {True: ("\x1b[1;32m", "\x1b[32m"), False: ("\x1b[37m", "\x1b[90m")}
_PLAIN = "\x1b[0m"


def preview(data: TuningData, count: int, *, colour: bool) -> Iterator[str]:
    """Lines about the first `count` trained examples, each of which may hold line ends."""
    for example in data.train[:count]:
        if isinstance(example, Pair):
            yield from _pair(example, data.tokenizer, colour)
            continue
        yield f"{example.where}: {len(example.ids):,} tokens, {example.trained:,} trained"
        yield shown(example, data.tokenizer, colour=colour)
    yield from data.describe()


def _pair(pair: Pair, tokenizer: Tokenizer, colour: bool) -> Iterator[str]:
    names = ("chosen", "rejected") if pair.second else ("wanted" if pair.wanted else "unwanted",)
    for name, side in zip(names, pair.sides, strict=True):
        yield f"{pair.where}, {name}: {len(side.ids):,} tokens, {side.trained:,} of them the answer's"
        yield shown(side, tokenizer, colour=colour)


def shown(example: Example, tokenizer: Tokenizer, *, colour: bool) -> str:
    """The tokens of an example as text."""
    pieces = list(_pieces(example, tokenizer))
    if not colour:
        runs = [
            (trained, "".join(text for text, _ in run)) for trained, run in groupby(pieces, itemgetter(1))
        ]
        return "".join(f"⟦{text}⟧" if trained else text for trained, text in runs)
    parts = []
    for number, (text, trained) in enumerate(pieces):
        shade = _SHADES[trained][number % 2]
        parts.append("\n".join(f"{shade}{line}{_PLAIN}" if line else "" for line in text.split("\n")))
    return "".join(parts)


def _pieces(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Text and kind of each token; tokens that share a character are one piece."""
    ids = np.where(example.ids < 0, ~example.ids, example.ids).tolist()
    held: list[int] = []
    for place, number in enumerate(ids):
        held.append(number)
        text = tokenizer.decode(held)
        last = place == len(ids) - 1 or (example.ids[place] < 0) != (example.ids[place + 1] < 0)
        if text.endswith("\ufffd") and not last:
            continue
        yield _printable(text), bool(example.ids[place] >= 0)
        held = []


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t " else repr(c)[1:-1] for c in text)
