"""Text ↔ ids by any `tokenizer.json`, through the `tokenizers` library (engine.py).

Two encoders are built from the same bytes, because special-token parsing is a setting of the whole object
there, not of a call. `encode` reads a prompt: a literal <|endoftext|> is id 0, as in `transformers`.
`encode_documents` reads training text: special tokens are off, so no document can forge a separator.
Truncation and padding that a file may carry are switched off: no text is ever cut silently. Decoding never
"cleans up" spaces, which would spoil code. Costs 0.15 s and 31 MB for 50,277 ids, and 14 MB more once
documents are encoded."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.storage import atomic_file, json_bytes, read_json
from stablelm.tokenizer.chat import default_of, read_beside
from stablelm.tokenizer.engine import Engine, build, is_fast

if TYPE_CHECKING:
    import torch

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"


class TokenBatch(dict[str, Any]):
    """What `Tokenizer.__call__` returns: unpacks with `**` into `model.generate`, keys also as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: "torch.device | str | int") -> "TokenBatch":
        """The same batch with its tensors on `device`."""
        return TokenBatch({k: v.to(device) if hasattr(v, "to") else v for k, v in self.items()})


class Tokenizer:
    """One `tokenizer.json`, kept byte for byte."""

    def __init__(self, content: bytes, source: str, settings: Mapping[str, Any] | None = None) -> None:
        """`content` is the file's bytes, `source` its name in errors, `settings` the tokenizer_config.json
        beside it."""
        self.source, self._content, self._settings = source, content, settings
        self._encoder = build(content, source)
        self._ids = self._encoder.vocabulary()
        self.size: int = max(self._ids.values(), default=-1) + 1
        """Ids are 0 … size − 1 (50,277 for GPT-NeoX); a model's vocabulary may be padded beyond."""
        self.sha256: str = hashlib.sha256(content).hexdigest()
        """Of the file's bytes: names the tokenizer in manifests."""
        self._eos_token = _named_token(settings, "eos_token") or END_OF_TEXT
        self._pad_token = _named_token(settings, "pad_token") or PADDING

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads a `tokenizer.json`, or the one in a directory. `InputError` when missing, broken or something
        else."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            if code := _tokenizer_code(path):
                raise InputError(
                    f"{path}: has no tokenizer.json; its tokenizer is code ({code}), which is never run. "
                    "Newer revisions of such a repository hold a tokenizer.json; else make one from its "
                    ".tiktoken file with `transformers.convert_slow_tokenizer.TikTokenConverter`, and put it "
                    "there."
                ) from None
            if (path / "config.json").is_file():
                raise InputError(
                    f"{path}: holds weights but no tokenizer.json. Put the one it was trained with "
                    "beside them."
                ) from None
            raise InputError(
                f"{file}: no such file. A tokenizer is a `tokenizer.json`, or a directory that holds one; "
                "`stablelm tokenizer train OUT FILES…` makes one."
            ) from None
        beside = file.with_name("tokenizer_config.json")
        settings = read_json(beside) if beside.is_file() else None
        settings = settings if isinstance(settings, dict) else None
        if (template := read_beside(file.parent)) is not None:
            settings = {**(settings or {}), "chat_template": template}
        return cls(content, str(file), settings)

    from_pretrained = from_file

    def __reduce__(self) -> tuple[Any, ...]:
        # Built anew in a worker process: a pickled encoder forgets that its special tokens are off.
        return Tokenizer, (self._content, self.source, self._settings)

    @cached_property
    def _document_encoder(self) -> Engine:
        return build(self._content, self.source, documents=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a prompt; literal special tokens in it are parsed. NeoX tokenizers add none of their own."""
        return self._encode(self._encoder, [text], add_special_tokens)[0]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each training text, special tokens off: `<|endoftext|>` in a text is seven ordinary tokens,
        never 0."""
        return self._encode(self._document_encoder, texts, False)

    def document_arrays(self, texts: Sequence[str], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
        """`encode_documents` as arrays, [tokens]; without lists on the way where the engine can (1.x)."""
        if not is_fast():
            return [np.array(ids, dtype=dtype) for ids in self.encode_documents(texts)]
        return self._document_encoder.arrays(texts, dtype)

    def _encode(self, encoder: Engine, texts: Sequence[str], special: bool) -> list[list[int]]:
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {number} is a {type(text).__name__}; a string is wanted.")
        try:
            return encoder.encode(texts, special)
        except (TypeError, UnicodeEncodeError):
            for number, text in enumerate(texts):
                refuse_surrogates(text, number)
            raise

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        return_tensors: str | None = None,
        padding: bool = False,
        padding_side: str = "left",
        add_special_tokens: bool = True,
    ) -> TokenBatch:
        """`input_ids` and `attention_mask` of one prompt or several: lists, or with "pt" int64 tensors [B,
        S].

        Prompts of unequal length need `padding=True` to become one tensor; generation wants the padding
        left."""
        if return_tensors not in (None, "pt"):
            raise InputError(
                f"return_tensors={return_tensors!r} is not supported; use 'pt', or None for lists."
            )
        if padding_side not in ("left", "right"):
            raise InputError(f"padding_side={padding_side!r} is not a side; use 'left' or 'right'.")
        rows = self._encode(self._encoder, [text] if isinstance(text, str) else text, add_special_tokens)
        masks = [[1] * len(row) for row in rows]
        width = max(map(len, rows), default=0)
        if padding:
            for row, mask in zip(rows, masks, strict=True):
                at = 0 if padding_side == "left" else len(row)
                gap = width - len(row)
                row[at:at], mask[at:at] = [self.pad_id] * gap, [0] * gap
        if return_tensors is None:
            if isinstance(text, str):
                return TokenBatch(input_ids=rows[0], attention_mask=masks[0])
            return TokenBatch(input_ids=rows, attention_mask=masks)
        if any(len(row) != width for row in rows):
            raise InputError("texts of unequal length make no tensor; pass padding=True.")
        import torch

        shape = (len(rows), width)
        return TokenBatch(
            input_ids=torch.tensor(rows, dtype=torch.int64).reshape(shape),
            attention_mask=torch.tensor(masks, dtype=torch.int64).reshape(shape),
        )

    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Text of a list, array or 1-d tensor of ids. Invalid UTF-8 becomes U+FFFD; ids ≥ `size` have no
        text."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        if any(not isinstance(i, int) for i in ids):
            raise InputError("decode wants the ids of one text; use batch_decode for several.")
        if ids and not 0 <= min(ids) <= max(ids) < 1 << 32:
            raise InputError(f"{min(ids) if min(ids) < 0 else max(ids)} is not a token id.")
        return self._encoder.decode(ids, skip_special_tokens)

    def batch_decode(self, rows: Iterable[Any], *, skip_special_tokens: bool = False) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def token_to_id(self, token: str) -> int | None:
        """The id of a token's own spelling (byte-level: a space is Ġ), or None."""
        return self._ids.get(token)

    def id_to_token(self, number: int) -> str | None:
        """The spelling of an id, or None for one that the tokenizer does not have."""
        return self._tokens.get(number)

    @cached_property
    def _tokens(self) -> dict[int, str]:
        return {number: token for token, number in self._ids.items()}

    @property
    def content(self) -> bytes:
        """The tokenizer.json, byte for byte."""
        return self._content

    @property
    def vocab(self) -> dict[str, int]:
        """A copy of the table token → id, added tokens included."""
        return dict(self._ids)

    @property
    def eos_id(self) -> int:
        """Id of the document separator, <|endoftext|> unless the tokenizer's configuration names another."""
        number = self._ids.get(self._eos_token)
        if number is None:
            raise InputError(
                f"{self.source}: has no token {self._eos_token!r}, so documents cannot be told apart. "
                "Name its separator as eos_token in a tokenizer_config.json beside it."
            )
        return number

    @property
    def pad_id(self) -> int:
        """Id of <|padding|>; a tokenizer without one pads with the separator."""
        number = self._ids.get(self._pad_token)
        return self.eos_id if number is None else number

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""
        return self._encoder.specials()

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that came with it, for `tokenizer.chat.render`; None for a base model."""
        return default_of((self._settings or {}).get("chat_template"), self.source)

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether decoding is a plain concatenation of each token's bytes (GPT-2's scheme)."""
        decoder = json.loads(self._content).get("decoder") or {}
        return isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"

    def with_chat_template(self, template: str) -> "Tokenizer":
        """The same tokenizer with another chat template."""
        return Tokenizer(self._content, self.source, {**(self._settings or {}), "chat_template": template})

    def with_content(self, content: bytes) -> "Tokenizer":
        """Another tokenizer.json with the same settings."""
        return Tokenizer(content, self.source, self._settings)

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json` byte-identical, and the two small files that `transformers` reads beside
        it."""
        for name, content in self.files().items():
            with atomic_file(Path(directory) / name) as file:
                file.write(content)

    save_pretrained = save

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by name."""
        names = {"bos_token": self._eos_token, "eos_token": self._eos_token, "unk_token": self._eos_token}
        names = {key: token for key, token in names.items() if token in self._ids}
        if self._pad_token in self._ids:
            names["pad_token"] = self._pad_token
        # PreTrainedTokenizerFast reads tokenizer.json as it is; the released GPTNeoXTokenizer, since version
        # 5 of transformers, puts its own normalizer and pre-tokenizer around the vocabulary. Clean-up is off:
        # it turns " ." into ".", also in code.
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "model_input_names": ["input_ids", "attention_mask"],
        }
        if template := (self._settings or {}).get("chat_template"):
            settings["chat_template"] = template
        return {
            "tokenizer.json": self._content,
            "special_tokens_map.json": json_bytes(names),
            "tokenizer_config.json": json_bytes(settings),
        }


def refuse_surrogates(text: str, number: int) -> None:
    """Refuses what a Python string can hold but UTF-8 cannot; JSON files bring it in as a lone \\ud83d."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text {number}, character {error.start}: {text[error.start]!a} is half of a surrogate pair, "
            "which is not text; leave it out, or replace it with U+FFFD."
        ) from None


def _tokenizer_code(folder: Path) -> str | None:
    """The file of tokenizer code (as of Stable LM 2's first revisions) that a directory holds or names."""
    if not folder.is_dir():
        return None
    beside = folder / "tokenizer_config.json"
    settings = read_json(beside) if beside.is_file() else None
    named = settings.get("auto_map") if isinstance(settings, dict) else None
    named = named.get("AutoTokenizer") if isinstance(named, dict) else None
    named = next((n for n in named if isinstance(n, str)), None) if isinstance(named, list) else named
    if isinstance(named, str):
        return f"{named.partition('.')[0]}.py"
    return next((p.name for kind in ("*.tiktoken", "tokenization_*.py") for p in folder.glob(kind)), None)


def _named_token(settings: Mapping[str, Any] | None, key: str) -> str | None:
    """A token's text in tokenizer_config.json, where it is a string or an object with `content`."""
    value = (settings or {}).get(key)
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None
