"""The settings of the cleaning groups: published defaults, and what is refused."""

import pytest

from stablelm.config import InputError
from stablelm.config.cleaning import (
    CodeHeuristics,
    Language,
    LineCorrections,
    Pii,
    UrlBlocklist,
    WordBlocklist,
)
from stablelm.config.schema import commented_yaml, validate


def test_published_defaults():
    assert (LineCorrections().max_share, LineCorrections().short_line) == (0.05, 10)
    code = CodeHeuristics()
    assert (code.max_line, code.max_mean_line, code.min_alphanumeric, code.min_alphabetic) == (
        1000,
        100,
        0.25,
        0.25,
    )
    assert (code.min_visible, code.min_visible_characters) == (0.2, 100)
    assert Language().min_score == 0.65


@pytest.mark.parametrize(
    ("schema", "values", "said"),
    [
        (LineCorrections, {"max_share": 1.5}, "less than or equal to 1"),
        (LineCorrections, {"starts": ["a\nb"]}, "line break"),
        (LineCorrections, {"ends": [""]}, "empty"),
        (LineCorrections, {"max_upper": 0.3}, "did you mean 'max_uppercase'"),
        (CodeHeuristics, {"generated": [" x"]}, "white space"),
        (CodeHeuristics, {"generated_lines": 0}, "greater than or equal to 1"),
        (Language, {"languages": ["EN"]}, "no language code"),
        (Language, {"min_score": 65}, "less than or equal to 1"),
        (Pii, {"kinds": ["names"]}, "'email', 'ip', 'phone' or 'secret'"),
        (Pii, {"email": ""}, "at least 1 character"),
        (Pii, {"secret": "a\0"}, "NUL"),
        (UrlBlocklist, {}, "no list is named"),
        (WordBlocklist, {"words": []}, "at least 1 item"),
    ],
)
def test_what_is_refused(schema, values, said):
    with pytest.raises(InputError, match=said):
        validate(schema, values, "recipe.yml")


@pytest.mark.parametrize(
    "schema", [LineCorrections, CodeHeuristics, Language, Pii, UrlBlocklist, WordBlocklist]
)
def test_every_key_says_what_it_is(schema):
    assert all(field.description for field in schema.model_fields.values())
    assert commented_yaml(schema, "x", {"words": ["a"]} if schema is WordBlocklist else None)
