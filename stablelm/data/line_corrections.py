"""RefinedWeb's line-wise corrections (Penedo et al., 2023, appendix G.2): menus, counters, buttons.

A line ends at LF; white space around it does not count, so CRLF is LF. The first rule that applies decides:
  upper-case   more than `max_uppercase` of its characters are upper-case letters: removed
  numeric      digits and white space alone: removed
  counter      numbers, each with a counted word, alone ("3 likes"): removed
  one word     fewer than `min_words` words: removed
  pattern      at most `short_line` words, and a pattern at its start, its end or anywhere: the pattern is
               cut, with the white space beside it, and the line too if nothing else is on it
Blank lines stay. A removed line goes with its line break. The words of all these lines, cut ones whole, are
compared with `max_share` of the document's words, as the paper says; words are what white space separates.
Departures from DCLM's code for the same rules, where the paper leaves it open: a pattern ends where its word
ends ("items in cart" is not in "items in cartons"), the share counts cut lines whole, counters may follow
each other. Costs 10–20 ns a byte. Rejected: a Python loop over lines."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config.cleaning import LineCorrections
from stablelm.data.edits import Edits
from stablelm.data.texts import Texts

RULES = ("uppercase", "numeric", "counter", "one_word", "pattern")
PATTERN = RULES.index("pattern")
Array = NDArray[np.int64]


def measured_by(settings: LineCorrections) -> dict[str, Any]:
    """What the numbers depend on: all but the threshold."""
    return settings.model_dump(exclude={"max_share"}) | {"unicode": unicodedata.unidata_version}


def measure(texts: Texts, settings: LineCorrections) -> dict[str, NDArray[Any]]:
    """int64 [n] each: `lines.words` of the document, `lines.removed_words` and `lines.cut_words` in the lines
    named, and the number of lines each rule named."""
    return scan(texts, settings)[0]


def edits(texts: Texts, settings: LineCorrections) -> Edits:
    """The deletions."""
    return scan(texts, settings)[1]


def decide(columns: Mapping[str, NDArray[Any]], settings: LineCorrections) -> NDArray[Any]:
    """Why each document is dropped, "" keeps it; [n]."""
    named = columns["lines.removed_words"] + columns["lines.cut_words"]
    drop = named / np.maximum(columns["lines.words"], 1) > settings.max_share
    return np.where(drop, "lines: too many corrected", "").astype(object)


def scan(texts: Texts, settings: LineCorrections) -> tuple[dict[str, NDArray[Any]], Edits]:
    """`measure` and `edits` in one pass."""
    from stablelm.kernels.text.characters import character_kinds, count_lines, measure_lines

    lines = np.empty((count_lines(texts.data, texts.ends), 10), np.int64)
    measure_lines(texts.data, texts.ends, character_kinds(), lines)
    row, *_, words, characters, upper, digits, visible = lines.T
    rule = np.full(len(lines), -1)  # written from the last rule to the first, so the first stays
    cuts, bare = _cuts(texts, lines, settings)
    rule[list(cuts)] = PATTERN
    rule[(words > 0) & (words < settings.min_words)] = 3
    rule[_counters(texts, lines, settings)] = 2
    if settings.numeric:
        rule[(digits > 0) & (digits == visible)] = 1
    rule[upper / np.maximum(characters, 1) > settings.max_uppercase] = 0

    removed, cut, count = (rule >= 0) & (rule != PATTERN), rule == PATTERN, len(texts)
    columns = {
        "lines.words": _sums(row, words, count),
        "lines.removed_words": _sums(row[removed], words[removed], count),
        "lines.cut_words": _sums(row[cut], words[cut], count),
    }
    for number, name in enumerate(RULES):
        columns[f"lines.{name}"] = np.bincount(row[rule == number], minlength=count).astype(np.int64)
    gone = removed.copy()
    gone[[line for line in bare if cut[line]]] = True
    spans = _runs(texts, lines, gone)
    spans += [span for line, parts in cuts.items() if cut[line] and not gone[line] for span in parts]
    starts = [texts.start(number) for number in range(count)]
    return columns, Edits.of((r, a - starts[r], b - starts[r], "") for r, a, b in spans)


def _sums(rows: Array, values: Array, count: int) -> Array:
    return np.bincount(rows, weights=values, minlength=count).astype(np.int64)


def _counters(texts: Texts, lines: Array, settings: LineCorrections) -> list[int]:
    """The lines of counters alone. A number and a letter never begin alike, so no line is tried twice."""
    if not settings.counters:
        return []
    counted = "|".join(re.escape(word) for word in sorted(settings.counters, key=len, reverse=True))
    whole = re.compile(rf"\W*(?:\d[\d.,]*[kmb]?\s*(?:{counted})\b\W*)+", re.IGNORECASE)
    found = []
    for line in np.flatnonzero((lines[:, 8] > 0) & (lines[:, 5] <= 20)).tolist():
        text = texts.data[lines[line, 3] : lines[line, 4]].tobytes().decode()
        if whole.fullmatch(text):
            found.append(line)
    return found


def _cuts(
    texts: Texts, lines: Array, settings: LineCorrections
) -> tuple[dict[int, list[tuple[int, int, int]]], list[int]]:
    """Row, start, end of what is cut by line, and the lines on which nothing else stands."""
    raw = texts.data.tobytes()
    lower = raw.lower()
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    listed = [(p, place) for place in ("starts", "ends", "anywhere") for p in getattr(settings, place)]
    for pattern, place in listed:
        wanted = pattern.encode().lower()
        at = lower.find(wanted)
        while at >= 0:
            line, stop = int(np.searchsorted(lines[:, 1], at, side="right")) - 1, at + len(wanted)
            row, start, end, first, last, words = lines[line, :6].tolist()
            if stop <= end and words <= settings.short_line and _apart(raw, start, at, stop, end):
                if place == "starts" and at == first:
                    found[line].append((row, at, _past_blanks(raw, stop, last)))
                elif (place == "ends" and stop == last) or place == "anywhere":
                    found[line].append((row, _before_blanks(raw, start, at), stop))
            at = lower.find(wanted, stop)
    bare = []
    for line, spans in found.items():
        start, end = lines[line, 1:3].tolist()
        left = bytearray(raw[start:end])
        for _, begin, stop in spans:
            left[begin - start : stop - start] = b" " * (stop - begin)
        if not left.decode().strip():
            bare.append(line)
    return found, bare


def _apart(raw: bytes, start: int, at: int, stop: int, end: int) -> bool:
    """Does raw[at:stop] begin and end where words do, within the line raw[start:end]?"""
    before = raw[max(start, at - 4) : at].decode(errors="ignore")[-1:]
    after = raw[stop : min(end, stop + 4)].decode(errors="ignore")[:1]
    inner = raw[at:stop].decode()
    return not ((_wordly(before) and _wordly(inner[0])) or (_wordly(after) and _wordly(inner[-1])))


def _wordly(char: str) -> bool:
    return char.isalnum() or char == "_"


def _past_blanks(raw: bytes, place: int, end: int) -> int:
    while place < end and raw[place] in b" \t":
        place += 1
    return place


def _before_blanks(raw: bytes, start: int, place: int) -> int:
    while place > start and raw[place - 1] in b" \t":
        place -= 1
    return place


def _runs(texts: Texts, lines: Array, gone: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Whole lines with their breaks, neighbours together; at the end of a text the break before them goes."""
    row, start, end = lines[:, :3].T
    joined = gone[1:] & gone[:-1] & (row[1:] == row[:-1])
    opens = np.flatnonzero(gone & ~np.concatenate([[False], joined]))
    closes = np.flatnonzero(gone & ~np.concatenate([joined, [False]]))
    spans = []
    for first, last in zip(opens.tolist(), closes.tolist(), strict=True):
        begin, stop, of = int(start[first]), int(end[last]), int(row[first])
        if stop < texts.ends[of]:
            stop += 1
        elif begin > texts.start(of):
            begin -= 1
            if begin > start[first - 1] and texts.data[begin - 1] == 13:
                begin -= 1
        spans.append((of, begin, stop))
    return spans
