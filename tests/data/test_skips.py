"""Skipped ranges against a list of the numbers that are left."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stablelm.data.skips import Skips

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda r: (r[0], r[0] + r[1])))


@given(RANGES)
def test_positions_and_numbers(ranges):
    skips = Skips(ranges)
    skipped = {number for first, last in ranges for number in range(first, last + 1)}
    left = [number for number in range(100) if number not in skipped]
    assert skips.count == len(skipped)
    assert skips.numbers(np.arange(len(left))).tolist() == left
    expected = [left.index(number) if number in left else -1 for number in range(100)]
    assert skips.positions(np.arange(100)).tolist() == expected
    for number in (0, 1, 30, 70):
        kept = {n for first, last in skips.before(number) for n in range(first, last + 1)}
        assert kept == {n for n in skipped if n < number}
    assert all(a[1] + 1 < b[0] for a, b in zip(skips.ranges, skips.ranges[1:], strict=False)), "merged"


@given(RANGES, RANGES)
def test_a_range_ahead_changes_nothing_behind(ranges, more):
    position = 20
    before = Skips(ranges)
    number = int(before.numbers(position - 1)) + 1
    after = Skips([*ranges, *((first + number, last + number) for first, last in more)])
    assert np.array_equal(after.numbers(np.arange(position)), before.numbers(np.arange(position)))


def test_none():
    skips = Skips([])
    assert skips.numbers(7) == 7
    assert skips.positions(7) == 7
    assert skips.ranges == []
