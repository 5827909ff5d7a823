"""A tokenizer.json as GGUF metadata, and back.

llama.cpp knows byte-level BPE with a handful of regular expressions, each under a name: GPT-2's is "olmo"
here (what its own converter writes for GPT-NeoX's vocabulary; "mpt" and "gpt-2" are the same), StableLM 2's
is "stablelm2". A tokenizer that it cannot represent is refused rather than written wrong. It knows no
normalization: text that is not NFC gets other ids there than here.

The tokenizer.json itself goes along, byte for byte, under `tokenizer.huggingface.json`, a key of the GGUF
specification that llama.cpp skips; other tools' files have none, and theirs is rebuilt from the
vocabulary."""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import pre_tokenizers

from stablelm.config import InputError, ModelConfig
from stablelm.interchange.gguf_header import Header
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.tokenizer import END_OF_TEXT, PADDING

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_JSON = "tokenizer.huggingface.json"
_STABLELM_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_GPT_2_NAMES = ("olmo", "mpt", "gpt-2", "default", "")
"""The last two are files from before llama.cpp had names."""
_ARCADE_END = 100_257
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tokenizer_metadata(tokenizer: Tokenizer | None, config: ModelConfig) -> dict[str, Any]:
    """The entries that make llama.cpp tokenize as `tokenizer` does, ids up to the model's padded vocabulary
    included; `InputError` says what llama.cpp could not represent."""
    ids = {
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
    }
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab", "stablelm.vocab_size": config.vocab_size, **ids}
    content = json.loads(tokenizer.content)
    model = content["model"]
    refuse = _refusal(tokenizer)
    name = _pre_tokenizer_name(content, refuse)
    for key in (
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "dropout",
        "byte_fallback",
        "ignore_merges",
    ):
        if model.get(key):
            raise refuse(f"the BPE setting {key} = {model[key]!r}")
    if not model["merges"]:
        raise refuse("a vocabulary without merges")
    if tokenizer.encode("a b") != tokenizer.encode("a b", add_special_tokens=False):
        raise refuse("a post-processor that adds tokens to every text")
    tokens = [f"[PAD{number}]" for number in range(config.vocab_size)]
    types = [UNUSED] * config.vocab_size
    numbers = tokenizer.vocab
    for token, number in numbers.items():
        tokens[number], types[number] = token, NORMAL
    for added in content["added_tokens"]:
        for key in ("lstrip", "rstrip", "single_word"):
            if added.get(key):
                raise refuse(f"the added token {added['content']!r} with {key}")
        types[numbers[added["content"]]] = CONTROL if added["special"] else USER_DEFINED
    if len(set(tokens)) < len(tokens):
        raise refuse("a token that is spelled like the [PAD…] of an unused id")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        **ids,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        _JSON: tokenizer.content.decode(),
    }


def _refusal(tokenizer: Tokenizer) -> Any:
    def refuse(what: str) -> InputError:
        return InputError(
            f"{tokenizer.source}: llama.cpp cannot represent {what}; it would tokenize otherwise than here. "
            "Save the model without its tokenizer, or with one like GPT-NeoX's."
        )

    return refuse


def _pre_tokenizer_name(content: Mapping[str, Any], refuse: Any) -> str:
    if content["model"].get("type") != "BPE":
        raise refuse(f"a {content['model'].get('type')} model")
    if (normalizer := content.get("normalizer")) not in (None, {"type": "NFC"}):
        raise refuse(f"the normalizer {normalizer}")
    if (content.get("decoder") or {}).get("type") != "ByteLevel":
        raise refuse("a tokenizer that is not byte-level")
    found = content.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", []) if found.get("type") == "Sequence" else [found]
    last = steps[-1] if steps else {}
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if len(steps) == 1 and last.get("use_regex", True):
            return "olmo"
        first = steps[0]
        if (
            len(steps) == 2
            and not last.get("use_regex", True)
            and first.get("type") == "Split"
            and first.get("pattern") == {"Regex": _STABLELM_2}
            # what lies between matches: the expression leaves nothing, so these are all the same
            and (first.get("behavior"), bool(first.get("invert"))) in (("Isolated", False), ("Removed", True))
        ):
            return "stablelm2"
    raise refuse(f"the pre-tokenizer {json.dumps(found)[:200]}")


def read_tokenizer(header: Header, rows: int) -> Tokenizer | None:
    """The tokenizer of a file whose embedding has `rows` rows; None when it was written without one."""
    kind = header.text("tokenizer.ggml.model", "no_vocab")
    if kind in ("no_vocab", "none"):
        return None
    if kind != "gpt2":
        raise InputError(f"{header.path}: its tokenizer is {kind!r}; StableLM's is byte-level BPE ('gpt2').")
    tokens = header.texts("tokenizer.ggml.tokens")
    if len(tokens) > rows:
        raise header.broken(f"{len(tokens):,} tokens are more than the embedding's {rows:,} rows")
    named = {"eos_token": "tokenizer.ggml.eos_token_id", "pad_token": "tokenizer.ggml.padding_token_id"}
    ids = {token: header.integer(key, len(tokens)) for token, key in named.items()}
    settings = {token: tokens[number] for token, number in ids.items() if 0 <= number < len(tokens)}
    special = set(settings.values())
    if template := header.text("tokenizer.chat_template", ""):
        settings["chat_template"] = template
    if content := header.text(_JSON, ""):
        tokenizer = Tokenizer(content.encode(), f"{header.path} ({_JSON})", settings)
        wrong = [
            (text, number)
            for text, number in tokenizer.vocab.items()
            if tokens[number : number + 1] != [text]
        ]
        if wrong:
            token, number = wrong[0]
            raise InputError(
                f"{header.path}: {_JSON} says that id {number} is {token!r}, tokenizer.ggml.tokens says "
                "otherwise. One of the two was changed; convert the model again."
            )
        return tokenizer
    rebuilt = _rebuild(header, tokens, special)
    return Tokenizer(json.dumps(rebuilt, ensure_ascii=False).encode(), str(header.path), settings)


def _rebuild(header: Header, tokens: list[str], special: set[str]) -> dict[str, Any]:
    """A tokenizer.json with the same ids; with NFC, of which GGUF says nothing, for the two kinds that
    released models have: a vocabulary of GPT-NeoX's form, and one cut as StableLM 2's arcade100k."""
    types = [NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in header.values:
        types = header.numbers("tokenizer.ggml.token_type").tolist()
        if len(types) != len(tokens):
            raise header.broken(f"{len(types):,} token types for {len(tokens):,} tokens")
    neox = tokens[:2] == [END_OF_TEXT, PADDING] and "  " in tokens
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    special |= {END_OF_TEXT, PADDING}
    vocabulary: dict[str, int] = {}
    added = []
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == UNUSED or token == f"[PAD{number}]" or not token:
            continue
        if token in vocabulary:
            raise header.broken(f"the token {token!r} has the ids {vocabulary[token]} and {number}")
        vocabulary[token] = number
        control = kind == CONTROL or token in special
        # No merge makes a token with a space in it: old converters called runs of spaces normal tokens.
        if control or kind == USER_DEFINED or not alphabet.issuperset(token):
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            added.append(
                {"id": number, "content": token, **flags, "normalized": not control, "special": control}
            )
    merges = [
        (merge[:1] + merge[1:].split(" ", 1)[0], merge[1:].partition(" ")[2])
        for merge in header.texts("tokenizer.ggml.merges")
    ]
    cut = _pre_tokenizer(header, tokens, neox)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if neox or cut != _BYTE_LEVEL else None,
        "pre_tokenizer": cut,
        "post_processor": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _pre_tokenizer(header: Header, tokens: list[str], neox: bool) -> dict[str, Any]:
    name = header.text("tokenizer.ggml.pre", "")
    arcade = tokens[_ARCADE_END : _ARCADE_END + 1] == [END_OF_TEXT]
    if name == "stablelm2" or (name in ("default", "") and arcade):
        split = {"type": "Split", "pattern": {"Regex": _STABLELM_2}, "behavior": "Isolated", "invert": False}
        return {"type": "Sequence", "pretokenizers": [split, {**_BYTE_LEVEL, "use_regex": False}]}
    if name in _GPT_2_NAMES[:3] or (name in _GPT_2_NAMES and neox):
        return _BYTE_LEVEL
    known = ", ".join(("stablelm2", *_GPT_2_NAMES[:3]))
    raise InputError(
        f"{header.path}: tokenizer.ggml.pre {name!r} names no way of cutting text that is known here "
        f"({known}). Convert the model with its tokenizer.json beside it."
    )
