"""Fill-in-the-middle: a document is cut in three and its middle moved to the end (Bavarian et al., 2022).

    PSM   <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle
    SPM   <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle

SPM is the paper's form for a model that learns both, where the middle follows the prefix without a token
between them. Cuts fall between any two characters, with equal chance, and each part is encoded alone: so are
prefix and suffix when the model is asked. Everything that is drawn is a hash of (seed, document): the same
whoever reads it, in whatever order.

The four tokens are those of StarCoder and stable-code-3b. A tokenizer that lacks them gets them behind its
last id (50,277 to 50,280 for GPT-NeoX's), which a padded vocabulary has room for. Rejected: cutting windows
instead of documents (the paper's context level: a window is known only to the run, and would be cut anew in
each epoch); the tokens' texts in a prompt (a program that mentions one would be torn)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.adaptation import InfillingConfig
from stablelm.storage import keyed_uint64
from stablelm.tokenizer.tokenizer import Tokenizer

PREFIX, MIDDLE, SUFFIX, PAD = "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"
TOKENS = (PREFIX, MIDDLE, SUFFIX, PAD)
FILL = "<FILL>"
"""What a prompt says where text is to be written."""


@dataclass(frozen=True)
class Marks:
    """The ids that tell the parts apart."""

    prefix: int
    middle: int
    suffix: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Marks":
        """Those of a tokenizer; `InputError` when it lacks one."""
        ids = []
        for token in (PREFIX, MIDDLE, SUFFIX):
            number = tokenizer.token_to_id(token)
            if number is None or number not in tokenizer.special_ids:
                raise InputError(
                    f"{tokenizer.source}: has no special token {token}, so its model was not taught to fill "
                    "in. Train one with `fim` (docs/adaptation.md), or take one that was, as stable-code-3b."
                )
            ids.append(number)
        return cls(*ids)

    def arranged(self, prefix: list[int], middle: list[int], suffix: list[int], spm: bool) -> list[int]:
        """The parts in the order that is learnt; with an empty middle, what a model is asked."""
        if spm:
            return [self.prefix, self.suffix, *suffix, self.middle, *prefix, *middle]
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle, *middle]


def with_infilling(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the four tokens, which follow its last id where they are missing; itself where it
    has them. `InputError` when one is an ordinary word of it."""
    missing = []
    for token in TOKENS:
        number = tokenizer.token_to_id(token)
        if number is None:
            missing.append(token)
        elif number not in tokenizer.special_ids:
            raise InputError(
                f"{tokenizer.source}: {token} is an ordinary token there (id {number:,}), which any text may "
                "hold; it cannot mark where a document was cut. Use another tokenizer."
            )
    if not missing:
        return tokenizer
    parts: dict[str, Any] = json.loads(tokenizer.content)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added: list[dict[str, Any]] = [
        {"id": tokenizer.size + place, "content": token, **flags, "special": True}
        for place, token in enumerate(missing)
    ]
    parts["added_tokens"] = [*(parts.get("added_tokens") or ()), *added]
    made = tokenizer.with_content(json.dumps(parts, indent=2, ensure_ascii=False).encode())
    wrong = [entry["content"] for entry in added if made.token_to_id(entry["content"]) != entry["id"]]
    if wrong:  # the library numbers by itself where a vocabulary has holes
        raise InputError(f"{tokenizer.source}: its ids have gaps, so {wrong[0]} finds no id behind them.")
    return made


def added_by(before: Tokenizer, after: Tokenizer) -> str:
    """The tokens that one has and the other had not, with their ids, for a reader; empty where none."""
    new = [token for token in TOKENS if token in after.vocab and token not in before.vocab]
    return ", ".join(f"{token} {after.token_to_id(token)}" for token in new)


class Infilling:
    """Which documents are rearranged, where they are cut, and how."""

    def __init__(self, settings: InfillingConfig, seed: int, marks: Marks) -> None:
        self.settings, self.seed, self.marks = settings, seed, marks

    def parts(self, text: str, *key: str) -> list[str]:
        """The text whole, or its prefix, middle and suffix; `key` names the document."""
        if not self._below(self.settings.rate, "chosen", key):
            return [text]
        places = len(text) + 1
        first, last = sorted(self._draw(cut, key) % places for cut in ("first", "last"))
        return [text[:first], text[first:last], text[last:]]

    def arranged(self, parts: Sequence[NDArray[Any]], *key: str) -> NDArray[Any]:
        """The ids of `parts`, [tokens] each → those of the document, [tokens]."""
        if len(parts) == 1:
            return parts[0]
        prefix, middle, suffix = (part.tolist() for part in parts)
        return np.array(self.marks.arranged(prefix, middle, suffix, self.is_spm(*key)), dtype=parts[0].dtype)

    def is_spm(self, *key: str) -> bool:
        """Whether a rearranged document's suffix comes first."""
        return self._below(self.settings.spm_rate, "spm", key)

    def _below(self, share: float, what: str, key: tuple[str, ...]) -> bool:
        return self._draw(what, key) < int(share * 2**64)

    def _draw(self, what: str, key: tuple[str, ...]) -> int:
        return keyed_uint64("fim", self.seed, what, *key)


class InfillingTokenizer(Tokenizer):
    """A tokenizer whose prompts say `<FILL>` where the model is to write."""

    def __init__(self, tokenizer: Tokenizer, *, spm: bool = False) -> None:
        """`spm`: ask in the second form. `InputError` for a tokenizer without the tokens."""
        super().__init__(tokenizer.content, tokenizer.source, tokenizer._settings)
        self._marks, self._spm = Marks.of(tokenizer), spm

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids that ask for what belongs where the mark is; everything else in the text is text."""
        prefix, suffix = around(text)
        before, after = self.encode_documents([prefix, suffix])
        return self._marks.arranged(before, [], after, self._spm)


def around(text: str) -> tuple[str, str]:
    """What is before the mark and what is after it; `InputError` unless there is exactly one."""
    parts = text.split(FILL)
    if len(parts) != 2:
        raise InputError(
            f"the prompt has {len(parts) - 1} marks {FILL}; it wants one, where text is to be written."
        )
    return parts[0], parts[1]
