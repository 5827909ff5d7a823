"""Lines of a text: C4's rules for a line, sentences in it, and the counts of FineWeb and Gopher.

Costs 5 ns a byte. Rejected: Python's lower() and `in` on each line (a string for every line)."""

from typing import Any, NamedTuple

import numpy as np

from stablelm.kernels.text.classes import DECIMAL, PUNCTUATION, SENTENCE, SPACE, TERMINAL
from stablelm.kernels.text.compilation import compiled
from stablelm.kernels.text.repetition import seen
from stablelm.kernels.text.words import hash_of

KEPT, LONG_WORD, NO_END, FEW_WORDS, JAVASCRIPT, POLICY = range(6)
LOREM_IPSUM, CURLY_BRACKET = 8, 16
"""Added to a verdict: the line has what drops the whole document."""
LINE_FEED, BRACKET, CLOSING, CURLY, DOT = 10, 91, 93, 123, 46

_PHRASES = (
    "lorem ipsum",
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_CITATIONS = ("[edit]", "[citation needed]")


def _rows(texts: tuple[str, ...]) -> Any:
    """Code points, one text a row, 0 after each."""
    rows = np.zeros((len(texts), max(map(len, texts)) + 1), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = [ord(char) for char in text]
    return rows


def _followers() -> Any:
    """The second letter of the phrases by their first, in either case, [128]; 0: none begins so."""
    table = np.zeros(128, np.int32)
    for phrase in _PHRASES:
        for first in (phrase[0], phrase[0].upper()):
            assert table[ord(first)] in (0, ord(phrase[1])), "phrases of one first letter share the second"
            table[ord(first)] = ord(phrase[1])
    return table


PHRASES, CITATIONS, FOLLOWERS = _rows(_PHRASES), _rows(_CITATIONS), _followers()


class LineRules(NamedTuple):
    """Which lines C4 keeps; see `stablelm.config.filters.C4`."""

    min_words: int
    max_word_length: int
    """−1: any."""
    end_mark: bool
    citations: bool
    javascript: bool
    policies: bool


@compiled
def stripped(kinds: Any, begin: int, end: int) -> tuple[int, int]:
    """[begin, end) without the white space at both ends."""
    while begin < end and kinds[begin] & SPACE:
        begin += 1
    while end > begin and kinds[end - 1] & SPACE:
        end -= 1
    return begin, end


@compiled
def next_break(codes: Any, kinds: Any, begin: int, end: int, breaks: int) -> tuple[int, int]:
    """Where the line at `begin` ends, and where the next begins (`str.splitlines`: CR LF is one break)."""
    place = begin
    while place < end and not kinds[place] & breaks:
        place += 1
    after = min(place + 1, end)
    if place + 1 < end and codes[place] == 13 and codes[place + 1] == LINE_FEED:
        after = place + 2
    return place, after


@compiled
def _matches(codes: Any, place: int, end: int, wanted: Any) -> int:
    """Length of `wanted` (0 ends it) if it stands at `place`, else 0."""
    size = 0
    while wanted[size] != 0:
        if place + size >= end or _lower(codes[place + size]) != wanted[size]:
            return 0
        size += 1
    return size


@compiled
def _lower(code: int) -> int:
    """Lower case as far as ASCII phrases need it; the Kelvin sign becomes a k."""
    if 65 <= code <= 90:
        return code + 32
    return 107 if code == 0x212A else code


@compiled
def phrases_in(codes: Any, begin: int, end: int) -> int:
    """Bit i: phrase i is there, in any case."""
    found = 0
    for place in range(begin, end - 1):
        follower = FOLLOWERS[codes[place] & 127]
        if follower and (codes[place + 1] | 32) == follower:  # two letters rule nearly every place out
            for number in range(len(PHRASES)):
                if _matches(codes, place, end, PHRASES[number]):
                    found |= 1 << number
    return found


@compiled
def citation_at(codes: Any, kinds: Any, place: int, end: int) -> int:
    """Characters of [12], [], [edit] or [citation needed] at `place`; 0: it is none."""
    if codes[place] != BRACKET:
        return 0
    after = place + 1
    while after < end and kinds[after] & DECIMAL:
        after += 1
    if after < end and codes[after] == CLOSING:
        return after + 1 - place
    for number in range(len(CITATIONS)):
        size = 0
        while (
            CITATIONS[number, size] and place + size < end and codes[place + size] == CITATIONS[number, size]
        ):
            size += 1
        if CITATIONS[number, size] == 0:
            return size
    return 0


@compiled
def judge(
    codes: Any, kinds: Any, begin: int, end: int, rules: Any, line: Any, line_kinds: Any
) -> tuple[int, int]:
    """C4's verdict on a line without white space at its ends, and its length without citations.

    If the length is another one, the line without citations is in `line` and its flags in `line_kinds`."""
    words, longest, place, cited = 0, 0, begin, False
    while place < end:
        start = place
        while place < end and not kinds[place] & SPACE:
            cited = cited or codes[place] == BRACKET
            place += 1
        words, longest = words + (place > start), max(longest, place - start)
        while place < end and kinds[place] & SPACE:
            place += 1
    size = end - begin
    if 0 <= rules.max_word_length < longest:
        return LONG_WORD, size
    if cited and rules.citations:
        place, made = begin, 0
        while place < end:
            skipped = citation_at(codes, kinds, place, end)
            if not skipped:
                line[made], line_kinds[made] = codes[place], kinds[place]
                made += 1
            place += max(skipped, 1)
        if made != size:
            return _judge_rest(line, 0, made, words, rules), made
    return _judge_rest(codes, begin, end, words, rules), size


@compiled
def ends_with_dots(codes: Any, begin: int, end: int) -> bool:
    """Whether the last three characters are dots."""
    return end - begin > 2 and codes[end - 1] == DOT and codes[end - 2] == DOT and codes[end - 3] == DOT


@compiled
def _judge_rest(codes: Any, begin: int, end: int, words: int, rules: Any) -> int:
    if rules.end_mark:
        if begin == end or codes[end - 1] not in (46, 63, 33, 34, 39):  # . ? ! " '
            return NO_END
        if ends_with_dots(codes, begin, end):
            return NO_END
    if words < rules.min_words:
        return FEW_WORDS
    found = phrases_in(codes, begin, end)
    verdict = LOREM_IPSUM if found & 1 else 0
    if rules.javascript and found & 2:
        return verdict + JAVASCRIPT
    for place in range(begin, end):
        if codes[place] == CURLY:
            verdict += CURLY_BRACKET
            break
    return verdict + (POLICY if rules.policies and found > 3 else KEPT)


@compiled
def sentences(codes: Any, kinds: Any, bounds: Any, gaps: Any, first: int, last: int, end: int) -> int:
    """Sentences in words first to last − 1 of a line that ends at `end`, at least 1 (spaCy's sentencizer).

    A word that is neither an end mark nor punctuation begins a new one after an end mark; so does more than
    one space, which spaCy takes for a word."""
    count, ended = 1, False
    for word in range(first, last):
        begin, stop = bounds[word, 0], bounds[word, 1]
        if ended and word > first and gaps[word]:
            count, ended = count + 1, False
        if stop - begin == 1 and kinds[begin] & SENTENCE:
            ended = True
        elif ended:
            place = begin
            while place < stop and kinds[place] & PUNCTUATION:
                place += 1
            if place < stop:
                count, ended = count + 1, False
    rest = end - bounds[last - 1, 1] if ended else 0
    return count + (rest > 1 or (rest == 1 and codes[end - 1] != 32))


@compiled
def line_counts(
    codes: Any, kinds: Any, begin: int, end: int, short: int, keys: Any, out: Any, blank: Any
) -> None:
    """Counts of lines between line feeds; `keys` has room for them.

    out [5]: of lines that are not blank, all, those with an end mark last, those of at most `short`
    characters, the characters of those that were there before; and line feeds. blank [3]: of pieces between
    runs of line feeds (Gopher's lines), all, those that were there before, and their characters."""
    keys[:] = 0
    out[:], blank[:] = 0, 0
    place = begin
    while place <= end:
        start = place
        while place < end and codes[place] != LINE_FEED:
            place += 1
        out[4] += place < end
        if place > start or start == begin or place == end:  # an empty piece is at the very start or end only
            again = seen(keys, hash_of(codes, start, place))
            blank[0] += 1
            blank[1] += again
            blank[2] += (place - start) * again
            first, _ = stripped(kinds, start, place)
            if first < place:
                out[0] += 1
                out[1] += kinds[place - 1] & TERMINAL != 0
                out[2] += place - start <= short
                out[3] += (place - start) * again
        place += 1
