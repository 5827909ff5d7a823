"""Differences between models, told from noise."""

import math

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.evaluation.comparison import compare, difference, metric_of


def samples(values, metric="acc"):
    return [{"doc_id": i, "doc_hash": f"h{i}", metric: float(v)} for i, v in enumerate(values)]


def test_mean_error_and_interval_by_hand():
    found = difference("t", "acc", np.array([1.0, 0, 0, 1]), np.array([1.0, 1, 0, 1]))
    assert (found.first, found.second, found.difference, found.changed) == (50, 75, 25, 1)
    assert found.stderr == pytest.approx(25)  # deviations −¼, ¾, −¼, −¼: s² = ¼, s/√4 = ¼
    # one better, none worse: 1.5 and 0.5 of 6 pairs; √(2 − 1/6) / 6 of them
    assert sum(found.interval) / 2 == pytest.approx(100 / 6)
    assert found.interval[1] - 100 / 6 == pytest.approx(1.959964 * 100 * math.sqrt(2 - 1 / 6) / 6)
    assert found.verdict == "unclear"


def test_numbers_that_are_not_right_or_wrong_have_the_plain_interval():
    found = difference("t", "f1", np.array([0.5, 0.2, 0.1]), np.array([0.6, 0.2, 0.3]))
    assert found.interval[0] == pytest.approx(found.difference - 1.959964 * found.stderr)
    assert found.interval[1] == pytest.approx(found.difference + 1.959964 * found.stderr)


def test_no_change_among_few_items_leaves_room():
    same = np.array([1.0, 0.0] * 100)
    found = difference("t", "acc", same, same)
    assert (found.difference, found.changed, found.verdict) == (0, 0, "unclear")
    assert found.interval == pytest.approx((-0.97, 0.97), abs=0.01)
    generator = np.random.default_rng(3)
    inside, expected = 0, 100 * 0.006 * (1 - 2 * 0.6)  # six answers in a thousand change
    for _ in range(400):
        a = (generator.random(200) < 0.6).astype(float)
        b = np.where(generator.random(200) < 0.006, 1 - a, a)
        low, high = difference("t", "acc", a, b).interval
        inside += low <= expected <= high
    assert inside / 400 >= 0.94


def test_the_interval_contains_the_truth_in_95_of_100():
    generator = np.random.default_rng(7)
    inside, expected = 0, 100 * 0.05 * (0.4 - 0.6)
    for _ in range(400):
        a = generator.random(500) < 0.6
        flips = generator.random(500)
        b = np.where(flips < 0.05, ~a, a)  # 5 % of the answers change: 60 % of those from right to wrong
        found = difference("t", "acc", a.astype(float), b.astype(float))
        inside += found.interval[0] <= expected <= found.interval[1]
    assert 0.92 <= inside / 400 <= 0.98


def test_paired_is_narrower_than_separate_errors():
    generator = np.random.default_rng(1)
    a = (generator.random(2000) < 0.6).astype(float)
    b = a.copy()
    b[:20] = 1 - b[:20]
    assert difference("t", "acc", a, b).stderr < 100 * math.sqrt(2 * 0.24 / 2000) / 5


def test_items_are_matched_by_their_document_not_their_place():
    first, second = samples([1, 0, 0, 1]), samples([1, 0, 0, 1])[::-1]
    assert compare({"t": first}, {"t": second})[0].changed == 0


def test_the_average_of_tasks():
    found = compare(
        {"a": samples([1, 0, 1, 0]), "b": samples([0, 0, 0, 1])},
        {"a": samples([1, 1, 1, 0]), "b": samples([0, 0, 1, 1])},
    )
    assert [one.task for one in found] == ["a", "b", "average"]
    assert found[2].difference == pytest.approx((found[0].difference + found[1].difference) / 2)
    assert found[2].stderr == pytest.approx(math.hypot(found[0].stderr, found[1].stderr) / 2)


def test_verdicts():
    better = difference("t", "acc", np.zeros(100), np.r_[np.ones(30), np.zeros(70)])
    worse = difference("t", "acc", np.r_[np.ones(30), np.zeros(70)], np.zeros(100))
    assert (better.verdict, worse.verdict) == ("better", "worse")


def test_the_metric_is_that_of_the_published_table():
    assert metric_of("hellaswag", [{"acc": 1.0, "acc_norm": 0.0}]) == "acc_norm"
    assert metric_of("arc_easy", [{"acc": 1.0, "acc_norm": 0.0}]) == "acc"
    assert metric_of("gsm8k", [{"exact_match": 1.0}]) == "exact_match"
    with pytest.raises(InputError, match="no accuracy to compare"):
        metric_of("wikitext", [{"word_perplexity": 3.0}])


def test_different_items_are_refused():
    with pytest.raises(InputError, match="not evaluated on the same items"):
        compare({"t": samples([1, 0])}, {"t": samples([1, 0, 1])})
    with pytest.raises(InputError, match="only one of the two models"):
        compare({"t": samples([1, 0])}, {})
