"""13-gram overlap, against a plain set of tuples."""

import random
import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.demo.overlap import Overlap, thirteen_gram_overlap

WORDS = [f"w{i}" for i in range(100)]


def plain(held_out, train) -> Overlap:
    """The definition, slowly."""

    def grams(text):
        words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())
        return [tuple(words[i : i + 13]) for i in range(len(words) - 12)]

    known = {gram for text in train for gram in grams(text)}
    hits = [[gram in known for gram in grams(text)] for text in held_out]
    return Overlap(sum(map(len, hits)), sum(map(sum, hits)), len(hits), sum(any(hit) for hit in hits))


def text(*numbers: int) -> str:
    return " ".join(WORDS[i] for i in numbers)


def test_the_same_text_overlaps_wholly():
    document = text(*range(20))
    assert thirteen_gram_overlap([document], [document]) == Overlap(8, 8, 1, 1)
    assert thirteen_gram_overlap([document], [document]).share == 1.0


def test_twelve_words_in_common_are_not_thirteen():
    train = [text(*range(12), 50)]
    assert thirteen_gram_overlap([text(*range(12), 51)], train) == Overlap(1, 0, 1, 0)
    assert thirteen_gram_overlap([text(*range(12), 50)], train) == Overlap(1, 1, 1, 1)


def test_the_order_of_words_matters():
    forward, backward = text(*range(13)), text(*range(12, -1, -1))
    swapped = text(1, 0, *range(2, 13))
    for other in (backward, swapped):
        assert thirteen_gram_overlap([other], [forward]).overlapping == 0


def test_repeated_words_are_not_confused():
    assert thirteen_gram_overlap([text(*[0] * 13)], [text(*[1] * 20), text(*[0] * 12)]).overlapping == 0
    assert thirteen_gram_overlap([text(*[0] * 15)], [text(*[0] * 13)]) == Overlap(3, 3, 1, 1)


def test_case_punctuation_lines_and_width_do_not_matter():
    train = ["The weather is always wonderful, and so it is: day after day, here and there."]
    other = 'THE\nweather is "always"   wonderful and so; it is (day) after – day here AND there!'
    wide = (
        train[0]
        .replace("weather", "\uff57\uff45\uff41\uff54\uff48\uff45\uff52")
        .replace("after", "a\ufb05er")
    )
    assert thirteen_gram_overlap([other], train).share == 1.0
    assert thirteen_gram_overlap([wide.replace("a\ufb05er", "after")], train).share == 1.0


def test_grams_do_not_cross_documents():
    train = [text(*range(7)), text(*range(7, 13))]
    assert thirteen_gram_overlap([text(*range(13))], train) == Overlap(1, 0, 1, 0)
    assert thirteen_gram_overlap(train, [text(*range(13))]) == Overlap(0, 0, 2, 0)


@pytest.mark.parametrize(
    ("held_out", "train", "expected"),
    [
        ([], [], Overlap(0, 0, 0, 0)),
        (["", "one two", "… – !"], ["x " * 20], Overlap(0, 0, 3, 0)),
        (["x " * 20], [], Overlap(8, 0, 1, 0)),
        (["x " * 20], ["", "x"], Overlap(8, 0, 1, 0)),
    ],
)
def test_too_short_to_say(held_out, train, expected):
    assert thirteen_gram_overlap(held_out, train) == expected
    assert thirteen_gram_overlap(iter(held_out), iter(train)).share == 0.0


documents = st.lists(st.lists(st.integers(0, 2), max_size=40).map(lambda n: text(*n)), max_size=6)


@given(documents, documents)
def test_it_is_the_definition(held_out, train):
    assert thirteen_gram_overlap(held_out, train) == plain(held_out, train)


@given(st.lists(st.text(max_size=80), max_size=3), st.lists(st.text(max_size=80), max_size=3))
def test_it_is_the_definition_for_any_text(held_out, train):
    held_out = [t * 5 for t in held_out]
    train = [t * 5 for t in train] + held_out[:1]
    assert thirteen_gram_overlap(held_out, train) == plain(held_out, train)


def test_megabytes_take_seconds():
    draw = random.Random(0)
    train = [" ".join(draw.choices(WORDS, k=2_000)) for _ in range(400)]
    start = time.perf_counter()
    overlap = thirteen_gram_overlap(train[:100], train)
    assert time.perf_counter() - start < 10
    assert overlap == Overlap(198_800, 198_800, 100, 100)
