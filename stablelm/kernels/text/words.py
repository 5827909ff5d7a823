"""Text to words, as spaCy's rules for English cut it, in time linear in the text.

Policy: Gopher's, C4's and FineWeb's numbers count words and sentences, so a published threshold means what
it says only with the words it was chosen on; datatrove takes them from spaCy's blank English pipeline.
White space separates chunks; from a chunk, punctuation is taken off at both ends, one piece a side and
turn, until a special word, or an address, or a core is left, which is cut at inner hyphens, commas, slashes
and the like. Then special words that were cut apart (`:` `)`) are put together again, the longest first.
Costs 20 ns a byte.
Rejected: splitting at \\w boundaries (don't, e.g., U.S. and every URL come out otherwise)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stablelm.kernels.text.classes import (
    ALPHA,
    BEFORE_DOT,
    CURRENCY,
    INFIX,
    LOWER,
    PLAIN,
    PREFIX,
    QUOTE,
    SUFFIX,
    UPPER,
)
from stablelm.kernels.text.compilation import compiled
from stablelm.kernels.text.urls import is_address

BASE, SPREAD, SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(29)
DOT, HYPHEN, ELLIPSIS, DASH, LONG_DASH, DOLLAR, PLUS = 46, 45, 0x2026, 0x2013, 0x2014, 36, 43


class Lexicon(NamedTuple):
    """What the loops look up. A table of keys is a hash table with linear probing, its size a power of 2;
    0: free."""

    kinds: NDArray[np.uint32]
    """Flags by code point, [BEYOND]."""
    special_keys: NDArray[np.uint64]
    special_values: NDArray[np.int64]
    """Number of the special word whose hash is the key."""
    cuts: NDArray[np.int32]
    """Lengths of the up to three words a special word is cut into, [specials, 3]."""
    shapes: NDArray[np.uint16]
    """Bit n of [first, last]: a special word of n characters begins and ends so (last 7 bits of each),
    [128, 128]."""
    unit_keys: NDArray[np.uint64]
    """Units that are split off a number."""
    run_keys: NDArray[np.uint64]
    run_values: NDArray[np.int64]
    """Number of the special word that was cut into this run of words; −1 where only a beginning of one."""
    run_shapes: NDArray[np.uint16]
    """As `shapes`, of the first word of a run."""
    stop_keys: NDArray[np.uint64]
    stop_values: NDArray[np.int64]
    """Number of the stop word."""
    longest_stop: int
    """Characters of the longest stop word."""


@compiled
def decode(data: Any, start: int, end: int, table: Any, codes: Any, kinds: Any) -> int:
    """Code points and flags of UTF-8 bytes [start, end); returns how many. A cut-off character becomes
    U+FFFD."""
    count, place, beyond = 0, start, len(table)
    while place < end:
        byte = int(data[place])
        if byte < 0x80:
            code, size = byte, 1
        elif byte < 0xE0:
            size = 2
            code = (byte & 0x1F) << 6 | (data[place + 1] & 0x3F) if place + 1 < end else 0xFFFD
        elif byte < 0xF0:
            size, code = 3, 0xFFFD
            if place + 2 < end:
                code = (byte & 0xF) << 12 | (data[place + 1] & 0x3F) << 6 | (data[place + 2] & 0x3F)
        else:
            size, code = 4, 0xFFFD
            if place + 3 < end:
                code = (byte & 0x7) << 18 | (data[place + 1] & 0x3F) << 12
                code |= (data[place + 2] & 0x3F) << 6 | (data[place + 3] & 0x3F)
        codes[count] = code
        kinds[count] = table[code] if code < beyond else 0
        place += size
        count += 1
    return count


@compiled
def hash_of(codes: Any, begin: int, end: int) -> Any:
    """Polynomial hash of characters, the first with the lowest power; never 0 for one character or more in
    practice."""
    value = np.uint64(0)
    for place in range(end - 1, begin - 1, -1):
        value = value * BASE + np.uint64(codes[place] + 1)
    return value


@compiled
def slot_of(keys: Any, key: Any) -> Any:
    """Where `key` is, or the free place where it would be."""
    mask = len(keys) - 1
    slot = np.int64((key ^ (key >> SHIFT)) * SPREAD >> SHIFT) & mask
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@compiled
def has_shape(shapes: Any, codes: Any, begin: int, end: int) -> bool:
    """Whether a word of this length, first and last character is in the list that `shapes` belongs to."""
    size = end - begin
    return size < 16 and (shapes[codes[begin] & 127, codes[end - 1] & 127] >> size) & 1 != 0


@compiled
def _special(shapes: Any, keys: Any, values: Any, codes: Any, begin: int, end: int) -> int:
    """Number of the special word codes[begin:end], or −1."""
    if not has_shape(shapes, codes, begin, end):
        return -1
    key = hash_of(codes, begin, end)
    slot = slot_of(keys, key)
    return values[slot] if keys[slot] == key else -1


@compiled
def _digit(code: int) -> bool:
    return 48 <= code <= 57


@compiled
def prefix_length(codes: Any, kinds: Any, begin: int, end: int) -> int:
    """Characters that are taken off at the beginning, at most one piece."""
    code = codes[begin]
    if kinds[begin] & PREFIX:
        return 1
    if code == DOT:
        place = begin + 1
        while place < end and codes[place] == DOT:
            place += 1
        return place - begin if place - begin > 1 else 0
    if code == PLUS:
        return 0 if begin + 1 < end and _digit(codes[begin + 1]) else 1
    if code == 85 and begin + 2 < end and codes[begin + 1] == 83 and codes[begin + 2] == DOLLAR:  # US$
        return 3
    if (code == 67 or code == 65) and begin + 1 < end and codes[begin + 1] == DOLLAR:  # C$, A$
        return 2
    return 0


@compiled
def suffix_length(codes: Any, kinds: Any, begin: int, end: int, units: Any) -> int:
    """Characters that are taken off at the end: the longest piece that a rule names."""
    if begin >= end:
        return 0
    last, code, longest = end - 1, codes[end - 1], 0
    kind = kinds[last]
    if kind & SUFFIX:
        longest = 2 if code == ELLIPSIS and last > begin and codes[last - 1] == ELLIPSIS else 1
    elif code == DOT:
        place = last
        while place > begin and codes[place - 1] == DOT:
            place -= 1
        if end - place > 1:
            longest = end - place
        elif place > begin:
            before = kinds[place - 1]
            if before & BEFORE_DOT:
                longest = 1
            elif before & UPPER and place - 1 > begin:
                degrees = codes[place - 2] == 0xB0 and codes[place - 1] in (70, 67, 75)  # °F °C °K
                longest = 1 if kinds[place - 2] & UPPER or degrees else 0
    elif (code == 115 or code == 83) and last > begin and codes[last - 1] in (39, 0x2019):  # 's
        longest = 2
    if last > begin:
        if _digit(codes[last - 1]) and (code == PLUS or kind & CURRENCY):
            longest = max(longest, 1)
        elif code == DOLLAR and last - 1 > begin:
            if codes[last - 1] in (67, 65) and _digit(codes[last - 2]):
                longest = 2
            elif codes[last - 1] == 83 and codes[last - 2] == 85 and last - 2 > begin:
                longest = 3 if _digit(codes[last - 3]) else longest
        place = last
        while place > begin and end - place < 6 and not _digit(codes[place]):
            place -= 1
        if place < last and end - 1 - place > longest and _digit(codes[place]):
            key = hash_of(codes, place + 1, end)
            if units[slot_of(units, key)] == key:
                longest = end - 1 - place
    return longest


@compiled
def infix_length(codes: Any, kinds: Any, begin: int, place: int, end: int) -> int:
    """Characters of the mark at `place` that cuts the core [begin, end) in three; 0: no cut."""
    code, kind = codes[place], kinds[place]
    if kind & INFIX:
        return 1
    if kind & ALPHA:
        return 0
    if code == DOT and place + 1 < end and codes[place + 1] == DOT:
        after = place + 2
        while after < end and codes[after] == DOT:
            after += 1
        return after - place
    if place == begin or place + 1 >= end:
        return 0
    before, after_kind, number = kinds[place - 1], kinds[place + 1], _digit(codes[place - 1])
    if code == DOT:
        return 1 if before & (LOWER | QUOTE) and after_kind & (UPPER | QUOTE) else 0
    if code == 44:
        return 1 if before & ALPHA and after_kind & ALPHA else 0
    if number and code in (PLUS, HYPHEN, 42, 94) and (_digit(codes[place + 1]) or codes[place + 1] == HYPHEN):
        return 1
    if not (number or before & ALPHA):
        return 0
    if code in (58, 60, 62, 61, 47, 126, DASH):  # : < > = / ~
        return 1 if after_kind & ALPHA else 0
    if code in (HYPHEN, LONG_DASH):
        after, most = place + 1, 3 if code == HYPHEN else 2
        while after < end and after - place < most and codes[after] == code:
            after += 1
        return after - place if after < end and kinds[after] & ALPHA else 0
    return 0


@compiled
def cut_chunk(
    shapes: Any, keys: Any, values: Any, cuts: Any, units: Any, codes: Any, kinds: Any, begin: int, end: int,
    bounds: Any, count: int,
) -> int:  # fmt: skip
    """Writes the words of a chunk without white space to bounds[count:], [words, 2]; returns the new
    count."""
    first, length, taken = begin, -1, 0
    marked = _next_mark(kinds, begin, end)
    while marked < end and end - first != length and _special(shapes, keys, values, codes, first, end) < 0:
        length = end - first
        before = prefix_length(codes, kinds, first, end)
        if before:
            bounds[count, 0], bounds[count, 1] = first, first + before
            if before < length and _special(shapes, keys, values, codes, first + before, end) >= 0:
                first, count = first + before, count + 1
                break
        after = suffix_length(codes, kinds, first + before, end, units)
        if after and after < length and _special(shapes, keys, values, codes, first, end - after) >= 0:
            before = 0
        count += before > 0
        first += before
        if after:  # suffixes wait at the far end, the last one first
            taken += 1
            bounds[len(bounds) - taken, 0], bounds[len(bounds) - taken, 1] = end - after, end
            end -= after
        marked = _next_mark(kinds, max(marked, first), end)  # never back: what was read is not read again
    if first < end:
        special = _special(shapes, keys, values, codes, first, end)
        if special >= 0:
            for part in range(3):
                if cuts[special, part]:
                    bounds[count, 0], bounds[count, 1] = first, first + cuts[special, part]
                    first, count = bounds[count, 1], count + 1
        elif marked >= end or is_address(codes, kinds, first, end):
            bounds[count, 0], bounds[count, 1] = first, end
            count += 1
        else:
            count = _cut_core(codes, kinds, first, end, bounds, count)
    for _ in range(taken):
        row = len(bounds) - taken
        bounds[count, 0], bounds[count, 1] = bounds[row, 0], bounds[row, 1]
        count, taken = count + 1, taken - 1
    return count


@compiled
def _next_mark(kinds: Any, place: int, end: int) -> int:
    """The first character from `place` that is no ASCII letter; to a chunk without one no rule applies."""
    while place < end and kinds[place] & PLAIN:
        place += 1
    return place


@compiled
def _cut_core(codes: Any, kinds: Any, begin: int, end: int, bounds: Any, count: int) -> int:
    """Cuts what is left without prefixes and suffixes at its inner marks."""
    start, place = begin, begin
    while place < end:
        size = 0 if kinds[place] & PLAIN else infix_length(codes, kinds, begin, place, end)
        if size and place > begin:
            if place > start:
                bounds[count, 0], bounds[count, 1] = start, place
                count += 1
            bounds[count, 0], bounds[count, 1] = place, place + size
            start, count = place + size, count + 1
        place += max(size, 1)
    if start < end:
        bounds[count, 0], bounds[count, 1] = start, end
        count += 1
    return count
