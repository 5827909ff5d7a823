"""Phases: the mixture changes during a run, each source goes on where it stopped, nothing before moves."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.data.mixture import BLOCK, Mixture, Phase

WINDOWS = {"code": 333, "prose": 100, "web": 77, "rare": 2, "late": 50}
PHASES = [
    Phase({"code": 1, "prose": Fraction(3, 2), "rare": Fraction(1, 2)}),
    Phase({"web": 2, "prose": Fraction(1, 3)}),
    Phase({"code": Fraction(7, 5), "late": 3, "rare": 4}),
    Phase({"prose": Fraction(13, 6)}),
]


def whole(mixture):
    return np.stack(mixture.address(np.arange(mixture.num_samples)), axis=1)


def in_order(mixture, order):
    """Epochs strictly in order for each source, each window once an epoch."""
    for index, name in enumerate(mixture.sources):
        mine = order[order[:, 0] == index]
        windows = mixture.windows[name]
        assert len(mine) == mixture.totals[name]
        assert np.array_equal(mine[:, 1], np.arange(len(mine)) // windows)
        for epoch in range(-(-len(mine) // windows)):
            drawn = mine[mine[:, 1] == epoch][:, 2]
            assert len(set(drawn.tolist())) == len(drawn)


def test_counts_are_exact_over_phases():
    mixture = Mixture(WINDOWS, PHASES, 7)
    in_order(mixture, whole(mixture))
    assert mixture.sources == ("code", "prose", "rare", "web", "late")
    assert mixture.totals == {
        "code": 333 + round(1.4 * 333), "prose": 400, "rare": 9, "web": 154, "late": 150,
    }  # fmt: skip
    assert mixture.epochs["prose"] == 4, "3/2 and 1/3 and 13/6 make four epochs, to the window"
    sizes = [order.size for order in mixture.phases]
    assert sizes == [333 + 150 + 1, 154 + 33, 466 + 150 + 8, 217]
    bounds = np.cumsum([0, *sizes])
    order = whole(mixture)
    for number, phase in enumerate(PHASES):
        part = order[bounds[number] : bounds[number + 1], 0]
        assert {mixture.sources[i] for i in set(part.tolist())} == set(phase.epochs)


def test_a_phase_more_changes_nothing_before_it():
    longest = Mixture(WINDOWS, PHASES, 7)
    for count in range(1, len(PHASES)):
        used = {name for phase in PHASES[:count] for name in phase.epochs}
        shorter = Mixture({name: n for name, n in WINDOWS.items() if name in used}, PHASES[:count], 7)
        order = whole(shorter)
        assert shorter.sources == longest.sources[: len(shorter.sources)]
        assert np.array_equal(order, whole(longest)[: len(order)])


def test_one_phase_is_the_table():
    table = {"code": 1, "prose": Fraction(3, 2)}
    windows = {"code": 333, "prose": 100}
    assert np.array_equal(whole(Mixture(windows, table, 7)), whole(Mixture(windows, [Phase(table)], 7)))


@pytest.mark.parametrize("until", [1, 2, 50, 333, 482, 483])
def test_a_phase_cut_short(until):
    """What was read is a prefix of the uncut phase; the next phase takes up every source's thread."""
    table = {"code": 1, "prose": Fraction(3, 2)}
    uncut = whole(Mixture({"code": 333, "prose": 100}, table, 7))
    windows = {"code": 333, "prose": 100, "web": 77}
    mixture = Mixture(
        windows, [Phase(table, until), Phase({"prose": 2, "web": 1, "code": Fraction(1, 2)})], 7
    )
    order = whole(mixture)
    assert np.array_equal(order[:until], uncut[:until])
    in_order(mixture, order)
    read = int((uncut[:until, 0] == 1).sum())
    assert mixture.totals["prose"] == read + 200
    assert mixture.epochs["prose"] == Fraction(read, 100) + 2
    assert mixture.phases[0].cut == (until < 483)


def test_the_order_of_a_phase_depends_on_what_came_before_alone():
    """Its interleaving is its own, so a repeated table is not a repeated pattern."""
    table = {"a": 2, "b": 3, "c": 1}
    mixture = Mixture({"a": 300, "b": 100, "c": 300}, [Phase(table), Phase(table)], 1)
    first, second = whole(mixture)[:1200, 0], whole(mixture)[1200:, 0]
    assert (first != second).mean() > 0.2
    assert np.array_equal(np.bincount(first), np.bincount(second))


def test_seen_counts_the_prefix():
    mixture = Mixture(WINDOWS, PHASES, 3)
    order = whole(mixture)
    for n in range(0, mixture.num_samples + 1, 17):
        counts = np.bincount(order[:n, 0], minlength=5).tolist()
        assert list(mixture.seen(n).values()) == counts, n
    assert mixture.seen(mixture.num_samples) == mixture.totals
    for first in np.cumsum([order.size for order in mixture.phases])[:-1].tolist():
        assert sum(mixture.seen(first).values()) == first


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abcdefg"),
            st.fractions(min_value=Fraction(1, 9), max_value=4, max_denominator=9),
            min_size=1,
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 3),
)
def test_where_a_window_is_has_one_answer(tables, seed):
    # At least two windows a phase: epochs are rounded as a sum, so a phase of less may add none (an error).
    windows = {name: 18 + 11 * number for number, name in enumerate("abcdefg")}
    used = {name for table in tables for name in table}
    mixture = Mixture({n: w for n, w in windows.items() if n in used}, [Phase(t) for t in tables], seed)
    order = whole(mixture)
    in_order(mixture, order)
    assert np.array_equal(mixture.sample_number(*order.T), np.arange(len(order)))


def test_where_windows_of_many_blocks_are():
    windows = {"a": 150_000, "b": 3, "c": 4000, "d": 777}
    mixture = Mixture(
        windows, [Phase({"a": 2, "b": 1, "c": 5}, 3 * BLOCK + 5), Phase({"a": 1, "d": 9, "b": 2})], 5
    )
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, mixture.num_samples, 5000)
    assert np.array_equal(mixture.sample_number(*mixture.address(numbers)), numbers)
    never = mixture.sample_number(mixture.sources.index("b"), 8, [0, 1, 2])
    assert never.tolist() == [-1, -1, -1]
    unread = [mixture.sample_number(i, 0, np.arange(n)) for i, n in enumerate(windows.values())]
    assert all((numbers >= 0).all() and len(set(numbers.tolist())) == len(numbers) for numbers in unread)
    for wrong in ((0, 0, 150_000), (1, 0, 3), (0, -1, 0), (0, 0, -1)):
        with pytest.raises(IndexError, match="outside"):
            mixture.sample_number(*wrong)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([Phase({"a": 1}), Phase({"a": 0})], "phase 2: source 'a': 0 epochs"),
        ([Phase({"a": 1}), Phase({"a": Fraction(1, 50)})], "phase 2: source 'a': 1/50 epochs.*not half"),
        ([Phase({"a": Fraction(1, 18)})] * 2, "phase 2: source 'a': 1/18 epochs of 10 windows add no whole"),
        ([Phase({"a": 1}, 11), Phase({"a": 1})], "phase 1: it is to end before sample 11; .* hold 10"),
        (
            [Phase({"a": 1}), Phase({"a": 1}, 10)],
            "phase 2: it is to end before sample 10; it begins at sample 10",
        ),
        (
            [Phase({"a": 1}), Phase({"a": 1}, 4)],
            "phase 2: it is to end before sample 4; it begins at sample 10",
        ),
        ([Phase({"a": 1}), Phase({"b": 1})], "name the same sources"),
        ([], "name the same sources"),
    ],
)
def test_refusals(phases, message):
    with pytest.raises(InputError, match=message):
        Mixture({"a": 10}, phases, 1)
