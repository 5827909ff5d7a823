"""Sampling's transforms against the processors of `transformers`."""

import pytest
import torch

from stablelm.inference import Sampling
from stablelm.inference.sampling import adjust, distribution

process = pytest.importorskip("transformers.generation.logits_process")
pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("temperature", [0.3, 0.9, 1.7])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "typical"),
    [(0, 1.0, 0.0, 0.2), (0, 1.0, 0.0, 0.95), (30, 0.9, 0.02, 0.8), (7, 1.0, 0.1, 1.0), (0, 0.5, 0.0, 1.0)],
)
def test_the_filters_in_their_order(temperature, top_k, top_p, min_p, typical) -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(1)) * 3
    scores = process.TemperatureLogitsWarper(temperature)(None, logits)
    for wanted, warper in (
        (top_k > 0, lambda: process.TopKLogitsWarper(top_k)),
        (top_p < 1, lambda: process.TopPLogitsWarper(top_p)),
        (min_p > 0, lambda: process.MinPLogitsWarper(min_p)),
        (typical < 1, lambda: process.TypicalLogitsWarper(typical)),
    ):
        scores = warper()(None, scores) if wanted else scores
    ours = distribution(logits, Sampling(temperature, top_k, top_p, min_p, typical_p=typical))
    torch.testing.assert_close(ours, scores.softmax(-1), rtol=1e-4, atol=1e-6)


def test_bias_then_penalty_then_least_length() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(2)) * 3
    ids = torch.tensor([[3, 4, 4], [9, 8, 7]])
    sampling = Sampling(repetition_penalty=1.3, logit_bias={4: -2.0, 11: 1.5}, banned_ids=[20])
    bias = {(4,): -2.0, (11,): 1.5, (20,): float("-inf")}
    scores = process.SequenceBiasLogitsProcessor(bias)(ids, logits)
    scores = process.RepetitionPenaltyLogitsProcessor(1.3)(ids, scores)
    scores = process.MinNewTokensLengthLogitsProcessor(1, 5, [0], device="cpu")(ids, scores)
    seen = torch.zeros(2, 50, dtype=torch.bool).scatter(1, ids, True)
    ours = adjust(logits, sampling, seen, None, sampling.bias(50, 50, logits.device), [0])
    torch.testing.assert_close(ours, scores)
