"""Words, runs of words and lines as 64-bit numbers, over UTF-8 bytes.

A word is a run of letters, digits and marks of the folded text (`folding.py`); in a script written without
spaces each character is one. Its number mixes its code points one by one: multiply by an odd constant, then
fold the high half into the low, which is a bijection for each code point, so two words of one length that
differ in one place never collide, and others do about once in 2⁶⁴. The number of n words mixes theirs the
same way, in order. Words come in pieces of a buffer's size, so a document of any length needs the same
memory. Costs about 5 ns a byte. Rejected: strings (100 times slower), FNV (its low bits depend only on low
bits)."""

from typing import Any

import numpy as np

from stablelm.kernels.text.compilation import compiled, inlined
from stablelm.kernels.text.folding import ALONE, BEYOND, MARK, SPACE, WORD, decode, spelling

SEED = np.uint64(0x243F6A8885A308D3)  # digits of π
_LETTER = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio
_JOIN = np.uint64(0xD6E8FEB86659FD93)
_32 = np.uint64(32)
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # SplitMix64's finaliser
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
MARGIN = 20
"""Words that one character may end, at most; a buffer of words must be larger."""


@inlined
def step(value: Any, code: Any) -> Any:
    """`value` with one more code point."""
    value = (value ^ np.uint64(code)) * _LETTER
    return value ^ (value >> _32)


@inlined
def join(value: Any, word: Any) -> Any:
    """`value` with one more word."""
    value = (value ^ word) * _JOIN
    return value ^ (value >> _32)


@inlined
def finish(value: Any) -> Any:
    """Every bit of the result depends on every bit of `value`; a bijection."""
    value = (value ^ (value >> _30)) * _A
    value = (value ^ (value >> _27)) * _B
    return value ^ (value >> _31)


@compiled
def next_words(
    data: Any, place: Any, end: Any, folded: Any, kinds: Any, more: Any, state: Any,
    numbers: Any, starts: Any, stops: Any,
) -> tuple[int, Any]:  # fmt: skip
    """Fills `numbers`, `starts`, `stops` with the next words of data[place:end] and where they lie; returns
    (words, place reached), to be called again with the same `state` until that place is `end`.

    state uint64 [4], zero at first: inside a word, its number so far, its start, its stop. A last word is
    written out when `end` is reached."""
    count, room = 0, len(numbers) - MARGIN
    inside, number = state[0], state[1]
    start, stop = np.int64(state[2]), np.int64(state[3])
    while place < end and count < room:
        if data[place] < 0x80 and inside != ALONE:  # most of most texts, by the shortest way
            byte = data[place]
            place += 1
            if kinds[byte] == WORD:
                if not inside:
                    inside, number, start = np.uint64(WORD), SEED, place - 1
                number = step(number, folded[byte])
                stop = place
            elif inside:
                numbers[count], starts[count], stops[count] = number, start, stop
                count += 1
                inside = np.uint64(0)
            continue
        code, size = decode(data, place, end)
        pieces, value = spelling(code, folded, more)
        for piece in range(pieces):
            point = value if pieces == 1 else np.int64(more[value + piece])
            kind = kinds[point] if point < BEYOND else ALONE
            if kind < WORD:
                if inside:
                    numbers[count], starts[count], stops[count] = number, start, stop
                    count += 1
                    inside = np.uint64(0)
                continue
            if inside and not (kind == MARK or (kind == WORD and inside == WORD)):
                numbers[count], starts[count], stops[count] = number, start, stop
                count += 1
                inside = np.uint64(0)
            if not inside:
                number, start = SEED, place
                inside = np.uint64(ALONE if kind == ALONE else WORD)
            number = step(number, point)
            stop = place + size
        place += size
    if place >= end and inside:
        numbers[count], starts[count], stops[count] = number, start, stop
        count += 1
        inside = np.uint64(0)
    state[0], state[1], state[2], state[3] = inside, number, np.uint64(start), np.uint64(stop)
    return count, place


@compiled
def ngrams(words: Any, n: int, out: Any) -> int:
    """The number of every run of n words, in order, in `out`; how many there are."""
    count = max(0, len(words) - n + 1)
    for first in range(count):
        value = SEED
        for word in words[first : first + n]:
            value = join(value, word)
        out[first] = finish(value)
    return count


@compiled
def look_up(words: Any, lengths: Any, known: Any, sieve: Any, shift: int, out: Any) -> int:
    """Fills out [k, 3] with (first word, words, place in `known`) for the runs of words, of one of `lengths`,
    whose number is in the sorted `known`; returns how many there are, also when `out` is too small.

    `sieve` has a bit for the leading 64 − shift bits of every known number: most runs need no search."""
    found, right = 0, np.uint64(shift)
    for first in range(len(words)):
        value, done = SEED, 0
        for n in lengths:  # ascending
            if first + n > len(words):
                break
            while done < n:
                value = join(value, words[first + done])
                done += 1
            gram = finish(value)
            bit = gram >> right
            if not (sieve[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7))) & 1:
                continue
            low, high = 0, len(known)
            while low < high:
                middle = (low + high) // 2
                if known[middle] < gram:
                    low = middle + 1
                else:
                    high = middle
            if low < len(known) and known[low] == gram:
                if found < len(out):
                    out[found, 0], out[found, 1], out[found, 2] = first, n, low
                found += 1
    return found


@compiled
def segments(
    data: Any, ends: Any, paragraphs: bool, folded: Any, kinds: Any, more: Any,
    rows: Any, spans: Any, numbers: Any, lengths: Any,
) -> int:  # fmt: skip
    """The lines or paragraphs of all texts that have a character: fills rows [k], spans [k, 2] (bytes within
    the text, the LF or the blank lines after it included), numbers [k] of the folded text, lengths [k] in
    folded characters; returns how many.

    A paragraph ends where a line has white space only; blank lines before the first belong to none."""
    count, place = 0, 0
    for row in range(len(ends)):
        first, end = place, ends[row]
        start, number, length = place, SEED, 0
        waits, visible, blank = False, False, True  # a space; in the segment; in the line
        while place < end:
            code, size = decode(data, place, end)
            if code == 10 or kinds[min(code, BEYOND - 1)] == SPACE:
                waits = length > 0
                place += size
                if code == 10:
                    if visible and (not paragraphs or blank):
                        if paragraphs:  # all the blank lines that follow
                            after = place
                            while after < end:
                                code, size = decode(data, after, end)
                                if code >= BEYOND or kinds[code] != SPACE:
                                    break
                                after += size
                                if code == 10 or after >= end:
                                    place = after
                        rows[count], numbers[count], lengths[count] = row, finish(number), length
                        spans[count, 0], spans[count, 1] = start - first, place - first
                        count += 1
                        visible = False
                    if not visible:
                        start, number, length, waits = place, SEED, 0, False
                    blank = True
                continue
            pieces, value = spelling(code, folded, more)
            for piece in range(pieces):
                point = value if pieces == 1 else np.int64(more[value + piece])
                if point < BEYOND and kinds[point] == SPACE:
                    waits = length > 0
                    continue
                if waits:
                    number, length, waits = step(number, 32), length + 1, False
                number, length = step(number, point), length + 1
                visible, blank = True, False
            place += size
        if visible:
            rows[count], numbers[count], lengths[count] = row, finish(number), length
            spans[count, 0], spans[count, 1] = start - first, place - first
            count += 1
        place = end
    return count
