"""Copying: what is read, what counts, and that it tells a network that copies from one that cannot."""

import math

import numpy as np
import pytest
import torch

from stablelm.config import preset
from stablelm.evaluation.copying import copying, sequences
from stablelm.evaluation.shares import Share
from stablelm.model import StableLM

CONFIG = preset("stablelm-1m", num_hidden_layers=1, vocab_size=128)


def test_the_sequences_are_the_same_everywhere():
    """The draws of a counter-based generator, which no version of NumPy may change."""
    found = sequences(2, 5, [10, 20, 30, 40])
    assert found.tolist() == [
        [10, 40, 40, 10, 40, 10, 40, 40, 10, 40], [10, 40, 10, 30, 30, 10, 40, 10, 30, 30],
    ]  # fmt: skip
    many = sequences(200, 50, list(range(3, 103)))
    assert set(many.ravel()) == set(range(3, 103))
    assert np.bincount(many[:, :50].ravel())[3:].std() < 15  # of 100 expected each: √100 = 10


def test_a_fresh_network_knows_neither_half():
    found = copying(StableLM(CONFIG, seed=1), range(128), 4, 64, 256)
    assert found["loss"] == pytest.approx(math.log(128), abs=0.1)
    assert found["first_loss"] == pytest.approx(math.log(128), abs=0.1)
    assert found["accuracy"] < 0.1 and found["period"] == 32 and found["sequences"] == 4


class Copier(StableLM):
    """Predicts what followed the same id before, with probability 0.9; everything alike when it is new."""

    def forward(self, ids, *, labels, places):
        width, told = ids.shape[1], []
        for place, wanted in zip(places.tolist(), labels.tolist(), strict=True):
            row, at = ids[place // width], place % width
            before = [i for i in range(at) if row[i] == row[at]]
            right = bool(before) and int(row[before[-1] + 1]) == wanted
            told.append((math.log(0.9 if right else 1 / 128), math.log(0.9), float(right)))
        return torch.tensor(told).T


def test_a_network_that_copies_is_right_the_second_time():
    found = copying(Copier(CONFIG), range(1, 128), 3, 40, 100)
    assert found["first_loss"] > 4 and found["accuracy"] > 0.6 and found["loss"] < 1.8


def test_parts_and_padding_change_nothing():
    model = StableLM(CONFIG, seed=1).double()
    whole, mine = copying(model, range(128), 5, 36, 40), []
    for part in range(2):
        share = Share(part, 2, total=lambda sums: mine.append(sums) or sums, multiple=8)
        copying(model, range(128), 5, 36, 80, share)
    first, second, _ = (sum(mine) / (5 * 18)).tolist()
    assert (first, second) == pytest.approx((whole["first_loss"], whole["loss"]), abs=1e-12)
