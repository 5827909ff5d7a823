"""The calibration error: by hand, in one piece or many, and near 0 for a model that says what it knows."""

import pytest
import torch

from stablelm.evaluation.calibration import BINS, Calibration


def told(confidence, right):
    confidence = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([confidence.log(), confidence.log(), torch.tensor(right, dtype=torch.float64)])


def test_by_hand():
    """Two bins: 0.62 and 0.64 with one right of two, 0.9 with both right."""
    found = Calibration()
    found.add(told([0.62, 0.64, 0.9, 0.9], [1, 0, 1, 1]))
    assert found.tokens == 4 and found.accuracy == 0.75
    assert found.error == pytest.approx(0.5 * abs(0.5 - 0.63) + 0.5 * abs(1 - 0.9))
    first, second = found.table()
    assert (first["above"], first["up_to"]) == (9 / 15, 10 / 15) and first["tokens"] == 2
    assert first["confidence"] == pytest.approx(0.63) and first["accuracy"] == 0.5
    assert (second["above"], second["up_to"], second["accuracy"]) == (13 / 15, 14 / 15, 1.0)


def test_bounds_belong_to_the_bin_below_and_rounding_to_the_last():
    found = Calibration()
    sure = torch.tensor([[0.0], [1e-9], [1.0]])  # exp(1e-9) > 1: a float32 sum that was rounded
    found.add(sure)
    found.add(told([1e-30, 1.0], [0, 1]))
    assert [round(row["up_to"] * BINS) for row in found.table()] == [1, BINS]
    assert found.table()[1]["tokens"] == 2


def test_pieces_add_up_to_the_whole():
    draw = torch.Generator().manual_seed(2)
    confidence = torch.rand(1000, generator=draw)
    every = torch.stack(
        [confidence.log(), confidence.log(), (torch.rand(1000, generator=draw) < 0.5).float()]
    )
    whole, first, second = Calibration(), Calibration(), Calibration()
    whole.add(every)
    first.add(every[:, :300])
    for piece in every[:, 300:].split(7, dim=1):
        second.add(piece)
    assert (first + second).error == pytest.approx(whole.error, abs=1e-12)
    assert whole.sums.numel() == 3 * BINS


def test_a_calibrated_source_has_almost_no_error_and_an_overconfident_one_has_its_gap():
    draw = torch.Generator().manual_seed(3)
    confidence = torch.rand(200_000, generator=draw, dtype=torch.float64)
    for shift, expected in ((0.0, 0.0), (0.2, 0.2)):
        right = torch.rand(200_000, generator=draw) < confidence - shift * (confidence > shift)
        found = Calibration()
        found.add(torch.stack([confidence.log(), confidence.log(), right.double()]))
        share = float((confidence > shift).double().mean())
        assert found.error == pytest.approx(expected * share, abs=0.01)


def test_equal_sums_are_equal():
    first, second = Calibration(), Calibration()
    first.add(told([0.5], [1]))
    assert first != second
    second.add(told([0.5], [1]))
    assert first == second


def test_nothing_has_no_error():
    assert Calibration().error == 0 and Calibration().table() == []
