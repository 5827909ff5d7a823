"""Texts as one array."""

import numpy as np
import pytest

from stablelm.data.texts import Texts


def test_what_goes_in_comes_out():
    strings = ["", "a", "naïve café", "", "日本語\n", "\U0001f600"]
    texts = Texts.of(strings)
    assert list(texts) == strings and len(texts) == 6
    assert texts.data.nbytes == sum(len(s.encode()) for s in strings) and texts.ends.dtype == np.int64
    assert texts.raw(2) == "naïve café".encode() and texts.start(2) == 1


def test_nothing_at_all():
    assert list(Texts.of([])) == [] and len(Texts.of([])) == 0


@pytest.mark.parametrize("number", [-1, 2, 100])
def test_a_number_outside(number):
    with pytest.raises(IndexError, match="of 2"):
        Texts.of(["a", "b"])[number]
