"""How much of a text repeats: lines, paragraphs, runs of n words.

Policy: a piece is known by a 64-bit polynomial hash; the hash of any run of words is one subtraction and
one product, because each word carries the sum of all before it. Hash tables are cleared for each n and
sized for the text, so memory is 16 bytes a word and time is linear. That two different runs meet by chance
has a probability below 1e-7 in a text of a million words; texts made to collide would count as repetitive,
no more.
Rejected: strings in a set (a copy of each run), sorting suffixes (n log n, for numbers nobody needs
exactly)."""

from typing import Any

import numpy as np

from stablelm.kernels.text.compilation import compiled
from stablelm.kernels.text.words import BASE, hash_of, slot_of

INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
"""BASE · INVERSE = 1, modulo 2⁶⁴."""
ONE = np.uint64(1)
SPACE_VALUE = np.uint64(33)
"""A space in a polynomial: its code point and 1."""
EMPTY = np.uint64(0xD6E8FEB86659FD93)
"""Stands for a hash of 0, which marks a free place in a table."""


@compiled
def table_size(pieces: int) -> int:
    """A power of 2, at least twice the pieces."""
    size = 16
    while size < 2 * pieces:
        size *= 2
    return size


@compiled
def seen(keys: Any, key: Any) -> bool:
    """Whether `key` is in the table; it is from now on."""
    key = EMPTY if key == 0 else key
    slot = slot_of(keys, key)
    if keys[slot] == key:
        return True
    keys[slot] = key
    return False


@compiled
def prefix_sums(codes: Any, bounds: Any, count: int, separator: bool, sums: Any, inverses: Any) -> None:
    """So that the words i to j−1, joined (with a space after each), have the hash (sums[j] − sums[i]) ·
    inverses[i]."""
    total, power, inverse = np.uint64(0), ONE, ONE
    for word in range(count):
        begin, end = bounds[word, 0], bounds[word, 1]
        sums[word], inverses[word] = total, inverse
        total += hash_of(codes, begin, end) * power
        for _ in range(begin, end):
            power *= BASE
            inverse *= INVERSE
        if separator:
            total += SPACE_VALUE * power
            power *= BASE
            inverse *= INVERSE
    sums[count] = total


@compiled
def duplicate_characters(sums: Any, inverses: Any, lengths: Any, count: int, n: int, keys: Any) -> int:
    """Characters in runs of n words that were there before; a run that was is stepped over whole (Rae et
    al., 2021).

    `lengths` [count + 1] are the characters of all words before each."""
    keys[:] = 0
    word, repeated = 0, 0
    while word + n <= count:
        if seen(keys, (sums[word + n] - sums[word]) * inverses[word]):
            repeated += lengths[word + n] - lengths[word]
            word += n
        else:
            word += 1
    return repeated


@compiled
def top_characters(
    sums: Any, inverses: Any, lengths: Any, count: int, n: int, keys: Any, firsts: Any, times: Any
) -> int:
    """Characters (spaces between words too) of the most frequent run of n words, times how often it is there.

    Of equally frequent ones it is the one that comes first; 0 if there are fewer than n words."""
    keys[:] = 0
    best, most = -1, 0
    for word in range(count - n + 1):
        key = (sums[word + n] - sums[word]) * inverses[word]
        key = EMPTY if key == 0 else key
        slot = slot_of(keys, key)
        if keys[slot] == 0:
            keys[slot], firsts[slot], times[slot] = key, word, 0
        times[slot] += 1
        if times[slot] > most or (times[slot] == most and firsts[slot] < best):
            best, most = firsts[slot], times[slot]
    return most * (lengths[best + n] - lengths[best] + n - 1) if best >= 0 else 0


@compiled
def paragraphs(codes: Any, begin: int, end: int, keys: Any) -> tuple[int, int, int]:
    """Paragraphs (two line feeds or more between them), those that were there before, and their characters.

    Without white space around the whole; `keys` has room for one paragraph in two characters."""
    found, repeated, characters, start = 0, 0, 0, begin
    place = begin
    while place <= end:
        if place == end or (codes[place] == 10 and place + 1 < end and codes[place + 1] == 10):
            found += 1
            if seen(keys, hash_of(codes, start, place)):
                repeated += 1
                characters += place - start
            while place < end and codes[place] == 10:
                place += 1
            start = place
            if place == end:
                break
        else:
            place += 1
    return found, repeated, characters
