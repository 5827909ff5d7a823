"""The keyed permutation: a bijection for every size, its own inverse's inverse, and well mixed."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.data.permutation import LARGEST, Permutation, permute
from stablelm.storage import keyed_uint64

SIZES = [
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    63,
    64,
    65,
    99,
    100,
    101,
    777,
    1023,
    1024,
    1025,
    4095,
    4096,
    4097,
    65_536,
]


@pytest.mark.parametrize("n", SIZES)
def test_a_bijection_with_its_inverse(n):
    everything = np.arange(n)
    for key in (0, 1, 2**64 - 1, keyed_uint64(n)):
        permutation = Permutation(n, key)
        image = permutation.forward(everything)
        assert np.array_equal(np.sort(image), everything)
        assert np.array_equal(permutation.inverse(image), everything)
        assert np.array_equal(permutation.forward(permutation.inverse(everything)), everything)


@given(st.integers(1, LARGEST), st.integers(0, 2**64 - 1), st.data())
def test_every_size_up_to_the_largest(n, key, data):
    x = data.draw(st.integers(0, n - 1))
    permutation = Permutation(n, key)
    image = permutation.forward(x)
    assert isinstance(image, int)
    assert 0 <= image < n
    assert permutation.inverse(image) == x


def test_the_largest_sizes_do_not_collide():
    for n in (LARGEST, LARGEST - 1, 2**61 + 1, 2**32, 2**32 - 1, 2**31 + 1, 244_480_000):
        x = np.unique(
            np.concatenate([np.arange(1000), n - 1 - np.arange(1000), np.arange(1000) * (n // 1000)])
        )
        image = Permutation(n, 5).forward(x)
        assert len(np.unique(image)) == len(x)
        assert image.min() >= 0
        assert image.max() < n
        assert np.array_equal(Permutation(n, 5).inverse(image), x)


def test_one_call_with_many_sizes_and_keys():
    rng = np.random.default_rng(1)
    n = rng.integers(1, 10_000, 500)
    x, key = rng.integers(0, n), rng.integers(0, 2**63, 500)
    together = permute(x, n, key)
    alone = [Permutation(int(a), int(k)).forward(int(v)) for v, a, k in zip(x, n, key, strict=True)]
    assert together.tolist() == alone
    assert permute(together, n, key, inverse=True).tolist() == x.tolist()


@pytest.mark.parametrize("n", [777, 10_000, 1_000_003])
def test_neighbours_and_keys_are_uncorrelated(n):
    images = [Permutation(n, keyed_uint64("key", i)).forward(np.arange(n)).astype(float) for i in range(4)]
    limit = 5 / math.sqrt(n)  # five standard deviations of a correlation of independent values
    for image in images:
        assert abs(np.corrcoef(image, np.arange(n))[0, 1]) < limit
        for lag in (1, 2, 7):
            assert abs(np.corrcoef(image[:-lag], image[lag:])[0, 1]) < limit
    for a, b in itertools.combinations(images, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < limit


def test_consecutive_keys_are_unrelated():
    places = Counter(int(Permutation(97, key).forward(5)) for key in range(9700))
    chi_square = sum((places[i] - 100) ** 2 / 100 for i in range(97))
    assert len(places) == 97
    assert chi_square < 96 + 5 * math.sqrt(2 * 96)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_small_sizes_reach_every_permutation_about_equally(n):
    keys = [keyed_uint64("small", k) for k in range(200 * math.factorial(n))]
    rows = np.stack(
        [permute(np.full(len(keys), i), n, np.array(keys, dtype=np.uint64)) for i in range(n)], axis=1
    )
    seen = Counter(map(tuple, rows.tolist()))
    assert len(seen) == math.factorial(n)
    assert max(seen.values()) < 2 * 200
    assert min(seen.values()) > 200 / 2


def test_the_order_is_fixed_for_ever():
    """Checkpoints resume by number: these values may change only with a new format."""
    assert Permutation(10, 0).forward(np.arange(10)).tolist() == [8, 0, 9, 5, 3, 7, 6, 2, 4, 1]
    assert Permutation(244_480_000, 1234).forward(np.arange(3)).tolist() == [94147869, 228786684, 23901320]


@pytest.mark.parametrize("n", [0, -1, LARGEST + 1])
def test_sizes_that_are_refused(n):
    with pytest.raises(ValueError, match="needs 1 <= n"):
        Permutation(n, 0)


@pytest.mark.parametrize("position", [-1, 10, [0, 10]])
def test_positions_outside_are_refused(position):
    with pytest.raises(IndexError, match="outside"):
        Permutation(10, 0).forward(position)


def test_shapes_are_kept():
    permutation = Permutation(100, 3)
    assert permutation.forward(np.arange(12).reshape(3, 4)).shape == (3, 4)
    assert permutation.forward(np.array([], dtype=np.int64)).shape == (0,)
    assert permutation.forward(np.arange(3)).dtype == np.int64
