"""What C4's line rules take out of a text, as spans of bytes.

Costs 10 ns a byte. Rejected: an edited copy of each text (the disk twice, and the spans of other groups
move)."""

from typing import Any

import numpy as np

from stablelm.kernels.text.classes import BREAK, SPACE
from stablelm.kernels.text.compilation import compiled
from stablelm.kernels.text.lines import KEPT, LINE_FEED, citation_at, judge, next_break, stripped
from stablelm.kernels.text.words import decode

GONE, STAYS, FEED = np.uint8(0), np.uint8(1), np.uint8(2)


@compiled
def line_edits(data: Any, ends: Any, table: Any, rules: Any) -> Any:
    """(row, start, end, code) of each edit, [k, 4], int64; code 0 deletes, 1 is replaced by a line feed."""
    longest = 0
    for number in range(len(ends)):
        longest = max(longest, ends[number] - (ends[number - 1] if number else 0))
    codes, kinds = np.empty(longest + 1, np.int32), np.empty(longest + 1, np.uint32)
    line, line_kinds = np.empty(longest + 1, np.int32), np.empty(longest + 1, np.uint32)
    fate = np.empty(longest + 1, np.uint8)
    found, count = np.empty((64, 4), np.int64), 0
    for number in range(len(ends)):
        size = decode(data, ends[number - 1] if number else 0, ends[number], table, codes, kinds)
        _decide(codes, kinds, size, rules, line, line_kinds, fate)
        place, byte = 0, 0
        while place < size:
            start, kind = byte, fate[place]
            follower = GONE if kind == FEED else kind
            byte, place = byte + _bytes(codes[place]), place + 1
            while place < size and fate[place] == follower:
                byte, place = byte + _bytes(codes[place]), place + 1
            if kind == STAYS:
                continue
            if count == len(found):
                longer = np.empty((2 * count, 4), np.int64)
                for row in range(count):
                    for column in range(4):
                        longer[row, column] = found[row, column]
                found = longer
            found[count, 0], found[count, 1], found[count, 2], found[count, 3] = (
                number,
                start,
                byte,
                kind == FEED,
            )
            count += 1
    return found[:count]


@compiled
def _bytes(code: int) -> int:
    """Bytes of a character in UTF-8."""
    if code < 0x80:
        return 1
    return 2 if code < 0x800 else (3 if code < 0x10000 else 4)


@compiled
def _decide(codes: Any, kinds: Any, size: int, rules: Any, line: Any, line_kinds: Any, fate: Any) -> None:
    """fate[i]: whether character i goes, stays, or, with those that go after it, becomes a line feed."""
    fate[:size] = GONE
    place, gap, kept = 0, 0, 0
    while place < size:
        stop, after = next_break(codes, kinds, place, size, BREAK)
        begin, end = stripped(kinds, place, stop)
        verdict, length = judge(codes, kinds, begin, end, rules, line, line_kinds)
        if verdict & 7 == KEPT:
            if (
                kept
            ):  # of the gap since the last kept line a line feed stays, or its first character becomes one
                feed = gap
                while feed < begin and codes[feed] != LINE_FEED:
                    feed += 1
                if feed < begin:
                    fate[feed] = STAYS
                else:
                    fate[gap] = FEED
            at = begin
            while at < end:
                skipped = citation_at(codes, kinds, at, end) if length != end - begin else 0
                if skipped:
                    at += skipped
                else:
                    fate[at] = STAYS
                    at += 1
            gap, kept = end, kept + 1
        place = after
    _strip(kinds, size, fate)


@compiled
def _strip(kinds: Any, size: int, fate: Any) -> None:
    """White space at both ends of what stays goes too."""
    first, last = 0, size
    while first < size and (fate[first] != STAYS or kinds[first] & SPACE):
        fate[first] = GONE
        first += 1
    while last > first and (fate[last - 1] != STAYS or kinds[last - 1] & SPACE):
        last -= 1
        fate[last] = GONE
