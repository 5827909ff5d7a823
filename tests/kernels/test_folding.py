"""Which spellings are one, beside Python's own Unicode functions."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.data.texts import Texts
from stablelm.kernels.text.folding import BEYOND, MARK, SEPARATOR, SPACE, WORD, fold, folding
from stablelm.kernels.text.ngrams import MARGIN, next_words

KNOWN = st.characters(
    categories=("L", "N", "P", "S", "Z", "M", "Cc"), max_codepoint=0x21F
)  # all in Unicode 3.2


def folded(text, buffer=1 << 12):
    """The kernel's folded text."""
    data, out = np.frombuffer(text.encode(), np.uint8), np.empty(buffer, np.uint8)
    state, place, pieces = np.zeros(2, np.int64), 0, []
    while place < len(data):
        written, place = fold(data, place, len(data), *folding(), state, out)
        pieces.append(out[:written].tobytes())
    return b"".join(pieces).decode()


def words(text, buffer=1 << 12):
    """The kernel's words, as (number, text)."""
    data, place, found, state = np.frombuffer(text.encode(), np.uint8), 0, [], np.zeros(4, np.uint64)
    numbers, (starts, stops) = np.empty(buffer, np.uint64), np.empty((2, buffer), np.int64)
    while place < len(data):
        count, place = next_words(data, place, len(data), *folding(), state, numbers, starts, stops)
        found += [
            (int(n), bytes(data[a:b]).decode())
            for n, a, b in zip(numbers[:count], starts[:count], stops[:count], strict=True)
        ]
    return found


def spelled(text):
    """What the tables say, by Python: NFKD of the case-folded NFKD, without what is invisible."""
    text = re.sub("[\u00ad\u034f\u200b-\u200f\ufeff]", "", text)
    return "".join(unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", c).casefold()) for c in text)


@given(st.text(KNOWN))
def test_a_text_is_folded_as_python_does(text):
    assert folded(text) == " ".join(spelled(text).split())


@given(st.text(KNOWN, max_size=300))
def test_the_piece_it_is_folded_in_makes_no_difference(text):
    assert folded(text, 100) == folded(text)
    assert words(text, MARGIN + 1) == words(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straße", "STRASSE"), ("é", "e\u0301"), ("ﬁnal", "final"), ("Ａ１", "a1"),
        ("soft\u00adhyphen", "softhyphen"), ("\ufeffa  b\r\n", "a b"), ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("한국", unicodedata.normalize("NFD", "한국")), ("x²", "x2"),
        ("a\u00a0b\u3000c", " a b c "), ("カ\u3099", "ガ"), ("ﷺ", unicodedata.normalize("NFKD", "ﷺ")),
    ],
)  # fmt: skip
def test_spellings_that_are_one(one, other):
    assert folded(one) == folded(other)
    assert [n for n, _ in words(one)] == [n for n, _ in words(other)]


@pytest.mark.parametrize(("one", "other"), [("a-b", "a b"), ("don't", "dont"), ("1.5", "15"), ("🙂", "🙃")])
def test_spellings_that_are_not(one, other):
    assert folded(one) != folded(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't — stop_here, 3.14!", ["Don", "t", "stop", "here", "3", "14"]),
        ("日本語 text", ["日", "本", "語", "text"]),
        ("カ\u3099ス", ["カ\u3099", "ス"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("x" * 3 + "\U00020000y", ["xxx", "\U00020000", "y"]),
        ("naïve e\u0301te", ["naïve", "e\u0301te"]),
        ("🙂 !? \u2603", []),
        ("", []),
        ("ß", ["ß"]),
    ],
)
def test_words(text, expected):
    assert [word for _, word in words(text)] == expected


@given(st.text(st.characters(max_codepoint=0x24F, exclude_categories=("Cs",)), max_size=200))
def test_words_of_latin_text_are_those_of_a_regular_expression(text):
    if re.search(r"[\u00a8\u00ad\u00af\u00b4\u00b8\u00bc-\u00be]", text):  # become several characters
        return
    ours = [word for _, word in words(text)]
    assert ours == re.findall(r"[^\W_]+", text)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=6), max_size=200))
def test_a_word_has_one_number_and_no_other_word_has_it(texts):
    found = words(" ".join(texts))
    assert len({n for n, _ in found}) == len(set(texts)) == len(set(found))


def test_the_tables():
    tables = folding()
    assert tables.folded.shape == tables.kinds.shape == (BEYOND,)
    assert [tables.kinds[ord(c)] for c in "a1_- \u0301\ue000"] == [
        WORD,
        WORD,
        SEPARATOR,
        SEPARATOR,
        SPACE,
        MARK,
        0,
    ]
    with pytest.raises(ValueError, match="read-only"):
        tables.kinds[0] = 1


@pytest.mark.parametrize("data", [b"\xff\xfe", b"abc\xe2\x82", b"\xf0\x9f\x99", b"\xc3", b"\x80\x80a"])
def test_bytes_that_are_no_utf8_are_not_read_beyond_the_end(data):
    array, out, state = np.frombuffer(data, np.uint8), np.empty(200, np.uint8), np.zeros(2, np.int64)
    written, place = fold(array, 0, len(array), *folding(), state, out)
    assert place == len(array) and written <= 3 * len(data)


def test_a_long_text_needs_no_longer_buffer():
    text = "ﷺ" * 5000
    assert folded(text, 200) == spelled(text) and len(Texts.of([text]).data) == 15_000
