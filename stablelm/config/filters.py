"""What a recipe says about the quality rules that go by counts: Gopher, C4, FineWeb, as published.

Defaults are the published thresholds, with datatrove's details. null switches a rule off; a section that is
absent switches all of its rules off. Only the keys that are named so in their sentence change what is
measured; any other may change without reading a text again."""

from typing import Literal

from pydantic import Field, field_validator

from stablelm.config.schema import Schema


class GopherQuality(Schema):
    """Is it prose? (Rae et al., 2021, section A.1.1.) Words are cut as spaCy cuts English."""

    min_words: int | None = Field(50, ge=0)
    """Fewer words drop a document. A word of nothing but symbols does not count."""
    max_words: int | None = Field(100_000, ge=0)
    """More words drop it."""
    min_word_length: float | None = Field(3, ge=0)
    """A lower mean number of characters in a word drops it."""
    max_word_length: float | None = Field(10, ge=0)
    """A higher mean drops it."""
    max_hashes: float | None = Field(0.1, ge=0)
    """More # a word drop it (here and below, words include those of symbols alone)."""
    max_ellipses: float | None = Field(0.1, ge=0)
    """More ellipses a word (… or three dots) drop it."""
    max_bullet_lines: float | None = Field(0.9, ge=0, le=1)
    """A higher share of lines that begin with • or - drops it."""
    max_ellipsis_lines: float | None = Field(0.3, ge=0, le=1)
    """A higher share of lines that end with an ellipsis drops it."""
    min_alphabetic_words: float | None = Field(0.8, ge=0, le=1)
    """A lower share of words with a letter drops it."""
    min_stop_words: int | None = Field(2, ge=0)
    """Fewer different words of `stop_words` drop it."""
    stop_words: list[str] = Field(["the", "be", "to", "of", "and", "that", "have", "with"])
    """Words that prose has, as they are spelled. Another list means measuring again."""

    @field_validator("stop_words")
    @classmethod
    def _words(cls, words: list[str]) -> list[str]:
        if any(not word or word.split() != [word] for word in words):
            raise ValueError("an entry is empty or has white space; name single words")
        return words


class GopherRepetition(Schema):
    """Does it repeat itself? (Rae et al., 2021, table A1.) Shares of its characters but for the first and
    third."""

    max_duplicate_paragraphs: float | None = Field(0.3, ge=0, le=1)
    """A higher share of paragraphs that were there before drops a document."""
    max_duplicate_paragraph_characters: float | None = Field(0.2, ge=0, le=1)
    """A higher share of characters in such paragraphs drops it."""
    max_duplicate_lines: float | None = Field(0.3, ge=0, le=1)
    """A higher share of lines that were there before drops it."""
    max_duplicate_line_characters: float | None = Field(0.2, ge=0, le=1)
    """A higher share of characters in such lines drops it."""
    max_top_ngrams: dict[int, float] = Field({2: 0.2, 3: 0.18, 4: 0.16})
    """For n of 2 to 4: a higher share of characters in the most frequent n words drops it."""
    max_duplicate_ngrams: dict[int, float] = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1})
    """For n of 5 to 10: a higher share of characters in n words that were there before drops it."""

    @field_validator("max_top_ngrams")
    @classmethod
    def _top(cls, shares: dict[int, float]) -> dict[int, float]:
        return _shares(shares, 2, 4)

    @field_validator("max_duplicate_ngrams")
    @classmethod
    def _duplicate(cls, shares: dict[int, float]) -> dict[int, float]:
        return _shares(shares, 5, 10)


def _shares(shares: dict[int, float], first: int, last: int) -> dict[int, float]:
    if any(not first <= n <= last for n in shares):
        raise ValueError(f"n may be {first} to {last} here")
    if any(not 0 <= share <= 1 for share in shares.values()):
        raise ValueError("a share is between 0 and 1")
    return dict(sorted(shares.items()))


class C4(Schema):
    """Lines that are sentences, in pages that have some (Raffel et al., 2020, section 2.2). Lines that are
    not leave the text; a kept line loses the white space around it."""

    end_mark: bool = True
    """A line that does not end with . ? ! " or ', or ends with three dots, goes. Another value means
    measuring again, as for the keys up to `policies`. (FineWeb's own recipe has false here.)"""
    min_line_words: int | None = Field(3, ge=0)
    """A line of fewer words goes; white space separates them."""
    max_word_length: int | None = Field(1000, ge=0)
    """A line with a longer word, in characters, goes."""
    citations: bool = True
    """Marks such as [1], [], [edit] and [citation needed] leave the lines that stay."""
    javascript: bool = True
    """A line that speaks of Javascript goes."""
    policies: bool = True
    """A line that speaks of terms of use, a privacy policy or cookies goes."""
    lorem_ipsum: bool = True
    """A line with these words that is not gone yet drops the document."""
    curly_bracket: bool = True
    """A line with { that is not gone yet drops the document."""
    min_sentences: int | None = Field(5, ge=0)
    """Fewer sentences in the lines that stay drop the document."""


class FineWeb(Schema):
    """Is it a list, a menu, or text that was cut up? (Penedo et al., 2024, section 3.6.)"""

    of: Literal["text", "c4"] = "text"
    """What is judged: the text as it is, or what C4's rules leave of it, as where filters run one after
    another. Both are measured."""
    min_ended_lines: float | None = Field(0.12, ge=0, le=1)
    """A lower share of lines that end with a mark of `end_marks` drops a document. Blank lines do not
    count."""
    max_short_lines: float | None = Field(0.67, ge=0, le=1)
    """A higher share of lines of at most `short_line` characters drops it."""
    short_line: int = Field(30, ge=0)
    """Characters of a short line. Another value means measuring again."""
    max_duplicate_characters: float | None = Field(0.01, ge=0, le=1)
    """A higher share of characters in lines that were there before drops it."""
    max_line_feeds: float | None = Field(0.3, ge=0)
    """More line feeds a word drop it."""
    end_marks: str | None = None
    """The characters a line may end with; null: . ? ! and their like in every script. Another value means
    measuring again."""


class Heuristics(Schema):
    """The four groups, which are measured in one pass. A group that is not named decides nothing."""

    gopher_repetition: GopherRepetition | None = None
    """Drops texts that repeat themselves."""
    gopher_quality: GopherQuality | None = None
    """Drops texts that are not prose."""
    c4: C4 | None = None
    """Drops lines that are no sentences, and texts that have few."""
    fineweb: FineWeb | None = None
    """Drops lists and texts that were cut up."""
