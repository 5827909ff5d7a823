"""MinHash signatures, and their comparison.

A signature is the least value, over a document's n-grams, of each of k hash functions. A function is
pair-multiply-shift (Thorup, "High speed hashing for integers and strings", 2015, §3.5):

    h(x) = ((a₀ + x_low) (a₁ + x_high) + b  mod 2⁶⁴)  >> 32,    a₀, a₁, b random 64-bit numbers

which for 64-bit x is strongly universal onto 32 bits, since 64 ≥ 32 + 32 − 1: no product is lost, unlike in
arithmetic modulo 2⁶¹ − 1 done in 64 bits. One multiplication a value; the n-grams are mixed before, and
pairwise independence on such keys acts like full randomness (Mitzenmacher & Vadhan, 2008). Two n-grams of
different documents share a value once in 2³², which adds about 2⁻³² × n-grams to a similarity. Costs some
0.5 ns a hash and n-gram. Rejected: one permutation with rotation (its empty bins need filling, short
documents lose), a 64-bit signature (twice the disk for nothing that the estimate would show)."""

from typing import Any

import numpy as np

from stablelm.kernels.text.compilation import compiled
from stablelm.kernels.text.ngrams import MARGIN, SEED, finish, join, next_words

EMPTY = np.uint32(0xFFFFFFFF)
"""Every value of the signature of a document without words."""
_WORDS = 1024
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


@compiled
def sign(data: Any, ends: Any, n: int, functions: Any, folded: Any, kinds: Any, more: Any, out: Any) -> None:
    """Fills `out` uint32 [documents, k]; `functions` uint64 [3, k] are a₀, a₁, b."""
    words = np.empty(n + _WORDS, np.uint64)  # the last n − 1 of the piece before, then a piece
    starts, stops = np.empty(_WORDS, np.int64), np.empty(_WORDS, np.int64)
    grams = np.empty(n + _WORDS, np.uint64)
    state, least = np.zeros(4, np.uint64), np.empty(len(functions[0]), np.uint64)
    place = 0
    for document in range(len(ends)):
        end = ends[document]
        state[:], least[:] = 0, EMPTY
        carried, whole = 0, False
        while place < end:
            count, place = next_words(
                data, place, end, folded, kinds, more, state, words[carried : carried + _WORDS], starts, stops
            )
            held = carried + count
            made = 0
            if held >= n:
                for first in range(held - n + 1):
                    value = SEED
                    for at in range(first, first + n):
                        value = join(value, words[at])
                    grams[made] = finish(value)
                    made += 1
                whole = True
                for at in range(n - 1):
                    words[at] = words[held - n + 1 + at]
                carried = n - 1
            else:
                carried = held
            lower(grams[:made], functions, least)
        if not whole and carried:  # fewer than n words: all of them are one n-gram
            value = SEED
            for at in range(carried):
                value = join(value, words[at])
            grams[0] = finish(value)
            lower(grams[:1], functions, least)
        for k in range(len(least)):
            out[document, k] = least[k]


@compiled
def lower(grams: Any, functions: Any, least: Any) -> None:
    """least [k] ← the smaller of itself and every hash of `grams`."""
    for gram in grams:
        low, high = gram & _LOW, gram >> _32
        for k in range(len(least)):
            value = ((functions[0, k] + low) * (functions[1, k] + high) + functions[2, k]) >> _32
            least[k] = min(least[k], value)


@compiled
def band_numbers(signatures: Any, rows: int, salt: Any, out: Any) -> None:
    """Fills `out` uint64 [documents, bands]: a number for the values of each band, salted by the band."""
    for document in range(len(signatures)):
        for band in range(out.shape[1]):
            value = join(salt, np.uint64(band))
            for k in range(band * rows, (band + 1) * rows):
                value = join(value, np.uint64(signatures[document, k]))
            out[document, band] = finish(value)


@compiled
def link(
    groups: Any, numbers: Any, signatures: Any, wanted: int, first: int,
    active: Any, active_numbers: Any, state: Any, edges: Any,
) -> tuple[int, int]:  # fmt: skip
    """Compares the documents of each group from row `first` on; fills `edges` [m, 2] with pairs that agree in
    at least `wanted` values. Returns (edges, rows done): all, or as many as `edges` has room for.

    Rows are sorted by group, then number. `active` [a, k] holds the documents of the running group that later
    ones are compared with: the first a with different signatures. state [2]: how many, the running group."""
    made, size = 0, signatures.shape[1]
    for row in range(first, len(groups)):
        if made + len(active) > len(edges):
            return made, row
        if groups[row] != state[1]:
            state[0], state[1] = 0, groups[row]
        known = False
        for other in range(np.int64(state[0])):
            agree = 0
            for k in range(size):
                agree += signatures[row, k] == active[other, k]
            if agree >= wanted:
                edges[made, 0], edges[made, 1] = active_numbers[other], numbers[row]
                made += 1
            if agree == size:
                known = True
                break
        if not known and state[0] < len(active):
            active[state[0]], active_numbers[state[0]] = signatures[row], numbers[row]
            state[0] += np.uint64(1)
    return made, len(groups)


@compiled
def unite(parents: Any, pairs: Any) -> None:
    """Unites the sets of each pair of places in `parents`; the root of a set is its lowest place."""
    for pair in range(len(pairs)):
        a, b = pairs[pair, 0], pairs[pair, 1]
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        if a < b:
            parents[b] = a
        elif b < a:
            parents[a] = b


@compiled
def find_roots(parents: Any) -> None:
    """Makes every place point at its root; a parent is never above its child."""
    for place in range(len(parents)):
        parents[place] = parents[parents[place]]


assert MARGIN < _WORDS
