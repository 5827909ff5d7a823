"""What may be said about repetitions and leaks, and what is refused."""

import pytest

from stablelm.config import InputError
from stablelm.config.deduplication import Decontamination, Deduplication
from stablelm.config.schema import commented_yaml, validate

SETS = {"sets": {"arc": {"path": "arc.jsonl"}}}


def test_defaults_are_the_published_ones():
    settings = Deduplication()
    assert settings.exact and settings.near and settings.lines is None and settings.scope == "across"
    assert (settings.near.threshold, settings.near.words, settings.near.hashes) == (0.7, 5, 128)
    leak = validate(Decontamination, SETS, "recipe.yml")
    assert (leak.n, leak.min_words, leak.margin, leak.action) == (13, 8, 200, "drop")


def test_steps_are_left_out_with_null():
    settings = validate(Deduplication, {"exact": None, "near": None, "lines": {}}, "recipe.yml")
    assert settings.exact is None and settings.near is None and settings.lines.max_documents == 6


def test_precedence():
    settings = Deduplication(precedence=["books", "web"])
    assert settings.order(["web", "code", "books", "papers"]) == ["books", "web", "code", "papers"]
    assert Deduplication().order(["b", "a"]) == ["b", "a"]
    with pytest.raises(InputError, match=r"precedence: no source 'books'; did you mean 'book'"):
        settings.order(["web", "book"])


@pytest.mark.parametrize(
    ("schema", "values", "message"),
    [
        (Deduplication, {"near": {"bands": 20}}, "`bands` and `rows` together"),
        (Deduplication, {"near": {"bands": 20, "rows": 7}}, "20 bands of 7 rows need 140 hashes"),
        (Deduplication, {"near": {"threshold": 1.0}}, "near.threshold: .*less than 1"),
        (Deduplication, {"near": {"threshhold": 0.8}}, "unknown key; did you mean 'threshold'"),
        (Deduplication, {"scope": "global"}, "scope: .*within"),
        (Deduplication, {"precedence": ["a", "b", "a"]}, "'a' is named twice"),
        (Deduplication, {"lines": {"max_documents": 0}}, "lines.max_documents"),
        (Decontamination, {"sets": {}}, "sets: .*at least 1"),
        (Decontamination, {"sets": {"arc": {"path": ""}}}, "sets.arc.path"),
        (Decontamination, {**SETS, "min_words": 14}, "min_words is 14, more than n, 13"),
        (Decontamination, {**SETS, "action": "delete"}, "action: .*drop"),
    ],
)  # fmt: skip
def test_what_is_refused(schema, values, message):
    with pytest.raises(InputError, match=f"recipe.yml: .*{message}"):
        validate(schema, values, "recipe.yml")


def test_every_key_is_documented():
    text = commented_yaml(Deduplication, "d") + commented_yaml(Decontamination, "d", SETS)
    assert "threshold: 0.7" in text and "margin: 200" in text
