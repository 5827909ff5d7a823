"""Each transform against an independent numpy version, and the draw against the probabilities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.inference import Sampling
from stablelm.inference.sampling import choose, distribution, draw, penalize, uniform


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Probabilities by the definitions, written from likeliest to least: another road than the one under
    test."""
    x = logits.astype(np.float64) / temperature
    order = sorted(range(len(x)), key=lambda i: -x[i])
    if top_k:
        order = order[:top_k]
    p = dict(zip(order, softmax(x[order]), strict=True))
    kept, total = [], 0.0
    for i in order:
        if kept and total >= top_p:
            break
        kept.append(i)
        total += p[i]
    best = p[kept[0]]
    kept = [i for i in kept if p[i] >= min_p * best]
    out = np.zeros(len(x))
    out[kept] = np.array([p[i] for i in kept]) / sum(p[i] for i in kept)
    return out


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 60),
    temperature=st.sampled_from([0.05, 0.3, 0.75, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 7, 59, 1000]),
    top_p=st.sampled_from([0.0, 0.031, 0.377, 0.9511, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.3, 1.0]),
)
def test_the_distribution(seed, size, temperature, top_k, top_p, min_p) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    ours = distribution(torch.tensor(logits)[None], Sampling(temperature, top_k, top_p, min_p))[0]
    np.testing.assert_allclose(ours.numpy(), reference(logits, temperature, top_k, top_p, min_p), atol=2e-6)


def test_filters_are_applied_after_the_temperature_and_in_order() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]]))
    # At temperature 0.5 the probabilities go as their squares: 256 : 64 : 16 : 4 : 4 of 344.
    assert (distribution(logits, Sampling(temperature=0.5, top_p=0.8))[0] > 0).tolist() == [1, 1, 0, 0, 0]
    assert (distribution(logits, Sampling(temperature=0.5, top_p=0.7))[0] > 0).tolist() == [1, 0, 0, 0, 0]
    # top-k first: of the two left, the first has 0.667, so top-p 0.6 drops the second; top-p first would keep
    # it.
    assert (distribution(logits, Sampling(top_k=2, top_p=0.6))[0] > 0).tolist() == [1, 0, 0, 0, 0]
    assert (distribution(logits, Sampling(top_p=0.6))[0] > 0).tolist() == [1, 1, 0, 0, 0]
    # min-p: the threshold is a share of the largest probability, equal is kept.
    assert (distribution(logits, Sampling(min_p=0.26))[0] > 0).tolist() == [1, 1, 0, 0, 0]


def test_rows_do_not_influence_each_other() -> None:
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)) * 4
    sampling = Sampling(0.8, 30, 0.9, 0.02)
    together = distribution(logits, sampling)
    for row in range(5):
        assert torch.equal(together[row], distribution(logits[row : row + 1], sampling)[0])


def test_the_repetition_penalty() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, 3.0], [2.0, -2.0, 0.0, 3.0]])
    seen = torch.tensor([[True, True, True, False], [False, False, False, True]])
    assert penalize(logits, seen, 4.0).tolist() == [[0.5, -8.0, 0.0, 3.0], [2.0, -2.0, 0.0, 0.75]]
    assert penalize(logits, seen, 0.5)[0].tolist() == [4.0, -1.0, 0.0, 3.0]
    greedy = Sampling(temperature=0, repetition_penalty=4.0)
    assert choose(logits, seen, greedy, [0, 1], 0).tolist() == [3, 0]


def test_drawn_frequencies_match_the_probabilities() -> None:
    """Pearson's χ² over 30,000 draws; the seeds are fixed, so this passes always or never."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(3)) * 2
    probabilities = distribution(logits, Sampling(temperature=0.9, top_k=25))
    draws = 30_000
    for numbers in (
        [uniform(seed, 0) for seed in range(draws)],  # neighbouring seeds, as the rows of batches
        [uniform(12, position) for position in range(draws)],  # one text
    ):
        ids = draw(probabilities.expand(draws, -1), numbers)
        counts = torch.bincount(ids, minlength=40).double()
        expected = probabilities[0].double() * draws
        kept = expected > 0
        assert counts[~kept].sum() == 0
        statistic = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
        freedom = int(kept.sum()) - 1
        assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_neighbouring_draws_are_not_correlated() -> None:
    grid = np.array([[uniform(seed, position) for position in range(60)] for seed in range(60)])
    assert 0 <= grid.min() < grid.max() < 1
    for a, b in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:]), (grid[:-1, 1:], grid[1:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.06
    assert uniform(5, 3) == uniform(5, 3)
    assert uniform(-5, 3) != uniform(5, 3)


def test_the_draw_never_lands_on_an_impossible_id() -> None:
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    for number, expected in ((0.0, 1), (0.29, 1), (0.31, 3), (1 - 2**-52, 3)):
        assert draw(probabilities, [number]).tolist() == [expected]
    thirds = torch.full((1, 3), 1 / 3)  # sums to a little more or less than 1
    assert draw(torch.cat([thirds, torch.zeros(1, 9)], 1), [1 - 2**-52]).tolist() == [2]
    assert draw(probabilities[:, [1, 3]].repeat(2, 1), [0.1, 0.9]).tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [1e-6, 1e-45, 1e-320])
def test_a_tiny_temperature_is_greedy_not_nan(temperature: float) -> None:
    logits = torch.tensor([[-4.0, 30.0, 29.9]])
    assert distribution(logits, Sampling(temperature)).tolist() == [[0.0, 1.0, 0.0]]


def test_a_huge_temperature_is_uniform() -> None:
    logits = torch.tensor([[-4.0, 30.0, 29.9, -math.inf]])
    torch.testing.assert_close(
        distribution(logits, Sampling(1e30)), torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]])
    )


def test_broken_logits_are_named() -> None:
    for value in (math.nan, math.inf):
        logits = torch.zeros(2, 8)
        logits[1, 3] = value
        for temperature in (0.0, 1.0):
            with pytest.raises(InputError, match="logits of new token 7 are not finite"):
                choose(logits, None, Sampling(temperature), [1, 2], 7)
    with pytest.raises(InputError, match="not finite"):
        choose(torch.full((1, 4), -math.inf), None, Sampling(), [1], 0)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-0.1), dict(temperature=math.nan), dict(temperature=math.inf), dict(temperature="1"),
        dict(temperature=True), dict(temperature=None), dict(top_p=-0.01), dict(top_p=1.01),
        dict(top_p=math.nan), dict(min_p=-1), dict(min_p=1.5), dict(top_k=-1), dict(top_k=1.0),
        dict(top_k=True), dict(top_k=None),
        dict(repetition_penalty=0), dict(repetition_penalty=-2), dict(repetition_penalty=math.inf),
        dict(seed=1.5), dict(seed="1"), dict(seed=True),
    ],
    ids=str,
)  # fmt: skip
def test_out_of_range_is_refused_by_name(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name} must be"):
        Sampling(**wrong)


def test_the_edges_of_the_ranges_are_allowed() -> None:
    Sampling(temperature=0, top_k=0, top_p=0, min_p=0, repetition_penalty=0.01, seed=0)
    Sampling(temperature=5, top_k=10**9, top_p=1, min_p=1, repetition_penalty=9.0, seed=-(2**70))
