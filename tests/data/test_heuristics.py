"""Gopher, C4 and FineWeb: each rule just on this side of its threshold and just beyond, and every number
beside plain Python."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.filters import C4, FineWeb, GopherQuality, GopherRepetition, Heuristics
from stablelm.config.schema import validate
from stablelm.data import heuristics
from stablelm.data.texts import Texts
from tests.data import plain_heuristics
from tests.kernels.test_words import PIECES

ALL = Heuristics(
    gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality(), c4=C4(), fineweb=FineWeb()
)
PROSE = "The cat sat on the mat and looked at birds that have wings."
_NOUNS = "apple bridge candle doctor engine forest garden hammer island jacket kitten ladder"
WORDS = _NOUNS.split()


def columns(*texts, settings=ALL):
    return heuristics.measure(Texts.of(texts), settings)


def reason(group, text, settings):
    (found,) = getattr(heuristics, group)(columns(text), settings)
    return found


def nothing(kind, **keys):
    """Settings with every rule off but those named."""
    empty = {
        name: None
        for name, field in kind.model_fields.items()
        if field.default is None or "None" in str(field.annotation)
    }
    dicts = {name: {} for name in ("max_top_ngrams", "max_duplicate_ngrams") if name in kind.model_fields}
    return kind(**(empty | dicts | keys))


def words(count, *more):
    """Prose-like words that are all different."""
    return " ".join(
        [*(f"{WORDS[i % 12]}{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}" for i in range(count)), *more]
    )


@pytest.mark.parametrize(
    ("rule", "kept", "dropped", "why"),
    [
        ({"min_words": 50}, words(50), words(49) + " ... ! -", "too few words"),
        ({"max_words": 60}, words(60) + " , .", words(61), "too many words"),
        ({"min_word_length": 3}, "abc abcd ab", "abc ab abc", "words too short"),
        ({"max_word_length": 10}, "abcdefghij", "abcdefghij abcdefghijk", "words too long"),
        ({"max_hashes": 0.1}, words(9, "#"), words(8, "#"), "too many hashes"),
        ({"max_ellipses": 0.1}, words(9, "..."), words(8, "…"), "too many ellipses"),
        ({"max_ellipses": 0.1}, words(19, "......"), words(18, "......"), "too many ellipses"),
        ({"max_bullet_lines": 0.9}, "- a\n" * 9 + "b", "\t• a\n" * 10, "too many bullets"),
        ({"max_ellipsis_lines": 0.3}, "a... \r\n" * 3 + "b\n" * 7, "a…\nb...\nc\nd\n", "lines end with"),
        ({"min_alphabetic_words": 0.8}, "a b c d 5", "a b c 4 5", "words with a letter"),
        ({"min_stop_words": 2}, "the cat of", "the The the cat", "stop words"),
    ],
)  # fmt: skip
def test_gopher_quality(rule, kept, dropped, why):
    settings = nothing(GopherQuality, **rule)
    assert reason("gopher_quality", kept, settings) == ""
    assert why in reason("gopher_quality", dropped, settings)
    assert reason("gopher_quality", dropped, nothing(GopherQuality)) == "", "null switches a rule off"


def twice(text):
    return f"{text} ~ {text}"


PARAGRAPHS = "\n\n".join(["aaaa"] * 4 + [f"p{i}" for i in range(6)])


@pytest.mark.parametrize(
    ("rule", "kept", "dropped", "why"),
    [
        ({"max_duplicate_paragraphs": 0.3}, PARAGRAPHS, PARAGRAPHS + "\n\n\naaaa", "duplicate paragraphs"),
        ({"max_duplicate_paragraph_characters": 0.2}, "aa\n\naa\n\nbb", "aaaa\n\naaaa\n\nbb",
         "characters in duplicate paragraphs"),
        ({"max_duplicate_lines": 0.3}, "a\n" * 4 + "b\nc\nd\ne\nf\ng", "a\n" * 5 + "b\nc\nd\ne\nf\ng",
         "duplicate lines"),
        ({"max_duplicate_line_characters": 0.2}, "ab\nab\ncdef", "abc\nabc\ncd",
         "characters in duplicate lines"),
        ({"max_top_ngrams": {2: 0.2}}, "a b " + "c" * 11, "a b " + "c" * 10, "top 2-gram"),
        ({"max_top_ngrams": {3: 0.5}}, "a b c d a b c efghij", "a b c d a b c efghi", "top 3-gram"),
        ({"max_top_ngrams": {4: 0.5}}, "a b c d e a b c d fghijklmno", "a b c d e a b c d fghijklmn",
         "top 4-gram"),
        *(
            ({"max_duplicate_ngrams": {n: 0.4}}, twice(" ".join("abcdefghij"[:n])),
             twice(" ".join(letter * 40 for letter in "abcdefghij"[:n])), f"duplicate {n}-grams")
            for n in range(5, 11)
        ),
        ({}, " ", "", "empty"),
    ],
)  # fmt: skip
def test_gopher_repetition(rule, kept, dropped, why):
    settings = nothing(GopherRepetition, **rule)
    assert reason("gopher_repetition", kept, settings) == ""
    assert reason("gopher_repetition", dropped, settings) == f"gopher repetition: {why}"


def test_words_that_only_join_to_the_same_are_duplicates_as_published():
    """n-grams are joined without spaces in the reference, so "ab c…" repeats "a bc…"."""
    (found,) = columns("ab cd ef gh ij ~ a bcd ef gh ij")["repetition.duplicate_5gram_characters"]
    assert found == 10


LINE = "Here is one line that ends."
FIVE = "\n".join([LINE] * 5)


@pytest.mark.parametrize(
    ("text", "column", "lines"),
    [
        ("no end mark here", "no_end", 1),
        ("dots at the end...", "no_end", 1),
        ("mark. [1]", "no_end", 1),
        ("three words here.", "kept", 1),
        ("he said \"yes.\"\nis it so?\nyes it is!\nand 'so it was'", "kept", 4),
        ("two words.", "few_word", 1),
        ("it needs " + "x" * 999 + ".", "kept", 1),
        ("it needs " + "x" * 1000 + ".", "long_word", 1),
        ("Please enable JavaScript now.", "javascript", 1),
        ("Read our Terms of Use now.", "policy", 1),
        ("This site USES COOKIES now.", "policy", 1),
        ("We have a coo\u212aie policy now.", "policy", 1),
        ("", "no_end", 0),
        ("\n\n", "no_end", 2),
        ("a\r\nb\x0bc\x0cd\x85e\u2028f\rg", "no_end", 7),
    ],
)
def test_c4_lines(text, column, lines):
    found = columns(text)
    names = ("kept", "long_word", "no_end", "few_word", "javascript", "policy")
    assert {name: int(found[f"c4.{name}_lines"][0]) for name in names} == dict.fromkeys(names, 0) | {
        column: lines
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (FIVE, ""),
        ("\n".join([LINE] * 4), "too few sentences"),
        (LINE + " And so! On? (Yes.) No.", ""),
        ("He said. She said. They said. We said. I said.", ""),
        (FIVE + "\nUse { and } here.", "curly bracket"),
        (FIVE + "\nUse { and } here", ""),
        (FIVE + "\nThe Lorem Ipsum text.\nUse { here now.", "lorem ipsum"),
        (FIVE + "\nUse { here now.\nThe Lorem Ipsum text.", "curly bracket"),
        (FIVE + "\nA javascript with { here.", ""),
        ("", "too few sentences"),
    ],
)
def test_c4(text, why):
    assert reason("c4", text, C4()) == (f"c4: {why}" if why else "")


def test_c4_rules_are_off_when_told():
    text = FIVE + "\nUse { and lorem ipsum here."
    assert reason("c4", text, C4(lorem_ipsum=False, curly_bracket=False)) == ""
    assert reason("c4", text, C4(lorem_ipsum=False)) == "c4: curly bracket"
    assert reason("c4", "x", C4(min_sentences=None)) == ""
    off = Heuristics(
        c4=C4(end_mark=False, min_line_words=None, max_word_length=None, javascript=False, policies=False)
    )
    (kept,) = columns("javascript\nuse cookies\n" + "x" * 2000, settings=off)["c4.kept_lines"]
    assert kept == 3


@pytest.mark.parametrize(
    ("rule", "kept", "dropped", "why"),
    [
        ({"min_ended_lines": 0.5}, "a.\nb", "a.\nb\nc. ", "few lines end a sentence"),
        ({"min_ended_lines": 1}, "a。\nb!\n\n  \nc؟", "a.\nb,", "few lines end a sentence"),
        ({"max_short_lines": 0.5}, "x" * 31 + "\n" + "é" * 30, "x" * 30, "short lines"),
        ({"max_duplicate_characters": 0.25}, "ab\nab\ncdef\n", "ab\nab\ncde", "duplicate lines"),
        ({"max_line_feeds": 0.5}, "a b\nc d\n", "a b\nc\n", "a list"),
        ({}, "x", "\n \n", "empty"),
    ],
)
def test_fineweb(rule, kept, dropped, why):
    settings = nothing(FineWeb, of="text", **rule)
    assert reason("fineweb", kept, settings) == ""
    assert reason("fineweb", dropped, settings) == f"fineweb: {why}"


def test_fineweb_of_what_c4_leaves():
    text = "\n".join(["Menu"] * 40 + [LINE.replace("one", name) for name in WORDS])
    assert reason("fineweb", text, FineWeb()) == "fineweb: short lines"
    assert reason("fineweb", text, FineWeb(of="c4", max_short_lines=None)) == ""


def test_the_first_group_and_rule_says_why():
    found = columns("word", "{\n" * 30, FIVE, "")
    repeats = "gopher repetition: duplicate lines"
    assert heuristics.decide(found, ALL).tolist() == [
        "gopher quality: too few words", repeats, repeats, "gopher repetition: empty",
    ]  # fmt: skip
    assert heuristics.decide(found, Heuristics(c4=C4())).tolist()[2:] == ["", "c4: too few sentences"]
    assert heuristics.decide(found, Heuristics()).tolist() == [""] * 4


def test_measuring_depends_on_few_settings():
    base = heuristics.measured_by(ALL)
    json.dumps(base)
    same = Heuristics(
        gopher_quality=GopherQuality(min_words=7), c4=C4(min_sentences=1), fineweb=FineWeb(of="c4")
    )
    assert heuristics.measured_by(same) == base == heuristics.measured_by(Heuristics())
    for other in (
        Heuristics(gopher_quality=GopherQuality(stop_words=["der"])),
        Heuristics(c4=C4(end_mark=False)),
        Heuristics(fineweb=FineWeb(short_line=10)),
        Heuristics(fineweb=FineWeb(end_marks=".")),
    ):
        assert heuristics.measured_by(other) != base


def test_settings_that_change_the_numbers():
    text = "der Hund und die Katze;\nder Baum."
    settings = Heuristics(
        gopher_quality=GopherQuality(stop_words=["der", "die", "und"]),
        fineweb=FineWeb(end_marks=";", short_line=10),
    )
    found = columns(text, settings=settings)
    assert (found["gopher.stop_words"], found["fineweb.ended_lines"], found["fineweb.short_lines"]) == (
        3,
        1,
        1,
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gopher_quality": {"min_wrods": 3}}, "min_words"),
        ({"gopher_quality": {"min_words": -1}}, "min_words"),
        ({"gopher_quality": {"stop_words": ["the", "a b"]}}, "single words"),
        ({"gopher_repetition": {"max_top_ngrams": {5: 0.1}}}, "2 to 4"),
        ({"gopher_repetition": {"max_duplicate_ngrams": {5: 1.5}}}, "between 0 and 1"),
        ({"c5": {}}, "c4"),
    ],
)
def test_mistakes_in_the_settings(section, message):
    with pytest.raises(InputError, match=message):
        validate(Heuristics, section, "recipe.yml")


LINES = ["\n\n", ".\n", LINE, "\n" + LINE, "{", "lorem ipsum ", "javascript", "use cookies"]
TEXTS = st.lists(
    st.sampled_from([*PIECES, *LINES]),
    max_size=20,
).map("".join)  # fmt: skip


@given(st.lists(TEXTS, min_size=1, max_size=4))
@example(["", "\n", " ", "\n\n\n", "a", "\r\n", "\r", "...", "!!!"])
@example(
    ["a b c d e f g h i j k l " * 4, FIVE, FIVE.replace("\n", "\r\n"), "[1] one two. [2]  \n[edit] x y z!\t"]
)
@example(["日本語。 これは、テストです。\n" * 3, "🙂 " * 30, "e\u0301 " * 20, "ﷺ"])
def test_every_number_beside_plain_python(texts):
    found = columns(*texts)
    for number, text in enumerate(texts):
        assert {name: int(values[number]) for name, values in found.items()} == plain_heuristics.measure(text)


def edited(text, settings=ALL):
    """The text with its edits done, which must be in order, on characters' bounds, without overlaps."""
    rows, starts, ends, codes = heuristics.edits(Texts.of(["x", text, ""]), settings)
    raw, result, place = text.encode(), b"", 0
    for row, start, end, code in zip(rows, starts, ends, codes, strict=True):
        if row == 1:
            assert place <= start < end <= len(raw)
            result += raw[place:start] + (b"\n" if code else b"")
            place = end
    return (result + raw[place:]).decode()


@given(TEXTS)
@example("  Keep this line.  \r\n drop\r\nKeep that one!\rAnd this one.\u2028")
@example("[1] One two three.\n[2][edit] Four five six [citation needed]?\n")
def test_edits_leave_what_c4_keeps(text):
    kept, _ = plain_heuristics.kept_by_c4(text)
    assert edited(text) == "\n".join(kept).strip()
    assert len(edited(text)) == columns(text)["c4.characters"][0]


def test_no_edits_without_c4():
    assert edited("no end mark", Heuristics()) == "no end mark"


def test_texts_from_a_mapped_file_and_none_at_all(tmp_path):
    (tmp_path / "texts").write_bytes((PROSE + FIVE).encode())
    mapped = np.memmap(tmp_path / "texts", np.uint8, "r")
    texts = Texts(mapped, np.array([len(PROSE), len(mapped)]))
    assert [values.tolist() for values in heuristics.measure(texts, ALL).values()] == [
        values.tolist() for values in columns(PROSE, FIVE).values()
    ]
    assert all(len(values) == 0 and values.dtype == np.int64 for values in columns().values())
    assert heuristics.decide(columns(), ALL).tolist() == []


def test_a_long_line_and_many_words():
    text = words(2000) + " "
    found = columns(text * 100)
    assert found["text.words"] == 200_000
    unit = len(text) - 2000
    assert found["repetition.duplicate_10gram_characters"][0] == 99 * unit
