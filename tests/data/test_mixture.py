"""The mixture's order: exact counts, epochs in order, and any sample from its number alone."""

import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.data.mixture import BLOCK, Mixture, _block_ends

TABLES = {
    "one source": {"a": (10, 1)},
    "one window": {"a": (1, 7)},
    "4 and 1 and 1.5": {"prose": (100, 4), "code": (333, 1), "web": (77, Fraction(3, 2))},
    "every kind of number": {
        "a": (999, "2.15"),
        "b": (1, 3),
        "c": (2, "7/3"),
        "d": (50, "0.5"),
        "e": (7, 11),
    },
    "two blocks": {"a": (20_000, 4), "b": (777, "1.5"), "c": (5, 1)},
    "five blocks, rare sources": {
        "a": (150_000, 2),
        "b": (3, 1),
        "c": (2, "1/2"),
        "d": (1, 1),
        "e": (4000, 5),
    },
    "a block exactly": {"a": (BLOCK // 4, 3), "b": (BLOCK // 4, 1)},
    "sixteen": {f"s{i:02}": (i * i + 1, 1 + Fraction(i, 7)) for i in range(16)},
}


def make(table, seed=1):
    windows = {name: n for name, (n, _) in table.items()}
    return Mixture(windows, {name: Fraction(e) for name, (_, e) in table.items()}, seed)


@pytest.mark.parametrize("name", TABLES)
def test_every_epoch_is_honoured_exactly(name):
    table = TABLES[name]
    mixture = make(table)
    source, epoch, window = mixture.address(np.arange(mixture.num_samples))
    assert mixture.num_samples == sum(mixture.totals.values())
    for index, (each, (n, epochs)) in enumerate(table.items()):
        mine = source == index
        total = round(Fraction(epochs) * n)
        assert mine.sum() == mixture.samples(each) == total
        assert (np.diff(epoch[mine]) >= 0).all(), "epochs are strictly in order"
        whole, part = divmod(total, n)
        for number in range(whole):
            drawn = window[mine & (epoch == number)]
            assert np.array_equal(np.sort(drawn), np.arange(n)), "each window once in each epoch"
        last = window[mine & (epoch == whole)]
        assert len(last) == len(set(last.tolist())) == part
        counts = np.bincount(window[mine], minlength=n)
        assert set(counts.tolist()) <= {whole, whole + 1}
        assert (counts == whole + 1).sum() == part


@pytest.mark.parametrize("name", TABLES)
def test_seen_is_a_count_of_the_prefix(name):
    mixture = make(TABLES[name])
    source, _, _ = mixture.address(np.arange(mixture.num_samples))
    counts = np.cumsum(source[:, None] == np.arange(len(mixture.sources)), axis=0)
    for n in {
        0,
        1,
        2,
        3,
        99,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        2 * BLOCK,
        mixture.num_samples - 1,
        mixture.num_samples,
    }:
        if 0 <= n <= mixture.num_samples:
            expected = counts[n - 1].tolist() if n else [0] * len(mixture.sources)
            assert list(mixture.seen(n).values()) == expected, n


@pytest.mark.parametrize("name", TABLES)
def test_the_order_does_not_depend_on_how_it_is_asked_for(name):
    mixture = make(TABLES[name])
    numbers = np.arange(min(mixture.num_samples, 300)) + max(0, mixture.num_samples - 300)
    whole = np.stack(mixture.address(numbers))
    for size in (1, 2, 7, 64):
        pieces = [np.stack(mixture.address(numbers[i : i + size])) for i in range(0, len(numbers), size)]
        assert np.array_equal(np.concatenate(pieces, axis=1), whole)
    shuffled = np.random.default_rng(0).permutation(len(numbers))
    assert np.array_equal(np.stack(make(TABLES[name]).address(numbers[shuffled])), whole[:, shuffled])


def test_sources_keep_their_shares_at_every_moment():
    mixture = make(TABLES["five blocks, rare sources"])
    source, _, _ = mixture.address(np.arange(mixture.num_samples))
    counts = np.cumsum(source[:, None] == np.arange(5), axis=0)
    totals = np.array(list(mixture.totals.values()))
    n = np.arange(1, mixture.num_samples + 1)
    share = n[:, None] * totals / mixture.num_samples
    deviation = np.abs(counts - share)
    assert deviation[BLOCK - 1 :: BLOCK].max() < 1
    assert deviation.max() < 5


@given(st.lists(st.one_of(st.integers(1, 60), st.integers(1, 3 * BLOCK)), min_size=1, max_size=40))
def test_block_quotas(totals):
    ends = _block_ends(totals)
    whole = sum(totals)
    borders = np.minimum(np.arange(len(ends)) * BLOCK, whole)
    assert borders[-1] == whole
    assert ends[0].tolist() == [0] * len(totals)
    assert ends[-1].tolist() == totals
    assert (ends.sum(axis=1) == borders).all()
    assert (np.diff(ends, axis=0) >= 0).all(), "no sample is taken back"
    assert (np.abs(ends * whole - borders[:, None] * np.array(totals)) < whole).all(), (
        "within one of the share"
    )


def test_rare_sources_are_spread_over_the_run():
    """Fifty sources of ten samples beside a large one: largest remainder alone would give and take back."""
    ends = _block_ends([10] * 50 + [20 * BLOCK - 500])
    gaps = np.diff(ends[:, :50], axis=0)
    assert gaps.min() == 0
    assert gaps.max() == 1
    assert set(gaps.sum(axis=1).tolist()) == {25}


def test_the_seed_and_the_epoch_change_the_order():
    table = {"a": (1000, 2), "b": (500, 1)}
    first, second = (np.stack(make(table, seed).address(np.arange(2500))) for seed in (1, 2))
    assert not np.array_equal(first, second)
    source, epoch, window = first
    a = [window[(source == 0) & (epoch == e)] for e in (0, 1)]
    assert not np.array_equal(a[0], a[1])
    for order in a:
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.16
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.16
    assert abs(np.corrcoef(a[0], a[1])[0, 1]) < 0.16


def test_a_source_keeps_its_own_order_in_another_mixture():
    """Its windows come in the same order whatever else is mixed in and for however long."""

    def order(table):
        mixture = make(table)
        source, epoch, window = mixture.address(np.arange(mixture.num_samples))
        mine = source == mixture.sources.index("a")
        return list(zip(epoch[mine].tolist(), window[mine].tolist(), strict=True))

    alone = order({"a": (100, 3)})
    assert order({"b": (10, 1), "a": (100, 3)}) == alone
    assert order({"a": (100, 1), "z": (5000, 9)}) == alone[:100]


def test_the_order_is_fixed_for_ever():
    """Checkpoints resume by number: these values may change only with a new format."""
    mixture = make({"prose": (10, 4), "code": (33, "1.5"), "web": (5, 1)}, seed=1234)
    source, epoch, window = mixture.address(np.arange(0, 95, 10))
    assert source.tolist() == [1, 1, 1, 2, 0, 0, 1, 1, 0, 0]
    assert epoch.tolist() == [0, 0, 0, 0, 1, 2, 0, 1, 3, 3]
    assert window.tolist() == [1, 28, 11, 3, 7, 6, 16, 9, 1, 7]


def test_the_original_run_fits_into_memory_and_time():
    """977,920,000 samples: under 10 MB, and 1,024 addresses in a millisecond, in a row or anywhere."""
    windows = {f"s{i}": n for i, n in enumerate([777, *range(1_000_000, 13_000_000, 1_000_000), 166_479_223])}
    assert sum(windows.values()) == 244_480_000
    tracemalloc.start()
    mixture = Mixture(windows, {name: Fraction(4) for name in windows}, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mixture.num_samples == 977_920_000
    assert peak < 10e6
    rng = np.random.default_rng(0)
    for numbers in (np.arange(500_000_000, 500_001_024), rng.integers(0, mixture.num_samples, 1024)):
        times = []
        for _ in range(30):
            began = time.perf_counter()
            mixture.address(numbers)
            times.append(time.perf_counter() - began)
        assert min(times) < 50e-3  # of the right order; benchmarks/order.py has the number
    assert sum(mixture.seen(500_000_000).values()) == 500_000_000


@pytest.mark.parametrize(
    ("windows", "epochs", "message"),
    [
        ({}, {}, "name the same sources"),
        ({"a": 1}, {"b": 1}, "name the same sources"),
        ({"a": 0}, {"a": 1}, "source 'a'"),
        ({"a": 5}, {"a": 0}, "source 'a'"),
        ({"a": 5}, {"a": -1}, "source 'a'"),
        ({"a": 5}, {"a": Fraction(1, 11)}, "source 'a': 1/11 epochs of 5 windows are not half a window"),
    ],
)
def test_mixtures_that_are_refused(windows, epochs, message):
    with pytest.raises(InputError, match=message):
        Mixture(windows, epochs, 1)


def test_samples_that_do_not_exist():
    mixture = make({"a": (10, 1)})
    for numbers in ([-1], [10], [0, 10]):
        with pytest.raises(IndexError, match="from 0 to 9"):
            mixture.address(np.array(numbers))
    for n in (-1, 11):
        with pytest.raises(IndexError, match="has 10 samples"):
            mixture.seen(n)
    assert [part.shape for part in mixture.address([])] == [(0,)] * 3
