"""Ids to text as they come, never half a character.

A byte-level token is a few bytes, and a character may span tokens (an emoji, three or four). The decoder
keeps the bytes of an unfinished character back and gives the rest; the pieces joined are exactly `decode(all
ids)`, invalid bytes included. Costs one table look-up a token, however long the text. Rejected: decoding a
growing window and comparing (quadratic when the text ends in invalid bytes, and wrong where U+FFFD is real
text); only a tokenizer whose decoder is not byte-level is read that way, since its text may depend on the
neighbours."""

import codecs
from collections.abc import Iterable
from functools import lru_cache

from stablelm.tokenizer.tokenizer import Tokenizer


@lru_cache(maxsize=1)
def byte_of_symbol() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other 68 for the code points from
    256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


class StreamDecoder:
    """Decodes one text: `push` ids in order, `flush` at the end."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._seen: list[int] = []
        self._given = 0

    def push(self, ids: int | Iterable[int]) -> str:
        """The text that these ids complete; an unfinished character waits for the next push."""
        ids = [ids] if isinstance(ids, int) else list(ids)
        if self._tokenizer.is_byte_level:
            return self._utf8.decode(b"".join(self._bytes(i) for i in ids if i not in self._skipped))
        self._seen += [i for i in ids if i not in self._skipped]
        return self._give(self._tokenizer.decode(self._seen).rstrip("\ufffd"))

    def flush(self) -> str:
        """What is still held back: an unfinished character becomes U+FFFD, as in `decode`. Ready for the next
        text."""
        rest = self._utf8.decode(b"", final=True)
        if self._seen:
            rest = self._give(self._tokenizer.decode(self._seen))
        self._seen, self._given = [], 0
        return rest

    def _give(self, text: str) -> str:
        start, self._given = self._given, max(self._given, len(text))
        return text[start:]

    def _bytes(self, number: int) -> bytes:
        token = self._tokenizer.id_to_token(number) or ""
        table = byte_of_symbol()
        try:
            return bytes(table[symbol] for symbol in token)
        except KeyError:  # an added token such as a run of spaces: spelt as itself, not in the byte alphabet
            return token.encode()
