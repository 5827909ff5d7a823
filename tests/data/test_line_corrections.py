"""RefinedWeb's line-wise corrections: each rule at its boundary, what is cut, when a document goes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config.cleaning import LineCorrections
from stablelm.data.line_corrections import RULES, decide, edits, measure, measured_by, scan
from stablelm.data.texts import Texts

SETTINGS = LineCorrections()


def corrected(text: str, settings: LineCorrections = SETTINGS) -> str:
    texts = Texts.of([text])
    return edits(texts, settings).apply_all(texts)[0]


def rules_of(line: str, settings: LineCorrections = SETTINGS) -> list[str]:
    columns = measure(Texts.of([line]), settings)
    return [rule for rule in RULES if columns[f"lines.{rule}"][0]]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("ALL NEWS", "uppercase"),
        ("ABab cd", None),  # 2 of 7
        ("ABCa b", None),  # exactly half of 6
        ("ABCD b", "uppercase"),  # 4 of 6
        ("ÄÖÜ ß", "uppercase"),  # 3 of 5, beyond ASCII
        ("  ABCa b  ", None),  # white space around it does not count
        ("ΑΒΓΔ α", "uppercase"),
        ("2024", "numeric"),
        ("12 34 56", "numeric"),
        ("١٢٣", "numeric"),  # Arabic digits
        ("12 a", None),
        ("1.5 2.5", None),
        ("3 likes", "counter"),
        ("3 Likes", "counter"),
        ("1 like", "counter"),
        ("1,234 views", "counter"),
        ("1.2K views · 5 comments", "counter"),
        ("(12 shares)", "counter"),
        ("3 likes and more", None),
        ("She has 3 likes", None),
        ("3 likers", None),
        ("likes 3", None),
        ("Home", "one_word"),
        ("---", "one_word"),
        ("\tHome \r", "one_word"),
        ("日本語の文章です。", "one_word"),  # the rules are for languages with spaces
        ("Sign-in to read the whole article", "pattern"),
        ("sign-in here", "pattern"),
        ("Please sign-in here", None),  # not at the start
        ("Sign-ins are many here", None),  # not the end of a word
        ("This is a teaser Read more...", "pattern"),
        ("This is a teaser READ MORE…", "pattern"),
        ("Read more... or do not", None),  # not at the end
        ("one two three four five six seven eight read more...", "pattern"),  # 10 words
        ("one two three four five six seven eight nine read more...", None),  # 11 words
        ("You have 2 items in cart now", "pattern"),
        ("items in cartons are many", None),
        ("my_items in cart", None),
        ("An ordinary line of prose.", None),
        ("", None),
        ("   ", None),
    ],
)
def test_each_rule(line, rule):
    assert rules_of(line) == ([rule] if rule else [])
    assert rules_of(f"good text here\n{line}\r\ngood text here") == ([rule] if rule else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good text\nHOME\nmore text", "good text\nmore text"),
        ("good text\r\nHOME\r\nmore text", "good text\r\nmore text"),
        ("HOME\ngood text", "good text"),
        ("good text\nHOME", "good text"),
        ("good text\r\nHOME", "good text"),
        ("good text\nHOME\n", "good text\n"),
        ("good text\n\nHOME\n3 likes\n\nmore text", "good text\n\n\nmore text"),
        ("HOME", ""),
        ("HOME\nABOUT", ""),
        ("HOME\n", ""),
        ("\nHOME\n", "\n"),
        ("Sign-in to see it", "to see it"),
        ("  Sign-in to see it", "  to see it"),
        ("It goes on Read more...", "It goes on"),
        ("It goes on. Read more...  \nnext one", "It goes on.  \nnext one"),
        ("2 items in cart now", "2 now"),
        ("good text\nItems in cart\nmore text", "good text\nmore text"),  # nothing else on it
        ("good text\nsign-in Items in cart read more...\r\nmore text", "good text\nmore text"),
        ("", ""),
        ("\n\n", "\n\n"),
        ("œuvre d'été ŒUVRE\nÉTÉ\nfin du texte", "œuvre d'été ŒUVRE\nfin du texte"),
    ],
)
def test_what_is_cut(text, expected):
    assert corrected(text) == expected


def test_documents_do_not_touch():
    documents = [
        "good text",
        "HOME",
        "",
        "sign-",
        "in here we go",
        "read more",
        "...",
        "items in",
        " cart of it",
    ]
    texts = Texts.of(documents)
    columns, made = scan(texts, SETTINGS)
    changed = list(made.apply_all(texts))
    assert changed == ["good text", "", "", "", "in here we go", "read more", "", "items in", " cart of it"]
    assert columns["lines.words"].tolist() == [2, 1, 0, 1, 4, 2, 1, 2, 3]
    assert columns["lines.removed_words"].tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 0]


def test_a_document_goes_when_more_than_a_twentieth_of_its_words_is_named():
    line = "these are five words here"
    at = "\n".join([line] * 19 + ["1 2 3 4 5"])  # 5 of 100
    above = "\n".join([line] * 18 + ["1 2 3 4 5"])  # 5 of 95
    cut = "\n".join([line] * 18 + ["you have items in cart"])  # a cut line counts whole
    columns = measure(Texts.of([at, above, cut, "", "HOME"]), SETTINGS)
    reason = "lines: too many corrected"
    assert decide(columns, SETTINGS).tolist() == ["", reason, reason, "", reason]
    assert decide(columns, LineCorrections(max_share=1)).tolist() == [""] * 5
    assert columns["lines.cut_words"].tolist() == [0, 0, 5, 0, 0]


def test_rules_can_be_turned_off():
    off = LineCorrections(
        max_uppercase=1, numeric=False, counters=[], min_words=1, starts=[], ends=[], anywhere=[]
    )
    text = "HOME\n12\n3 likes\nsign-in now\nread more...\nitems in cart"
    assert corrected(text, off) == text
    assert corrected("Anmelden um es zu lesen", LineCorrections(starts=["anmelden"])) == "um es zu lesen"


def test_what_the_numbers_depend_on():
    assert measured_by(SETTINGS) == measured_by(LineCorrections(max_share=0.5))
    assert measured_by(SETTINGS) != measured_by(LineCorrections(starts=["log-in"]))


@given(st.text(alphabet="ABab 1\n\r\té日…-", max_size=60), st.text(alphabet="aA\n", max_size=9))
def test_edits_fit_and_other_lines_stay(text, other):
    texts = Texts.of([other, text, other])
    columns, made = scan(texts, SETTINGS)
    made.check(texts, "x")
    changed = made.apply_all(texts)[1]
    kept = [line for line in text.split("\n") if not rules_of(line)]
    assert [line.strip() for line in changed.split("\n") if line.strip()] == [
        k.strip() for k in kept if k.strip()
    ]
    assert columns["lines.words"][1] == len(text.split())


def test_one_line_of_five_megabytes():
    text = "Word " * 1_000_000
    columns, made = scan(Texts.of([text, "[" * 100_000]), LineCorrections(anywhere=["[", "items in cart"]))
    assert columns["lines.words"].tolist() == [1_000_000, 1] and len(made) == 1
    assert np.array_equal(columns["lines.pattern"], [0, 0]) and columns["lines.one_word"][1] == 1
