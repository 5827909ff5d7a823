"""Words as spaCy's rules for English cut them; the expected ones are spaCy 3.8's own."""

import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stablelm.kernels.text.splitting import lexicon, split
from stablelm.kernels.text.words import decode
from tests.data.plain_heuristics import words as plain_words

PIECES = [
    *"abzAZéßΩя日あ한ا0159 \t\n\r\u00a0\u2028.,:;!?'\"’“”()[]{}<>/\\|@#$%^&*-+=_~`…—–°²€£🙂\u0301\u200d",
    *(
        "...",
        "--",
        "---",
        "n't",
        "'s",
        "’S",
        "'ll",
        "US$",
        "C$",
        "km",
        "m/s",
        "%",
        ":)",
        ":-(",
        "=(",
        ">:o",
        "a.m.",
    ),
    *(
        "http://",
        "www.",
        ".com",
        ".co.uk/x?y",
        "@",
        "10.1.2.3",
        "8.8.8.8:80",
        "e.g.",
        "I'm",
        "don't",
        "8am",
        "U.S.",
    ),
    *(
        "and/or",
        "°C.",
        "o'clock",
        "cannot",
        "[1]",
        "\r\n",
        "  ",
        "Mr.",
        "i'd've",
        "\x85",
        "\x1c",
        "word",
        "The",
    ),
]


def cut(text):
    """Bounds of the words, and the processor time of cutting."""
    tables = lexicon(("the",), (".",))
    raw = np.frombuffer(text.encode(), np.uint8)
    codes, kinds = np.empty(len(raw) + 1, np.int32), np.empty(len(raw) + 1, np.uint32)
    bounds, gaps = np.zeros((len(raw) + 1, 2), np.int32), np.zeros(len(raw) + 1, np.bool_)
    size = decode(raw, 0, len(raw), tables.kinds, codes, kinds)
    assert size == len(text)
    began = time.process_time()
    count = split(codes, kinds, 0, size, tables, bounds, gaps)
    return bounds[:count], time.process_time() - began


def words(text):
    return [text[begin:end] for begin, end in cut(text)[0].tolist()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("word", ["word"]),
        ("Hello, (big) world!", ["Hello", ",", "(", "big", ")", "world", "!"]),
        (
            "I don't think he's we’ll cannot",
            ["I", "do", "n't", "think", "he", "'s", "we", "’ll", "can", "not"],
        ),
        ("U.S. e.g. a.m. Mr. end.", ["U.S.", "e.g.", "a.m.", "Mr.", "end", "."]),
        (
            "well-known x/y a,b end.Next 3-4 1,000",
            ["well", "-", "known", "x", "/", "y", "a", ",", "b", "end", ".", "Next", "3", "-", "4", "1,000"],
        ),
        ("see http://a.org/b(c),d and me@x.org.", ["see", "http://a.org/b(c),d", "and", "me@x.org", "."]),
        (
            "5km 10% $5 7US$ 20°C. +1 a+",
            ["5", "km", "10", "%", "$", "5", "7", "US$", "20", "°", "C", ".", "+1", "a+"],
        ),
        ("wait... what…… ok..", ["wait", "...", "what", "……", "ok", ".."]),
        ("x:(( x:( ( y:)) y:) )", ["x", ":((", "x", ":", "(", "(", "y", ":))", "y", ":", ")", ")"]),
        ("(see: foo:) x=( : )", ["(", "see", ":", "foo", ":)", "x=", "(", ":", ")"]),
        ("a--b c---d e----f g—h", ["a", "--", "b", "c", "---", "d", "e----f", "g", "—", "h"]),
        ("日本語、テスト。", ["日本語、テスト", "。"]),
        ("hi🙂🙂there é e\u0301", ["hi", "🙂", "🙂", "there", "é", "e\u0301"]),
        ("\x00\x01 \u200b", ["\x00\x01", "\u200b"]),
        ("!!! ?!", ["!", "!", "!", "?", "!"]),
        ("172.16.0.1/a=b 8.8.8.8/a=b", ["172.16.0.1", "/", "a", "=", "b", "8.8.8.8/a=b"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected
    assert plain_words(text) == expected


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example(":) : ) :-) (: (:( :(( =) =( ( =")
@example("aé'sé's's (a.) 8a.m.) ((a.m.)) i.e.: $$5 5$$ ++5 5++")
def test_words_of_anything(text):
    assert words(text) == plain_words(text)


@pytest.mark.parametrize(
    "unit",
    ["(", ")", "a)", "'s", ".", "..a", "a@", "a.a@", "[", "[1", "5km", ":", "a-", "日", "a", "a'", "°C."],
)
def test_one_long_chunk_takes_linear_time(unit):
    cut(unit)
    small, large = (cut(unit * (size // len(unit)))[1] for size in (50_000, 800_000))
    assert large < 64 * small + 0.05, "16 times the text takes 256 times the time if that is quadratic"


def test_a_cut_off_character_is_replaced():
    tables = lexicon(("the",), (".",))
    codes, kinds = np.empty(8, np.int32), np.empty(8, np.uint32)
    for raw in (b"a\xe2\x82", b"a\xf0\x9f\x99", b"a\xc3"):
        data = np.frombuffer(raw + b"abc", np.uint8)
        assert decode(data, 0, len(raw), tables.kinds, codes, kinds) == 2 and codes[1] == 0xFFFD
