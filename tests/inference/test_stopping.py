"""Stop strings: found however the text is cut, never shown, nothing held back for longer than needed."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.inference import StopMatcher


def shown(stops, pieces: list[str]) -> tuple[str, bool]:
    matcher, out = StopMatcher(stops), ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        out += text
        if stopped:
            return out, True
    return out + matcher.flush(), False


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("ab\n", max_size=14),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 14), max_size=6),
)
def test_any_cut_of_the_text_shows_the_same(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    expected = (text, False)
    for end in range(1, len(text) + 1):  # the first character that completes a stop string
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            expected = (text[: min(starts)], True)
            break
    assert shown(stops, pieces) == shown(stops, list(text)) == shown(stops, [text]) == expected


def test_only_what_may_be_a_stop_is_held_back() -> None:
    matcher = StopMatcher(["\n\nQ:", "END"])
    assert matcher.push("one\n") == ("one", False)
    assert matcher.push("two E") == ("\ntwo ", False)
    assert matcher.push("N") == ("", False)
    assert matcher.push("d\n\n") == ("ENd", False)
    assert matcher.push("Q") == ("", False)
    assert matcher.push(": more") == ("", True)
    assert matcher.flush() == ""


def test_a_stop_that_repeats_its_beginning() -> None:
    assert shown("aab", ["a", "a", "a", "b", "c"]) == ("a", True)
    assert shown("aab", ["aaaa"]) == ("aaaa", False)


def test_the_string_that_is_complete_first_wins_and_of_those_the_longest() -> None:
    assert shown(["abcd", "bc"], ["abcd"]) == ("a", True)
    assert shown(["c", "bc", "abc"], ["xabc"]) == ("x", True)


def test_one_string_is_not_its_characters() -> None:
    assert shown("END", ["E", "N", "x"]) == ("ENx", False)
    assert shown((), ["anything"]) == ("anything", False)
    assert shown("🦕", ["a🦕b"]) == ("a", True)


@pytest.mark.parametrize("stops", ["", ["a", ""], [3], [None]])
def test_refused(stops) -> None:
    with pytest.raises(InputError, match="stop must be strings of at least one character"):
        StopMatcher(stops)
