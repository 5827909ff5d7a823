"""The `tokenizers` library behind `Tokenizer`: its stable 0.x, or 1.x, which encodes some 30 times faster.

1.x (seen as 1.0.0rc3) knows only `from_file`, `encode_batch` and `decode`; what else is wanted comes from the
tokenizer.json itself. It is young, so before it encodes a training text, its ids are compared with those of a
plain implementation (golden.py), and a tokenizer that this cannot check is refused: ids that differ would
poison a data set silently. 1.x cannot share an environment with `transformers`, nor train a tokenizer; an
environment of its own for preparing data is what it is for."""

import json
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.tokenizer.golden import check


class Engine(Protocol):
    """What `Tokenizer` needs."""

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Ids of each text; `special`: with what the post-processor adds."""

    def arrays(self, texts: Sequence[str], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
        """Ids of each text without additions, [tokens]."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Text of ids; unknown ids have none."""

    def vocabulary(self) -> dict[str, int]:
        """Token → id, added tokens included."""

    def specials(self) -> frozenset[int]:
        """Ids of special tokens."""


def is_fast() -> bool:
    """Whether 1.x is installed."""
    return int(tokenizers.__version__.split(".")[0]) >= 1


def build(content: bytes, source: str, *, documents: bool = False) -> Engine:
    """The engine for a tokenizer.json; `documents`: special tokens in a text are text. `InputError` when the
    file is no tokenizer."""
    return _Fast(content, source, documents) if is_fast() else _Stable(content, source, documents)


class _Stable:
    """0.x."""

    def __init__(self, content: bytes, source: str, documents: bool) -> None:
        try:
            self._encoder = tokenizers.Tokenizer.from_buffer(content)
        except (ValueError, TypeError) as error:
            reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
            raise InputError(f"{source}: not a tokenizer.json ({reason}).") from None
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._encoder.encode_special_tokens = documents

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        return [e.ids for e in self._encoder.encode_batch_fast(list(texts), add_special_tokens=special)]

    def arrays(self, texts: Sequence[str], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
        return [np.array(ids, dtype=dtype) for ids in self.encode(texts, False)]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._encoder.decode(ids, skip_special_tokens=skip_special_tokens)

    def vocabulary(self) -> dict[str, int]:
        return self._encoder.get_vocab(with_added_tokens=True)

    def specials(self) -> frozenset[int]:
        return frozenset(i for i, token in self._encoder.get_added_tokens_decoder().items() if token.special)


class _Fast:
    """1.x; for documents checked first."""

    def __init__(self, content: bytes, source: str, documents: bool) -> None:
        try:
            self._parts: dict[str, Any] = json.loads(content)
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                file.write(content)
                file.flush()
                self._encoder: Any = tokenizers.Tokenizer.from_file(file.name)
            self._added = {token["content"]: token for token in self._parts.get("added_tokens") or ()}
            model = self._parts["model"]["vocab"]
        except Exception as error:  # the library's errors have no common type
            raise InputError(f"{source}: not a tokenizer.json ({str(error).splitlines()[0]}).") from None
        known = dict(model) if isinstance(model, dict) else {entry[0]: i for i, entry in enumerate(model)}
        self._vocabulary = {**known, **{text: token["id"] for text, token in self._added.items()}}
        self._ids = frozenset(self._vocabulary.values())
        self._documents = documents
        if documents:
            check(self._parts, lambda texts: self.encode(texts, False), source)

    def _encode(self, texts: Sequence[str], special: bool) -> Any:
        return self._encoder.encode_batch(
            list(texts), add_special_tokens=special, encode_special_tokens=self._documents,
            padding=None, truncation=None,
        )  # fmt: skip

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        return [encoding.ids for encoding in self._encode(texts, special)]

    def arrays(self, texts: Sequence[str], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
        return [encoding.ids_array.astype(dtype) for encoding in self._encode(texts, False)]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        known = [number for number in ids if number in self._ids]
        return str(self._encoder.decode(known, skip_special_tokens=skip_special_tokens))

    def vocabulary(self) -> dict[str, int]:
        return dict(self._vocabulary)

    def specials(self) -> frozenset[int]:
        return frozenset(token["id"] for token in self._added.values() if token.get("special"))
