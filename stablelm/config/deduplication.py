"""What counts as a repetition, and as a leak of an evaluation set.

Defaults are published values where there are any; each field says which."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from stablelm.config.errors import InputError
from stablelm.config.schema import Schema, suggest


class ExactDeduplication(Schema):
    """Documents that are equal up to case, white space and Unicode's compatible spellings: one is kept."""


class NearDeduplication(Schema):
    """Documents that share most of their word n-grams: MinHash with bands (Broder, 1997; Leskovec et al.,
    chapter 3)."""

    threshold: float = Field(0.7, gt=0, lt=1)
    """Jaccard similarity of the sets of n-grams from which two documents are one. With 5-grams, a share e of
    the words edited leaves s = (1 − e)⁵ of them in common and a similarity of s / (2 − s): 0.7 is some 4 % of
    the words, 0.8 is 2 %, 0.6 is 6 %. FineWeb's bands of 14 × 8 turn at 0.72."""
    words: int = Field(5, ge=1, le=64)
    """Words of an n-gram. A shorter document is one n-gram of all its words; one without words has no
    duplicates."""
    hashes: int = Field(128, ge=8, le=4096)
    """Numbers in a signature, 4 bytes each. The similarity is estimated with a standard error of
    √(s (1 − s) / hashes): 0.04 for 128 at 0.7."""
    bands: int | None = Field(None, ge=1)
    """Bands of a signature; two documents with one equal band are compared. Default: chosen from threshold
    and hashes."""
    rows: int | None = Field(None, ge=1)
    """Numbers in a band; given with `bands` or not at all."""
    misses: float = Field(0.8, gt=0, lt=1)
    """How much a missed pair weighs against one compared in vain, where the bands are chosen. Above a half
    because a comparison is cheap and a pair that no band finds is lost."""
    verify: bool = True
    """Compare the whole signatures of two documents that have an equal band, and take them as one only if the
    estimate reaches the threshold. Off: an equal band is enough, as in FineWeb's pipeline."""
    seed: int = Field(1, ge=0, lt=1 << 64)
    """Fixes the hash functions."""

    @model_validator(mode="after")
    def _bands_fit(self) -> "NearDeduplication":
        if (self.bands is None) != (self.rows is None):
            raise ValueError("give `bands` and `rows` together, or neither to have them chosen")
        if self.bands and self.rows and self.bands * self.rows > self.hashes:
            raise ValueError(
                f"{self.bands} bands of {self.rows} rows need {self.bands * self.rows} hashes, there are "
                f"{self.hashes}: raise `hashes` or lower one of them"
            )
        return self


class LineDeduplication(Schema):
    """Lines or paragraphs that many documents share: menus, licences, notices."""

    unit: Literal["line", "paragraph"] = "line"
    """A line ends at LF; a paragraph at a blank line."""
    min_characters: int = Field(30, ge=1)
    """Shorter ones stay, counted without case and with white space folded: `}` and `Abstract` are no
    boilerplate."""
    max_documents: int = Field(6, ge=1)
    """Documents that may have it; in more, it is boilerplate (the number is our choice)."""
    keep: Literal["first", "none"] = "first"
    """first: the document of the lowest number keeps it, so no sentence leaves the corpus; none: all lose
    it."""
    min_left: float = Field(0.25, ge=0, le=1)
    """A document is dropped when less than this share of its bytes is left, or nothing but white space."""


class Deduplication(Schema):
    """What is repeated is kept once."""

    exact: ExactDeduplication | None = ExactDeduplication()
    """Equal documents; null leaves the step out."""
    near: NearDeduplication | None = NearDeduplication()
    """Nearly equal documents; null leaves the step out."""
    lines: LineDeduplication | None = None
    """Repeated lines or paragraphs; null leaves the step out."""
    scope: Literal["within", "across"] = "across"
    """within: each source on its own; across: all sources together."""
    precedence: list[str] = Field(default_factory=list)
    """Names of sources, the one that keeps a document first; those not named follow in the recipe's order."""

    @field_validator("precedence")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is named twice; keep one of them")
        return names

    def order(self, sources: Sequence[str]) -> list[str]:
        """`sources`, the one that keeps a document first; `InputError` for a precedence that is no source."""
        for name in self.precedence:
            if name not in sources:
                raise InputError(f"deduplication.precedence: no source {name!r}{suggest(name, sources)}")
        return [*self.precedence, *(name for name in sources if name not in self.precedence)]


class DecontaminationSet(Schema):
    """One evaluation set, a file of JSON lines."""

    path: str = Field(min_length=1)
    """The file, one item a line; also .gz or .zst."""
    fields: list[str] = Field(default_factory=list)
    """Keys whose texts are joined with spaces, in this order; `a.b` goes into an object, lists are joined.
    Default: by the item's keys, the query alone and the query with its right answer, for the shapes of ARC,
    OpenBookQA, BoolQ, PIQA, WinoGrande, HellaSwag, SciQ and LAMBADA; else the keys `query`, `prompt`,
    `question` or `text` with `answer`."""


class Decontamination(Schema):
    """Training documents that have words of an evaluation set in a row (Brown et al., 2020, appendix C)."""

    sets: dict[str, DecontaminationSet] = Field(min_length=1)
    """Evaluation sets by name; the names are those of the report."""
    n: int = Field(13, ge=2, le=64)
    """Words in a row that count as a leak. Words are case-folded runs of letters and digits; punctuation and
    white space only separate."""
    min_words: int = Field(8, ge=1)
    """A text of fewer than n words is looked for as a whole if it has at least this many; a shorter one is
    not looked for, and counted."""
    action: Literal["drop", "cut", "report"] = "drop"
    """drop: the document goes; cut: the words go, with `margin` bytes on both sides; report: only count."""
    margin: int = Field(200, ge=0)
    """Bytes cut away on both sides of the words found, with `action: cut`."""

    @model_validator(mode="after")
    def _lengths(self) -> "Decontamination":
        if self.min_words > self.n:
            raise ValueError(f"min_words is {self.min_words}, more than n, {self.n}: lower it")
        return self
