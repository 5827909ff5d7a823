"""Counts of kinds of characters in lines and documents, over UTF-8 bytes.

The kinds are Python's (`str.isupper`, `isdigit`, `isspace`, `isalpha`, `isalnum`, the breaks of
`splitlines`), read from one table of flags by code point, made once a process in 40 ms. Costs 1–2 ns a byte.
Rejected: Python's loop over characters (50 ns each), tables of ranges (a search per character outside
ASCII)."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.kernels.text.compilation import compiled, inlined

UPPER, DIGIT, SPACE, ALPHA, ALNUM, BREAK = 1, 2, 4, 8, 16, 32
ASSIGNED = 0x32400  # beyond the last letter, digit or space of Unicode 17


@cache
def character_kinds() -> NDArray[np.uint8]:
    """Flags by code point, [0x32400]."""
    flags = [
        char.isupper() * UPPER
        + char.isdigit() * DIGIT
        + char.isspace() * SPACE
        + char.isalpha() * ALPHA
        + char.isalnum() * ALNUM
        for char in map(chr, range(ASSIGNED))
    ]
    table = np.array(flags, np.uint8)
    for char in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        table[ord(char)] |= BREAK
    return table


@inlined
def kinds_at(data: Any, place: int, kinds: Any) -> tuple[int, int]:
    """Flags of the character at `place` and how many bytes it has."""
    byte = data[place]
    if byte < 0x80:
        return kinds[byte], 1
    if byte < 0xE0:
        return kinds[(byte & 0x1F) << 6 | (data[place + 1] & 0x3F)], 2
    if byte < 0xF0:
        return kinds[(byte & 0xF) << 12 | (data[place + 1] & 0x3F) << 6 | (data[place + 2] & 0x3F)], 3
    code = (
        (byte & 0x7) << 18
        | (data[place + 1] & 0x3F) << 12
        | (data[place + 2] & 0x3F) << 6
        | (data[place + 3] & 0x3F)
    )
    return (kinds[code] if code < len(kinds) else 0), 4


@compiled
def count_lines(data: Any, ends: Any) -> int:
    """Lines of all documents, where LF alone separates."""
    lines, place = 0, 0
    for end in ends:
        lines += 1
        for at in range(place, end):
            lines += data[at] == 10
        place = end
    return lines


@compiled
def measure_lines(data: Any, ends: Any, kinds: Any, lines: Any) -> None:
    """Fill `lines` [n, 10]: document, start, end (without its LF), and of the line without white space
    around it the start, end, words, characters, upper-case letters, digits, characters that are not white
    space. Offsets are those of `data`; a blank line starts and ends (without white space) at −1."""
    line, place = 0, 0
    for document in range(len(ends)):
        end = ends[document]
        while True:
            start = place
            first, last, words, characters, trailing = -1, -1, 0, 0, 0
            upper, digits, visible, inside = 0, 0, 0, False
            while place < end and data[place] != 10:
                flags, size = kinds_at(data, place, kinds)
                if flags & SPACE:
                    inside = False
                    trailing += 1
                else:
                    if first < 0:
                        first, trailing = place, 0
                    characters += trailing + 1
                    trailing = 0
                    words += not inside
                    inside = True
                    visible += 1
                    upper += (flags & UPPER) != 0
                    digits += (flags & DIGIT) != 0
                    last = place + size
                place += size
            lines[line, 0], lines[line, 1], lines[line, 2] = document, start, place
            lines[line, 3], lines[line, 4], lines[line, 5], lines[line, 6] = first, last, words, characters
            lines[line, 7], lines[line, 8], lines[line, 9] = upper, digits, visible
            line += 1
            if place >= end:
                break
            place += 1


@compiled
def measure_files(data: Any, ends: Any, kinds: Any, files: Any) -> None:
    """Fill `files` [n, 6]: lines as `str.splitlines` gives them, longest line, characters in lines, letters
    and digits, letters, and the characters of all; lengths in characters."""
    place = 0
    for document in range(len(ends)):
        end = ends[document]
        lines, longest, within, alnum, alpha, total, length = 0, 0, 0, 0, 0, 0, 0
        while place < end:
            flags, size = kinds_at(data, place, kinds)
            total += 1
            if flags & BREAK:
                if data[place] == 13 and place + 1 < end and data[place + 1] == 10:
                    total += 1
                    size = 2
                lines += 1
                within += length
                longest = max(longest, length)
                length = 0
            else:
                length += 1
                alnum += (flags & ALNUM) != 0
                alpha += (flags & ALPHA) != 0
            place += size
        if length:
            lines += 1
            within += length
            longest = max(longest, length)
        files[document, 0], files[document, 1], files[document, 2] = lines, longest, within
        files[document, 3], files[document, 4], files[document, 5] = alnum, alpha, total
