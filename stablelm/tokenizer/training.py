"""Trains a tokenizer by the recipe of GPT-NeoX-20B (Black et al., 2022): NFC, byte-level BPE, runs of spaces.

Ids: <|endoftext|> 0, <|padding|> 1, the 256 byte symbols, the merges, then runs of 24 down to 2 spaces. The
file has the same parts as the released one. The same texts give the same bytes. Text is streamed; 60 MB of
source code to 8,192 ids took 14 s and 260 MB on two cores. Rejected: filling up with unused ids when the text
yields too few merges (ids that never occur)."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from stablelm.config import InputError
from stablelm.storage import atomic_directory, refuse_existing
from stablelm.tokenizer.tokenizer import END_OF_TEXT, PADDING, Tokenizer, refuse_surrogates

SPACE_RUNS = [" " * length for length in range(24, 1, -1)]
SMALLEST = 2 + 256 + len(SPACE_RUNS)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    out: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` ids; with `out`, also written to that new directory.

    `progress(n)` is called with the number of texts read. `InputError` for fewer than 281 ids, and when no
    pair of symbols occurs twice any more before the size is reached: the message says how many ids the text
    supports."""
    if vocab_size < SMALLEST:
        raise InputError(
            f"vocab_size {vocab_size} is too small: 2 special tokens, 256 bytes and {len(SPACE_RUNS)} runs "
            f"of spaces make {SMALLEST} ids before the first merge."
        )
    if out is not None:
        refuse_existing(Path(out))
    try:
        from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers
        from tokenizers import Tokenizer as Encoder
    except ImportError:  # 1.x only encodes
        raise InputError(
            "training a tokenizer needs the stable library: pip install 'tokenizers<1'."
        ) from None
    encoder = Encoder(models.BPE())
    encoder.normalizer = normalizers.NFC()
    # A run of spaces never reaches BPE when text is encoded (the added tokens are cut out first), so merges
    # learnt across or inside one would be ids that cannot occur: GPT-NeoX-20B has over 200 of them. Cut in
    # the same way here.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = pre_tokenizers.Split(Regex(f" {{2,{len(SPACE_RUNS[0])}}}"), "removed")
    encoder.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPACE_RUNS),
        min_frequency=2,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    encoder.train_from_iterator(_checked(texts, progress), trainer)
    supported = encoder.get_vocab_size() + len(SPACE_RUNS)
    if supported < vocab_size:
        raise InputError(
            f"the text is too small for vocab_size {vocab_size:,}: it supports {supported:,} ids. "
            "Give more text, or ask for at most that many."
        )
    encoder.add_tokens([AddedToken(run, normalized=True, special=False) for run in SPACE_RUNS])
    encoder.pre_tokenizer = byte_level
    encoder.post_processor = processors.ByteLevel(add_prefix_space=False)
    parts = json.loads(encoder.to_str())
    parts["decoder"] = parts[
        "post_processor"
    ]  # as in the released file; the constructor cannot say add_prefix_space
    content = json.dumps(parts, indent=2, ensure_ascii=False).encode() + b"\n"
    tokenizer = Tokenizer(content, "a trained tokenizer")
    if out is not None:
        with atomic_directory(out) as aside:
            tokenizer.save(aside)
        tokenizer.source = str(Path(out) / "tokenizer.json")
    return tokenizer


def _checked(texts: Iterable[str], progress: Callable[[int], None] | None) -> Iterator[str]:
    for number, text in enumerate(texts):
        refuse_surrogates(text, number)
        yield text
        if progress is not None:
            progress(number + 1)
