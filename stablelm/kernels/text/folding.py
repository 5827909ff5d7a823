"""Spellings that count as one: what the loops over text compare instead of characters.

Policy: a character becomes the full decomposition of its case-folded form (Unicode's NFKD and full case
folding), so case, ligatures, full-width forms and composed or decomposed accents make no difference;
invisible characters (soft hyphen, zero-width space, variation selectors, byte order mark) vanish. The order
of several accents on one letter is left as it is. What is a letter is asked of Unicode 3.2, which every
Python carries beside its own version: a character that came later is itself and part of a word, unless it
lies in a block of symbols. Decompositions and case folding of what exists never change (Unicode's stability
policy), so the result does not depend on the Python that runs. Costs 0.2 s and 1.2 MB once a process.
Rejected: `unicodedata.normalize` on the text (30 MB/s, and offsets are lost), Python's own tables (a run
repeated years later reads letters where there were none)."""

import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stablelm.kernels.text.compilation import compiled, inlined

SEPARATOR, SPACE, WORD, ALONE, MARK = range(5)
"""Kinds: ALONE is a character of a script written without spaces, a word by itself; MARK belongs to the
character before it."""
BEYOND = 0x2FA20
"""From here on every character is itself and ALONE."""

_WITHOUT_SPACES = (
    (0x0E01, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FD5), (0x3005, 0x3007),
    (0x3041, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F), (0x20000, BEYOND - 1),
)  # fmt: skip
_LATER_SYMBOLS = (
    (0x20A0, 0x20CF), (0x2100, 0x214F), (0x2190, 0x2BFF), (0x2E00, 0x2E7F), (0x2FF0, 0x303F),
    (0x31C0, 0x31EF), (0x3200, 0x33FF), (0x4DC0, 0x4DFF), (0xA6F2, 0xA6F7), (0xFE10, 0xFE1F),
    (0xFFF0, 0xFFFF), (0x10100, 0x1018F), (0x1D000, 0x1D3FF), (0x1F000, 0x1FAFF),
)  # fmt: skip
_INVISIBLE = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x180B, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
)  # fmt: skip
_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85"
_UNCHANGED = ((0x3400, 0x9FFF), (0x20000, 0x2F7FF))  # ideographs: nothing to ask


class Folding(NamedTuple):
    """The tables the kernels take."""

    folded: NDArray[np.int32]
    """By code point, [BEYOND]: the one code point it becomes, or −1 − i where `more` has them."""
    kinds: NDArray[np.uint8]
    """By code point, [BEYOND]."""
    more: NDArray[np.int32]
    """At i: how many code points (0 too), then these."""


@cache
def folding() -> Folding:
    """The tables, read only."""
    folded = np.arange(BEYOND, dtype=np.int32)
    kinds = np.zeros(BEYOND, np.uint8)
    more: list[int] = []
    category = unicodedata.ucd_3_2_0.category
    unchanged = {code for first, last in _UNCHANGED for code in range(first, last + 1)}
    symbols = {code for first, last in _LATER_SYMBOLS for code in range(first, last + 1)}
    for code in range(BEYOND):
        if code in unchanged or 0xD800 <= code <= 0xF8FF:  # surrogates and private use only separate
            continue
        char, kind = chr(code), category(chr(code))
        if kind == "Cn":
            kinds[code] = SEPARATOR if code in symbols else WORD
            continue
        if kind[0] in "LN":
            kinds[code] = WORD
        elif kind[0] == "M":
            kinds[code] = MARK
        elif kind[0] == "Z" or char in _SPACES:
            kinds[code] = SPACE
        spelled = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
        if len(spelled) == 1:
            folded[code] = ord(spelled)
        elif spelled != char:
            folded[code] = -1 - len(more)
            more += [len(spelled), *map(ord, spelled)]
    for first, last in _WITHOUT_SPACES:
        part = kinds[first : last + 1]
        part[(part == WORD) | (first >= 0x3400) & (part == SEPARATOR)] = ALONE
    for first, last in _INVISIBLE:
        folded[first : last + 1] = -1 - len(more)
    more.append(0)
    tables = Folding(folded, kinds, np.array(more, np.int32))
    for table in tables:
        table.flags.writeable = False
    return tables


@inlined
def decode(data: Any, place: int, end: int) -> tuple[Any, int]:
    """Code point at `place` and its bytes; bytes that are no UTF-8 count as one character each."""
    byte = np.int64(data[place])
    if byte < 0x80:
        return byte, 1
    if 0xC0 <= byte < 0xE0 and place + 1 < end:
        return (byte & 0x1F) << 6 | (np.int64(data[place + 1]) & 0x3F), 2
    if 0xE0 <= byte < 0xF0 and place + 2 < end:
        second, third = np.int64(data[place + 1]), np.int64(data[place + 2])
        return (byte & 0xF) << 12 | (second & 0x3F) << 6 | (third & 0x3F), 3
    if byte >= 0xF0 and place + 3 < end:
        second, third, fourth = (
            np.int64(data[place + 1]),
            np.int64(data[place + 2]),
            np.int64(data[place + 3]),
        )
        return (byte & 0x7) << 18 | (second & 0x3F) << 12 | (third & 0x3F) << 6 | (fourth & 0x3F), 4
    return np.int64(0xFFFD), 1


@inlined
def spelling(code: Any, folded: Any, more: Any) -> tuple[Any, Any]:
    """What a code point becomes: how many, and the one itself or where in `more` they begin."""
    if code >= BEYOND:
        return np.int64(1), code
    value = np.int64(folded[code])
    if value >= 0:
        return np.int64(1), value
    return np.int64(more[-1 - value]), -value


@compiled
def fold(
    data: Any, place: int, end: int, folded: Any, kinds: Any, more: Any, state: Any, out: Any
) -> tuple[int, int]:
    """Writes the folded text of data[place:end] as UTF-8 to `out`, runs of white space as one space, none at
    both ends; returns (bytes written, place reached), to be called again until that is `end`.

    state [2], zero at first: whether a character was written, whether a space waits."""
    written, room = 0, len(out) - 80  # one character becomes at most 18
    while place < end and written < room:
        code, size = decode(data, place, end)
        count, value = spelling(code, folded, more)
        for piece in range(count):
            code = value if count == 1 else np.int64(more[value + piece])
            if code < BEYOND and kinds[code] == SPACE:
                state[1] = state[0]
                continue
            if state[1]:
                out[written] = 32
                written += 1
                state[1] = 0
            state[0] = 1
            if code < 0x80:
                out[written] = code
                written += 1
            elif code < 0x800:
                out[written], out[written + 1] = 0xC0 | code >> 6, 0x80 | code & 0x3F
                written += 2
            elif code < 0x10000:
                out[written], out[written + 1] = 0xE0 | code >> 12, 0x80 | code >> 6 & 0x3F
                out[written + 2] = 0x80 | code & 0x3F
                written += 3
            else:
                out[written], out[written + 1] = 0xF0 | code >> 18, 0x80 | code >> 12 & 0x3F
                out[written + 2], out[written + 3] = 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
                written += 4
        place += size
    return written, place
