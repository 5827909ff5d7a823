"""Byte-level BPE written out plainly, to check a fast engine's ids on texts that have what goes wrong.

The scheme of GPT-2 and GPT-NeoX: NFC, added tokens that are not special (runs of spaces) cut out first, the
longest at each place, GPT-2's pattern, bytes as symbols, merges by rank. `\\p{L}` and `\\p{N}` are
approximated, rightly for the letters and digits of the texts here; so this is a check, not a tokenizer."""

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from stablelm.config import InputError

_PATTERN = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
TEXTS = (
    "Hello world",
    "The quick brown fox jumps over the lazy dog. It's, they're, we'll, I'd, DON'T 'tis",
    "   x\n\n    def f(a, b=1):\n        return a_b ** 2  # so\n\tx\r\n\r\n",
    " " * 30 + "end" + " " * 2 + "\n" + " " * 25 + "\t  \t" + " " * 24,
    "1234567890 3.14159 1,000,000 v2.0.1 0x7f",
    "\u00e9 e\u0301 \u00c5 \u0041\u030a na\u00efve \u1e9b\u0323 \uac00 \u1100\u1161",
    "a<|endoftext|>b <|padding|> <|endoftext|>",
    "漢字かな交じり文、日本語。한국어 Русский язык ελληνικά עברית العربية हिन्दी ไทย",
    "🙂🙃 👩‍👩‍👧 🇩🇪 … — “quotes” ‘single’ €100 ±½",
    "<div class=\"a\">&amp;</div> {\"k\": [1, 2]} \\frac{a}{b} $x_{i}^2$ http://a.org/b?c=d#e",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa============================------",
    "\u00a0\u2003\u200b\ufeff\x00\x7f",
    "x",
    "",
)  # fmt: skip


def check(parts: dict[str, Any], encode: Callable[[Sequence[str]], list[list[int]]], source: str) -> None:
    """Compares an engine's ids of training texts with those of the plain way; `InputError` for a tokenizer of
    another scheme, and when a text's ids differ."""
    plain = Plain(parts, source)
    for text, ids in zip(TEXTS, encode(TEXTS), strict=True):
        if ids != plain.ids(text):
            raise InputError(
                f"{source}: the installed tokenizers library gives other ids than byte-level BPE does, for "
                f"{text!r}. Do not prepare data with it: pip install 'tokenizers<1'."
            )


class Plain:
    """A tokenizer.json of the scheme, parsed."""

    def __init__(self, parts: dict[str, Any], source: str) -> None:
        model, cut, normal = (parts.get(key) or {} for key in ("model", "pre_tokenizer", "normalizer"))
        added = [token for token in parts.get("added_tokens") or () if not token.get("special")]
        fits = (
            model.get("type", "BPE") == "BPE"
            and not any(model.get(key) for key in ("dropout", "unk_token", "byte_fallback", "ignore_merges"))
            and not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
            and (cut.get("type"), cut.get("add_prefix_space")) == ("ByteLevel", False)
            and cut.get("use_regex", True)
            and normal.get("type", "NFC") == "NFC"
            and all(token.get("normalized") for token in added)
            and not any(token.get(key) for token in added for key in ("lstrip", "rstrip", "single_word"))
        )
        if not fits:
            raise InputError(
                f"{source}: not a tokenizer of GPT-NeoX's scheme, the only one whose ids are checked with "
                "tokenizers 1.x. Install the stable library: pip install 'tokenizers<1'."
            )
        self._normal = bool(normal)
        self._vocab: dict[str, int] = model["vocab"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(pairs)}
        self._added = {token["content"]: int(token["id"]) for token in added}
        longest = sorted(self._added, key=len, reverse=True)
        self._cut = re.compile("|".join(map(re.escape, longest))) if longest else None

    def ids(self, text: str) -> list[int]:
        """Ids of a training text."""
        text = unicodedata.normalize("NFC", text) if self._normal else text
        found: list[int] = []
        place = 0
        for match in self._cut.finditer(text) if self._cut else ():
            found += self._between(text[place : match.start()])
            found.append(self._added[match[0]])
            place = match.end()
        return found + self._between(text[place:])

    def _between(self, text: str) -> list[int]:
        symbol = symbols()
        return [
            self._vocab[part]
            for word in _PATTERN.findall(text)
            for part in self._merge([symbol[byte] for byte in word.encode()])
        ]

    def _merge(self, parts: list[str]) -> list[str]:
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in itertools.pairwise(parts)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            merged: list[str] = []
            place = 0
            while place < len(parts):
                both = place < len(ranks) and ranks[place] == best
                merged.append("".join(parts[place : place + 1 + both]))
                place += 1 + both
            parts = merged
        return parts


def symbols() -> list[str]:
    """GPT-2's alphabet: the symbol of each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}
    return [table[byte] for byte in range(256)]
