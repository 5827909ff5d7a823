"""Which documents of a prepared directory contain a text.

The text is looked for in what the documents say, not in their tokens: how a text is cut into tokens depends
on what stands around it. Each token's bytes are copied from a table, some 4 MB of tokens at a time, and the
bytes searched; 0.18 GB of text a second on one core (223 MB, few hits). Exact for every byte-level tokenizer;
with another one, whose text may depend on neighbours, each document is decoded for itself, slowly. The text
passes the tokenizer's normalizer (NFC, for GPT-NeoX's) as the documents did. An end-of-document token is no
text. Rejected: looking for the tokens in the middle of the text (misses where a merge reaches over a word's
edge, and finds nothing in text without words)."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.data.manifest import SIDES, Dataset
from stablelm.data.token_files import TokenFile
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.streaming import byte_of_symbol

_CHUNK = 1 << 20  # tokens
_NOT_TEXT = b"\xff"  # occurs in no UTF-8


@dataclass(frozen=True)
class Found:
    """A document that contains the text."""

    source: str
    side: str
    """train, or held_out (which no run trains on)."""
    document: int
    """Its number in the token file."""
    id: str
    """Where it came from."""
    file: str
    """The token files' common name."""
    shard: str
    """The .bin file that holds the document."""
    place: int
    """Its number in that file."""
    times: int
    """How often the text occurs, not counting overlaps."""
    character: int
    """Characters of the document before the first occurrence."""
    tokens: tuple[int, int]
    """First token of the first occurrence in the document, and one past its last; the whole document where
    tokens have no bytes of their own."""
    snippet: str
    """The first occurrence with what stands around it."""


def find(
    dataset: Dataset, text: str, *, sources: Iterable[str] | None = None, limit: int | None = None
) -> list[Found]:
    """The documents with `text` in them, source by source, in the order of the token files; at most `limit`.

    `InputError` for an empty text and a source that is not there."""
    if not text:
        raise InputError("an empty text is in every document; give some characters to look for.")
    names = list(dataset.sources if sources is None else sources)
    for name in names:
        dataset.info(name)
    spelling = _Spelling(Tokenizer.from_file(dataset.tokenizer_path))
    found = list(itertools.islice(_find(dataset, spelling, text, names), limit))
    for name, side in {(each.source, each.side) for each in found}:  # each list of ids is read once
        mine = [each for each in found if (each.source, each.side) == (name, side)]
        ids = dataset.document_ids(name, [each.document for each in mine], side)
        found = [replace(e, id=ids[e.document]) if e in mine else e for e in found]
    return found


def _find(dataset: Dataset, spelling: "_Spelling", text: str, names: list[str]) -> Iterator[Found]:
    needle = spelling.normal(text).encode()
    for name, side in itertools.product(names, SIDES):
        file = dataset.train(name) if side == "train" else dataset.held_out(name)
        for document, times, at, places, content in _in_file(file, spelling, needle) if file else ():
            assert file is not None
            shard, place = file.within(document)
            before, stop = content[:at].decode(errors="replace"), at + len(needle)
            after = content[stop : stop + 160].decode(errors="ignore")
            yield Found(
                source=name,
                side=side,
                document=document,
                id="",
                file=str(dataset.path / name / side),
                shard=shard,
                place=place,
                times=times,
                character=len(before),
                tokens=(
                    int(np.searchsorted(places, at, side="right")),
                    int(np.searchsorted(places, stop, side="left")) + 1,
                )
                if spelling.exact
                else (0, len(places)),
                snippet=before[-40:] + needle.decode() + after[:40],
            )


def _in_file(
    file: TokenFile, spelling: "_Spelling", needle: bytes
) -> Iterator[tuple[int, int, int, NDArray[np.int64], bytes]]:
    """(document, occurrences, first byte, where each token's bytes end, the document's bytes)."""
    document = 0
    while document < file.num_documents:
        start = file.document_start(document)
        if start >= file.num_tokens:  # the empty documents at the end
            return
        last = max(document, file.document_at(min(start + _CHUNK, file.num_tokens - 1)) - 1)
        if start + _CHUNK >= file.num_tokens:
            last = file.num_documents - 1
        many = last > document and spelling.exact
        if many and needle not in spelling.of(_ids(file, document, last))[0]:
            document = last + 1
            continue
        for number in range(document, last + 1):
            if file.sizes[number] == 0:
                continue
            content, places = spelling.of(file.document(number))
            if (at := content.find(needle)) >= 0:
                yield number, content.count(needle), at, places, content
        document = last + 1


def _ids(file: TokenFile, first: int, last: int) -> NDArray[Any]:
    start = file.document_start(first)
    return file.tokens(start, file.document_start(last) + int(file.sizes[last]) - start)


class _Spelling:
    """The bytes of token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.exact = tokenizer.is_byte_level
        """Whether the bytes of a text are those of its tokens."""

    def normal(self, text: str) -> str:
        """A text as the documents would have it."""
        ids = self._tokenizer.encode_documents([text])[0]
        return self._tokenizer.decode(ids) if self.exact else text

    def of(self, ids: NDArray[Any]) -> tuple[bytes, NDArray[np.int64]]:
        """The bytes, and where each token's end."""
        if not self.exact:
            return self._by_decoding(ids.tolist())
        from stablelm.kernels.spelling import spell

        places = np.empty(len(ids), dtype=np.int64)
        table, ends = self._table
        return spell(ids, ends, table, places).tobytes(), places

    def _by_decoding(self, ids: list[int]) -> tuple[bytes, NDArray[np.int64]]:
        text = self._tokenizer.decode(ids, skip_special_tokens=True).encode()
        return text, np.full(len(ids), len(text), dtype=np.int64)

    @cached_property
    def _table(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        symbols, pieces = byte_of_symbol(), []
        for number in range(self._tokenizer.size):
            token = self._tokenizer.id_to_token(number) or ""
            if number in self._tokenizer.special_ids:
                pieces.append(_NOT_TEXT)
            elif all(symbol in symbols for symbol in token):
                pieces.append(bytes(symbols[symbol] for symbol in token))
            else:  # an added token, spelt as itself
                pieces.append(token.encode())
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        return np.frombuffer(b"".join(pieces), dtype=np.uint8), ends
