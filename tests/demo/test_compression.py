"""The yardstick beside a model's bits per byte: what the command-line compressors make of the same bytes."""

import gzip
import lzma
import random

import pytest

from stablelm.demo.compression import compressed_bits_per_byte


def test_both_give_back_the_text_they_are_measured_on(monkeypatch):
    """The sizes are those of streams that really hold all documents, in order, as UTF-8."""
    texts, streams = ["naïve → ", "", "text\n" * 100], []
    for module in (gzip, lzma):
        compress = module.compress
        monkeypatch.setattr(
            module, "compress", lambda *a, c=compress, **k: streams.append(c(*a, **k)) or streams[-1]
        )
    result = compressed_bits_per_byte(texts)
    raw = "".join(texts).encode()
    assert gzip.decompress(streams[0]) == lzma.decompress(streams[1]) == raw
    assert result == {"gzip -9": 8 * len(streams[0]) / len(raw), "xz": 8 * len(streams[1]) / len(raw)}


def test_random_bytes_cost_more_than_they_are():
    """Latin text of 256 equally likely characters: about 8 bits a character, over 1.5 bytes each."""
    text = "".join(chr(0x100 + random.Random(0).randrange(256)) for _ in range(1))
    text = "".join(chr(0x100 + c) for c in random.Random(0).randbytes(50_000))
    result = compressed_bits_per_byte([text])
    assert all(4.0 < bits < 5.2 for bits in result.values())


def test_repetition_beyond_gzips_window_is_xzs_gain():
    page = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=60_000))
    once, twice = compressed_bits_per_byte([page]), compressed_bits_per_byte([page, page])
    assert twice["gzip -9"] == pytest.approx(once["gzip -9"], rel=0.02)
    assert twice["xz"] == pytest.approx(once["xz"] / 2, rel=0.02)


def test_the_same_text_gives_the_same_number():
    assert compressed_bits_per_byte(["abc" * 1000]) == compressed_bits_per_byte(["abc" * 500, "abc" * 500])


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text(texts):
    assert compressed_bits_per_byte(texts) == {"gzip -9": 0.0, "xz": 0.0}
