"""Runs of words as numbers, looked up; documents united."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stablelm.kernels.text.minhash import find_roots, link, unite
from stablelm.kernels.text.ngrams import SEED, finish, join, look_up, ngrams

NUMBERS = st.lists(st.integers(0, (1 << 64) - 1), max_size=12)


def gram(words):
    """The written definition in Python's integers."""
    top = (1 << 64) - 1
    value = int(SEED)
    for word in words:
        value = (value ^ word) * 0xD6E8FEB86659FD93 & top
        value ^= value >> 32
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & top
    value = (value ^ value >> 27) * 0x94D049BB133111EB & top
    return value ^ value >> 31


@given(NUMBERS, st.integers(1, 5))
def test_runs_of_words(words, n):
    out = np.zeros(20, np.uint64)
    count = ngrams(np.array(words, np.uint64), n, out)
    assert out[:count].tolist() == [gram(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_the_order_of_words_counts():
    assert (
        len({gram(words) for words in ((1, 2), (2, 1), (1,), (2,), (1, 2, 0), (0, 1, 2), (0, 0), (0,), ())})
        == 9
    )
    assert int(finish(join(SEED, np.uint64(7)))) == gram([7])


@given(NUMBERS, st.sets(st.integers(1, 4), min_size=1), st.integers(0, 3))
def test_looking_up(words, lengths, every):
    lengths = sorted(lengths)
    runs = [(i, n) for i in range(len(words)) for n in lengths if i + n <= len(words)]
    known = np.unique(np.array([gram(words[i : i + n]) for i, n in runs[:: every + 1]] + [5, 6], np.uint64))
    sieve = np.zeros(1 << 13, bool)
    sieve[known >> np.uint64(51)] = True
    sieve = np.packbits(sieve, bitorder="little")
    out = np.empty((100, 3), np.int64)
    words = np.array(words, np.uint64)
    found = look_up(words, np.array(lengths), known, sieve, 51, out)
    expected = [(i, n) for i, n in runs if gram(words[i : i + n].tolist()) in set(known.tolist())]
    assert [tuple(row) for row in out[:found, :2].tolist()] == expected
    assert all(gram(words[i : i + n].tolist()) == known[at] for i, n, at in out[:found].tolist())
    assert look_up(words, np.array(lengths), known, sieve, 51, out[:0]) == found


def test_pairs_wait_when_there_is_no_room():
    """All pairs of 10 documents that agree, with room for 12 edges: the same as with room for all."""
    signatures = np.arange(40, dtype=np.uint32).reshape(10, 4) // 40 + np.array([0, 0, 0, 1], np.uint32)
    signatures[:, 0] = np.arange(10)
    groups, numbers = np.full(10, 3, np.uint64), np.arange(10, dtype=np.uint64)
    found = []
    for room in (12, 100):
        active, names, state = np.empty((10, 4), np.uint32), np.empty(10, np.uint64), np.zeros(2, np.uint64)
        edges, done, pairs = np.empty((room, 2), np.uint64), 0, []
        while done < 10:
            made, done = link(groups, numbers, signatures, 3, done, active, names, state, edges)
            pairs += [tuple(edge) for edge in edges[:made].tolist()]
        found.append(pairs)
    assert found[0] == found[1] == sorted(found[1], key=lambda pair: pair[::-1]) and len(found[0]) == 45


def test_roots_are_the_lowest():
    parents = np.arange(8)
    unite(parents, np.array([[7, 6], [6, 5], [2, 1], [1, 7], [4, 4]]))
    find_roots(parents)
    assert parents.tolist() == [0, 1, 1, 3, 4, 1, 1, 1]
