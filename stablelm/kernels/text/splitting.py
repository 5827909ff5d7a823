"""A whole text cut into words, and the tables for it, made from `special_words.py` once a process.

Costs 20 ms to make the tables. Rejected: tables in a file (a second truth beside the rules)."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.kernels.text.classes import BEYOND, PLAIN, SPACE, TERMINAL, character_classes
from stablelm.kernels.text.compilation import compiled
from stablelm.kernels.text.special_words import special_words
from stablelm.kernels.text.words import (
    SHIFT,
    SPREAD,
    Lexicon,
    cut_chunk,
    has_shape,
    hash_of,
    infix_length,
    prefix_length,
    slot_of,
    suffix_length,
)

_UNITS = """
km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph
hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг
м/с км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام
جرام جم كغ ملغ كوب اكواب"""


@compiled
def split(codes: Any, kinds: Any, begin: int, end: int, lexicon: Any, bounds: Any, gaps: Any) -> int:
    """Cuts codes[begin:end] into words; returns how many.

    Word i is codes[bounds[i, 0] : bounds[i, 1]]; gaps[i] says that more than one space is before it. `bounds`
    [end − begin or more, 2] and `gaps` must have a place for every character."""
    shapes, keys, values = lexicon.shapes, lexicon.special_keys, lexicon.special_values
    cuts, units = lexicon.cuts, lexicon.unit_keys
    count, place, gap = 0, begin, False
    while place < end:
        start = place
        if kinds[place] & SPACE:
            while place < end and kinds[place] & SPACE:
                place += 1
            gap = place - start > 1 or codes[start] != 32
        else:
            plain = np.uint32(PLAIN)
            while place < end and not kinds[place] & SPACE:
                plain &= kinds[place]
                place += 1
            if plain and not has_shape(shapes, codes, start, place):
                bounds[count, 0], bounds[count, 1], gaps[count] = start, place, gap
                count += 1
            else:
                before = count
                count = cut_chunk(
                    shapes, keys, values, cuts, units, codes, kinds, start, place, bounds, count
                )
                gaps[before:count] = False
                gaps[before] = gap
    found = _find_runs(lexicon, codes, bounds, gaps, count, np.empty((0, 3), np.int64))
    if found:
        runs = np.empty((found, 3), np.int64)
        _find_runs(lexicon, codes, bounds, gaps, count, runs)
        count = _join_runs(lexicon, runs, bounds, gaps, count)
    return count


@compiled
def _find_runs(lexicon: Any, codes: Any, bounds: Any, gaps: Any, count: int, runs: Any) -> int:
    """How many runs of words spell a special word, if single spaces are not looked at; (word, words,
    special)."""
    found = 0
    for first in range(count):
        if not has_shape(lexicon.run_shapes, codes, bounds[first, 0], bounds[first, 1]):
            continue
        key, word = np.uint64(0), first
        while bounds[word, 1] - bounds[word, 0] < 16:
            key = _extended(key, hash_of(codes, bounds[word, 0], bounds[word, 1]))
            slot = slot_of(lexicon.run_keys, key)
            if lexicon.run_keys[slot] != key:
                break
            word += 1
            if lexicon.run_values[slot] >= 0:
                if found < len(runs):
                    runs[found, 0], runs[found, 1] = first, word - first
                    runs[found, 2] = lexicon.run_values[slot]
                found += 1
            if word == count or gaps[word]:
                break
    return found


@compiled
def _extended(key: Any, word: Any) -> Any:
    """Hash of a run of words from that of the words before and of the last one."""
    return (key ^ (key >> SHIFT)) * SPREAD + word


@compiled
def _join_runs(lexicon: Any, runs: Any, bounds: Any, gaps: Any, count: int) -> int:
    """The special words that stand together replace their runs; of runs that overlap the longest, then the
    first.

    A run with a space inside is no special word, yet keeps others off its words: spaCy does so."""
    taken, chosen, longest = np.zeros(count, np.bool_), np.zeros(count, np.int64), 0
    for number in range(len(runs)):
        longest = max(longest, runs[number, 1])
    for size in range(longest, 0, -1):
        for number in range(len(runs)):
            first = runs[number, 0]
            if runs[number, 1] == size:
                if not taken[first] and not taken[first + size - 1]:
                    chosen[first] = number + 1
                for word in range(first, first + size):
                    taken[word] = True
    words = np.empty((count + 3 * len(runs), 2), bounds.dtype)
    far = np.zeros(len(words), np.bool_)
    word, made = 0, 0
    while word < count:
        number = chosen[word] - 1
        size = runs[number, 1] if number >= 0 else 1
        together = number >= 0
        for inner in range(word + 1, word + size):
            together = together and bounds[inner, 0] == bounds[inner - 1, 1]
        far[made] = gaps[word]
        if together:
            place = bounds[word, 0]
            for part in range(3):
                length = lexicon.cuts[runs[number, 2], part]
                if length:
                    words[made, 0], words[made, 1] = place, place + length
                    place, made = place + length, made + 1
        else:
            for inner in range(word, word + size):
                words[made, 0], words[made, 1], far[made] = bounds[inner, 0], bounds[inner, 1], gaps[inner]
                made += 1
        word += size
    for word in range(made):  # arrays are copied by loops: Numba takes seconds to compile it otherwise
        bounds[word, 0], bounds[word, 1], gaps[word] = words[word, 0], words[word, 1], far[word]
    return made


def characters(text: str) -> NDArray[np.int32]:
    """Code points, [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), np.int32).copy()


def key_of(text: str) -> int:
    """The hash of a word in the lexicon's tables."""
    codes = characters(text)
    return int(hash_of(codes, 0, len(codes)))


def hash_table(values: dict[int, int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys and values with linear probing, at most a quarter full."""
    size = 1 << (4 * len(values)).bit_length()
    keys, numbers = np.zeros(size, np.uint64), np.zeros(size, np.int64)
    for key, value in values.items():
        slot = slot_of(keys, np.uint64(key))
        keys[slot], numbers[slot] = key, value
    return keys, numbers


@cache
def lexicon(stop_words: tuple[str, ...], terminals: tuple[str, ...]) -> Lexicon:
    """The tables for English, these stop words and these ends of a line (single characters)."""
    kinds = character_classes().copy()
    kinds &= np.uint32(0xFFFFFFFF ^ TERMINAL)
    for end in terminals:
        if ord(end) < BEYOND:
            kinds[ord(end)] |= np.uint32(TERMINAL)
    none = hash_table({})
    units, _ = hash_table({key_of(unit): 1 for unit in _UNITS.split()})
    stops, numbers = hash_table({key_of(word): number for number, word in enumerate(stop_words)})
    last = max(map(len, stop_words), default=0)
    bare = Lexicon(
        kinds, *none, np.zeros((1, 3), np.int32), _shapes([]), units, *none, _shapes([]), stops, numbers, last
    )
    words = special_words()
    cuts = np.zeros((len(words), 3), np.int32)
    runs: dict[int, int] = {}
    starts = []
    for number, (word, parts) in enumerate(words.items()):
        cuts[number, : len(parts)] = [len(part) for part in parts]
        pieces = _pieces(word, bare)
        if pieces:
            starts.append(pieces[0])
            key = 0
            for size, piece in enumerate(pieces, 1):
                key = int(_extended(np.uint64(key), np.uint64(key_of(piece))))
                runs[key] = number if size == len(pieces) else runs.get(key, -1)
    specials = hash_table({key_of(word): number for number, word in enumerate(words)})
    return Lexicon(
        kinds,
        *specials,
        cuts,
        _shapes(words),
        units,
        *hash_table(runs),
        _shapes(starts),
        stops,
        numbers,
        last,
    )


def _shapes(words: Iterable[str]) -> NDArray[np.uint16]:
    """See `Lexicon.shapes`."""
    shapes = np.zeros((128, 128), np.uint16)
    for word in words:
        assert len(word) < 16, "a shape has 16 bits"
        shapes[ord(word[0]) & 127, ord(word[-1]) & 127] |= np.uint16(1 << len(word))
    return shapes


def _pieces(word: str, bare: Lexicon) -> list[str]:
    """What the general rules make of a special word; nothing if none of them applies to it."""
    codes = characters(word)
    kinds = bare.kinds[np.minimum(codes, BEYOND - 1)]
    size = len(codes)
    touched = prefix_length(codes, kinds, 0, size) or suffix_length(codes, kinds, 0, size, bare.unit_keys)
    if not touched and not any(infix_length(codes, kinds, 0, place, size) for place in range(size)):
        return []
    bounds, gaps = np.empty((size + 1, 2), np.int32), np.empty(size + 1, np.bool_)
    count = split(codes, kinds, 0, size, bare, bounds, gaps)
    return [word[begin:end] for begin, end in bounds[:count]]
