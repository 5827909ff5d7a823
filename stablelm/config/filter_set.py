"""The filters of a source in a recipe: which groups of rules judge its documents, each with its settings.

`true` takes a group's published defaults; a mapping changes some of them; a group that is left out is off."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from stablelm.config.cleaning import (
    CodeHeuristics,
    Language,
    LineCorrections,
    Pii,
    UrlBlocklist,
    WordBlocklist,
)
from stablelm.config.filters import C4, FineWeb, GopherQuality, GopherRepetition, Heuristics
from stablelm.config.schema import Schema, suggest

PRESETS = {
    "web": ("gopher_repetition", "gopher_quality", "fineweb", "line_corrections", "pii"),
    "code": ("code", "pii"),
    "none": (),
}
"""Sets that a recipe may name instead of listing groups, all with their published defaults."""


class FilterSet(Schema):
    """The groups that judge a document, in this order; the first that drops it names the reason."""

    url_blocklist: UrlBlocklist | None = None
    """Lists of addresses and of words in them."""
    language: Language | None = None
    """The language of the text (needs `stablelm[langid]`)."""
    gopher_repetition: GopherRepetition | None = None
    """Repeated lines, paragraphs and n-grams (Rae et al., 2021)."""
    gopher_quality: GopherQuality | None = None
    """Length, symbols and common words (Rae et al., 2021)."""
    c4: C4 | None = None
    """Lines that end like sentences; it also removes the others (Raffel et al., 2020)."""
    fineweb: FineWeb | None = None
    """Short lines and repeated characters (Penedo et al., 2024)."""
    line_corrections: LineCorrections | None = None
    """Lines of navigation and counters; it also removes them (Penedo et al., 2023)."""
    code: CodeHeuristics | None = None
    """Line lengths, letters and generated files of source code (Li et al., 2023)."""
    word_blocklist: WordBlocklist | None = None
    """Lists of words that a document may not hold."""
    pii: Pii | None = None
    """Replaces e-mail addresses, public IP addresses, phone numbers and keys; drops nothing."""

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, values: Any) -> Any:
        if isinstance(values, str):
            if values not in PRESETS:
                raise ValueError(f"no set of filters {values!r}{suggest(values, list(PRESETS))}")
            values = dict.fromkeys(PRESETS[values], True)
        if not isinstance(values, Mapping):
            return values
        words: dict[bool, Any] = {True: {}, False: None}
        return {name: words[v] if isinstance(v, bool) else v for name, v in values.items()}

    def heuristics(self) -> Heuristics | None:
        """The four groups that one pass measures, None when none is on."""
        names = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
        given = {name: getattr(self, name) for name in names}
        return Heuristics(**given) if any(given.values()) else None

    def active(self) -> bool:
        """Whether a group is on."""
        return any(getattr(self, name) is not None for name in type(self).model_fields)
