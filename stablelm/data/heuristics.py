"""Gopher's, C4's and FineWeb's quality rules: numbers once, decisions as often as thresholds change.

One pass over a document's words and lines (`kernels/text/heuristics.py`) counts everything all four groups
ask for; `decide` divides and compares. Counts are whole numbers, so a decision is the published formula in
float64, exactly. Reasons are tried in the order datatrove's filters run (Gopher repetition, Gopher quality,
C4, FineWeb), and inside a group in its filter's order. Words and sentences are spaCy's for English, as
there. Not here: C4's list of bad words (a blocklist, see `blocklists.py`), its language test
(`language.py`).
Costs 60 ns a byte. Rejected: storing ratios (a threshold on characters would need the text again)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config.filters import C4, FineWeb, GopherQuality, GopherRepetition, Heuristics
from stablelm.data.texts import Texts

Columns = Mapping[str, NDArray[Any]]
MEASURE = 1
"""Version of the numbers: rises when the same text gives others."""


def measured_by(settings: Heuristics) -> dict[str, Any]:
    """What the numbers depend on, JSON-able; everything else in `settings` is a threshold."""
    quality, fineweb = settings.gopher_quality or GopherQuality(), settings.fineweb or FineWeb()
    line_rules = {"end_mark", "min_line_words", "max_word_length", "citations", "javascript", "policies"}
    return {
        "version": MEASURE,
        "stop_words": sorted(set(quality.stop_words)),
        "c4": (settings.c4 or C4()).model_dump(include=line_rules),
        "fineweb": fineweb.model_dump(include={"short_line", "end_marks"}),
    }


def measure(texts: Texts, settings: Heuristics) -> dict[str, NDArray[np.int64]]:
    """Counts of every document by name (`kernels.text.heuristics.COLUMNS`), each int64 [n].

    All groups are measured, also those that `settings` does not name. `c4.lorem_ipsum_line` and
    `c4.curly_bracket_line` are the first line, from 0, with what they say, or −1; `fineweb_after_c4.*` are
    FineWeb's numbers of what C4 leaves, `c4.words` and `c4.characters` its size."""
    from stablelm.kernels.text.heuristics import COLUMNS, measure_documents

    out = np.empty((len(texts), len(COLUMNS)), np.int64)
    lexicon = _lexicon(settings)
    short = (settings.fineweb or FineWeb()).short_line
    measure_documents(
        _read_only(texts.data), _read_only(texts.ends), lexicon, _line_rules(settings), short, out
    )
    return {name: out[:, number].copy() for number, name in enumerate(COLUMNS)}


def decide(columns: Columns, settings: Heuristics) -> NDArray[Any]:
    """Why each document is dropped, "" keeps it; object [n]. The first group that drops it says why."""
    reasons = np.full(len(columns["text.characters"]), "", object)
    for found in (
        gopher_repetition(columns, settings.gopher_repetition) if settings.gopher_repetition else None,
        gopher_quality(columns, settings.gopher_quality) if settings.gopher_quality else None,
        c4(columns, settings.c4) if settings.c4 else None,
        fineweb(columns, settings.fineweb) if settings.fineweb else None,
    ):
        if found is not None:
            reasons = np.where(reasons == "", found, reasons)
    return reasons


def edits(texts: Texts, settings: Heuristics) -> tuple[NDArray[np.int64], ...]:
    """What C4's rules change: rows, starts, ends, codes, each [k], sorted by row and start.

    Bytes [start, end) of the row's text are deleted (code 0) or become a line feed (code 1; only where
    lines were separated by something else). What is left are the kept lines, one a line, as datatrove
    writes them."""
    from stablelm.kernels.text.line_edits import line_edits

    if settings.c4 is None:
        return tuple(np.zeros(0, np.int64) for _ in range(4))
    found = line_edits(
        _read_only(texts.data), _read_only(texts.ends), _lexicon(settings).kinds, _line_rules(settings)
    )
    return tuple(np.ascontiguousarray(column) for column in found.T)


def gopher_quality(columns: Columns, settings: GopherQuality) -> NDArray[Any]:
    """Reasons of Gopher's quality rules alone, object [n]."""
    solid, words = columns["gopher.words"], columns["text.words"]
    length = _share(columns["gopher.word_characters"], solid)
    lines, name = columns["gopher.lines"], "gopher quality: "
    return _first(
        (name + "too few words", _below(solid, settings.min_words)),
        (name + "too many words", _above(solid, settings.max_words)),
        (name + "words too short", _below(length, settings.min_word_length)),
        (name + "words too long", _above(length, settings.max_word_length)),
        (name + "too many hashes", _above(_share(columns["gopher.hashes"], words), settings.max_hashes)),
        (
            name + "too many ellipses",
            _above(_share(columns["gopher.ellipses"], words), settings.max_ellipses),
        ),
        (
            name + "too many bullets",
            _above(_share(columns["gopher.bullet_lines"], lines), settings.max_bullet_lines),
        ),
        (
            name + "too many lines end with an ellipsis",
            _above(_share(columns["gopher.ellipsis_lines"], lines), settings.max_ellipsis_lines),
        ),
        (
            name + "too few words with a letter",
            _below(_share(columns["gopher.alphabetic_words"], words), settings.min_alphabetic_words),
        ),
        (name + "too few stop words", _below(columns["gopher.stop_words"], settings.min_stop_words)),
    )


def gopher_repetition(columns: Columns, settings: GopherRepetition) -> NDArray[Any]:
    """Reasons of Gopher's repetition rules alone, object [n]."""
    characters, name = columns["text.characters"], "gopher repetition: "

    def share(column: str) -> NDArray[Any]:
        return _share(columns[f"repetition.{column}"], characters)

    paragraphs = _share(columns["repetition.duplicate_paragraphs"], columns["repetition.paragraphs"])
    lines = _share(columns["repetition.duplicate_lines"], columns["repetition.lines"])
    return _first(
        (name + "empty", characters == 0),
        (name + "duplicate paragraphs", _above(paragraphs, settings.max_duplicate_paragraphs)),
        (
            name + "characters in duplicate paragraphs",
            _above(share("duplicate_paragraph_characters"), settings.max_duplicate_paragraph_characters),
        ),
        (name + "duplicate lines", _above(lines, settings.max_duplicate_lines)),
        (
            name + "characters in duplicate lines",
            _above(share("duplicate_line_characters"), settings.max_duplicate_line_characters),
        ),
        *(
            (f"{name}top {n}-gram", _above(share(f"top_{n}gram_characters"), most))
            for n, most in settings.max_top_ngrams.items()
        ),
        *(
            (f"{name}duplicate {n}-grams", _above(share(f"duplicate_{n}gram_characters"), most))
            for n, most in settings.max_duplicate_ngrams.items()
        ),
    )


def c4(columns: Columns, settings: C4) -> NDArray[Any]:
    """Reasons of C4's rules alone, object [n]."""
    lorem, curly = columns["c4.lorem_ipsum_line"], columns["c4.curly_bracket_line"]
    lorem_first = (lorem >= 0) & ~(settings.curly_bracket & (curly >= 0) & (curly < lorem))
    return _first(
        ("c4: lorem ipsum", lorem_first & settings.lorem_ipsum),
        ("c4: curly bracket", (curly >= 0) & settings.curly_bracket),
        ("c4: too few sentences", _below(columns["c4.sentences"], settings.min_sentences)),
    )


def fineweb(columns: Columns, settings: FineWeb) -> NDArray[Any]:
    """Reasons of FineWeb's rules alone, object [n]."""
    group = "fineweb" if settings.of == "text" else "fineweb_after_c4"
    size = "text" if settings.of == "text" else "c4"
    lines, feeds = columns[f"{group}.lines"], columns[f"{group}.line_feeds"]
    repeated = _share(columns[f"{group}.duplicate_characters"], columns[f"{size}.characters"] - feeds)
    return _first(
        ("fineweb: empty", lines == 0),
        (
            "fineweb: few lines end a sentence",
            _below(_share(columns[f"{group}.ended_lines"], lines), settings.min_ended_lines),
        ),
        (
            "fineweb: short lines",
            _above(_share(columns[f"{group}.short_lines"], lines), settings.max_short_lines),
        ),
        ("fineweb: duplicate lines", _above(repeated, settings.max_duplicate_characters)),
        ("fineweb: a list", _above(_share(feeds, columns[f"{size}.words"]), settings.max_line_feeds)),
    )


def _share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole in float64; 0 of nothing."""
    result: NDArray[np.float64] = part / np.maximum(whole, 1)
    return result


def _below(values: NDArray[Any], least: float | None) -> NDArray[np.bool_]:
    return np.zeros(len(values), bool) if least is None else values < least


def _above(values: NDArray[Any], most: float | None) -> NDArray[np.bool_]:
    return np.zeros(len(values), bool) if most is None else values > most


def _first(*rules: tuple[str, NDArray[np.bool_]]) -> NDArray[Any]:
    """The reason of the first rule that applies."""
    reasons = [np.array(reason, object) for reason, _ in rules]
    return np.select([applies for _, applies in rules], reasons, "").astype(object)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """One type for mapped files and arrays in memory, so that the loops are compiled once."""
    view = np.ascontiguousarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view


def _lexicon(settings: Heuristics) -> Any:
    from stablelm.kernels.text.classes import terminals
    from stablelm.kernels.text.splitting import lexicon

    quality, lines = settings.gopher_quality or GopherQuality(), settings.fineweb or FineWeb()
    marks = terminals() if lines.end_marks is None else list(lines.end_marks)
    return lexicon(tuple(sorted(set(quality.stop_words))), tuple(marks))


def _line_rules(settings: Heuristics) -> Any:
    from stablelm.kernels.text.lines import LineRules

    rules = settings.c4 or C4()
    least = -1 if rules.min_line_words is None else rules.min_line_words
    longest = -1 if rules.max_word_length is None else rules.max_word_length
    return LineRules(least, longest, rules.end_mark, rules.citations, rules.javascript, rules.policies)
