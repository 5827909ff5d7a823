"""Pieces of a stream: whole characters only, and together exactly what `decode` gives."""

import json
import time
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from stablelm.tokenizer import StreamDecoder, Tokenizer
from stablelm.tokenizer.streaming import byte_of_symbol


@lru_cache
def bytes_tokenizer() -> Tokenizer:
    """Every byte and a few longer pieces, so that random ids are mostly invalid UTF-8."""
    symbols = sorted(byte_of_symbol())
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    merges = [(symbols[n], symbols[n + 7]) for n in range(0, 240, 3)]
    vocab |= {a + b: len(vocab) + n for n, (a, b) in enumerate(merges)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    backend.add_tokens(["   ", "→x", "\u3000é"])
    return Tokenizer(backend.to_str().encode(), "bytes")


@pytest.fixture(scope="module")
def neox(shared: Path) -> Tokenizer:
    return Tokenizer.from_file(shared / "data" / "neox-tokenizer" / "tokenizer.json")


def streamed(tokenizer: Tokenizer, chunks, *, skip: bool = False) -> str:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    return "".join([decoder.push(chunk) for chunk in chunks]) + decoder.flush()


def test_the_alphabet_has_every_byte_once() -> None:
    assert sorted(byte_of_symbol().values()) == list(range(256))
    assert byte_of_symbol()["Ġ"] == 0x20
    assert byte_of_symbol()["Ċ"] == 0x0A
    assert byte_of_symbol()["!"] == 0x21


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(st.integers(0, 345), max_size=4), max_size=12), st.booleans())
def test_pieces_of_random_bytes_join_to_the_decoded_text(chunks: list[list[int]], skip: bool) -> None:
    tokenizer = bytes_tokenizer()
    ids = [number for chunk in chunks for number in chunk]
    assert streamed(tokenizer, chunks, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 50_303), max_size=40), skip=st.booleans())
def test_pieces_of_random_ids_join_to_the_decoded_text(neox: Tokenizer, ids: list[int], skip: bool) -> None:
    assert streamed(neox, ids, skip=skip) == neox.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_no_piece_of_a_text_holds_half_a_character(neox: Tokenizer, text: str) -> None:
    decoder = StreamDecoder(neox)
    pieces = [decoder.push(number) for number in neox.encode(text)]
    assert decoder.flush() == ""
    assert "".join(pieces) == neox.decode(neox.encode(text))
    assert (
        sum(piece.count("\ufffd") for piece in pieces)
        == "".join(pieces).count("\ufffd")
        == text.count("\ufffd")
    )


def test_a_character_waits_for_its_last_byte(neox: Tokenizer) -> None:
    ids = neox.encode("🦕x")
    assert len(ids) > 3, "the example must span tokens"
    decoder = StreamDecoder(neox)
    pieces = [decoder.push(number) for number in ids]
    assert pieces == [*[""] * (len(ids) - 2), "🦕", "x"]
    assert decoder.flush() == ""


def test_a_real_text_in_pieces(neox: Tokenizer) -> None:
    text = Path(json.__file__).read_text(encoding="utf-8") + "naïve façade — 東京 🙂🏽\r\n\t\u2028"
    assert streamed(neox, neox.encode(text)) == text


def test_an_unfinished_end_becomes_what_decode_gives(neox: Tokenizer) -> None:
    ids = neox.encode("a 🦕")[:-1]
    decoder = StreamDecoder(neox)
    given_now = "".join(decoder.push(number) for number in ids)
    assert given_now == "a "
    assert decoder.flush() == "\ufffd"
    assert given_now + "\ufffd" == neox.decode(ids)
    assert decoder.push(neox.encode("next")) == "next", "ready for another text"


def test_special_tokens_are_left_out_on_request(neox: Tokenizer) -> None:
    assert streamed(neox, [66, 0, 67]) == "a<|endoftext|>b"
    assert streamed(neox, [66, 0, 67], skip=True) == "ab"


def test_the_cost_does_not_grow_with_the_text(neox: Tokenizer) -> None:
    broken = neox.encode("🦕")[
        0
    ]  # never a whole character: a decoder that re-reads its window would never finish
    decoder = StreamDecoder(neox)
    start = time.perf_counter()
    text = "".join([decoder.push(broken) for _ in range(200_000)]) + decoder.flush()
    assert time.perf_counter() - start < 10
    assert text == neox.decode([broken] * 200_000)


@pytest.mark.parametrize("decoder", [decoders.Metaspace(), decoders.WordPiece(), decoders.Fuse(), None])
def test_other_decoders_join_to_the_decoded_text_as_well(decoder) -> None:
    words = {"▁a": 0, "▁b": 1, "##c": 2, "é": 3, "d": 4}
    backend = Backend(models.WordLevel(words, unk_token="d"))
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = Tokenizer(backend.to_str().encode(), "words")
    assert not tokenizer.is_byte_level
    for ids in ([0, 1, 3], [3, 0], [4, 2, 2, 1], []):
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_byte_fallback_tokens_wait_for_their_character() -> None:
    emoji = "🦕".encode()
    vocab = {f"<0x{byte:02X}>": number for number, byte in enumerate(emoji)} | {"x": 4}
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer(backend.to_str().encode(), "fallback")
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(number) for number in (4, 0, 1, 2, 3, 4)] == ["x", "", "", "", "🦕", "x"]
    assert decoder.flush() == ""
