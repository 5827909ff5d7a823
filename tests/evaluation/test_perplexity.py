"""Bits per byte against a brute-force sum, for every way of cutting the text into windows."""

import math

import numpy as np
import pytest
import torch

from stablelm.config import preset
from stablelm.data import TokenFile, TokenFileWriter
from stablelm.evaluation import perplexity
from stablelm.evaluation.calibration import Calibration
from stablelm.model import StableLM


@pytest.fixture
def model():
    sizes = dict(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    return StableLM(preset("stablelm-1m", **sizes), seed=2)


def token_file(tmp_path, lengths):
    generator = np.random.default_rng(len(lengths))
    writer = TokenFileWriter(tmp_path / "text", vocab_size=50)
    for length in lengths:
        writer.add(generator.integers(1, 50, length))
    writer.close()
    return TokenFile(tmp_path / "text")


def brute_force(model, tokens, window, stride):
    """Each token once: from its window, which after the first starts `window − stride` tokens before."""
    stream = torch.tensor([0, *tokens.tokens(0, tokens.num_tokens).tolist()])
    total, start, predicted = 0.0, 0, 0
    while predicted < len(stream) - 1:
        piece = stream[start : start + window + 1]
        losses = torch.nn.functional.cross_entropy(model(piece[None, :-1])[0], piece[1:], reduction="none")
        fresh = losses[max(0, predicted - start) :]
        total, predicted, start = total + float(fresh.double().sum()), predicted + len(fresh), start + stride
    return total


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 8), (16, 1), (16, 15), (64, 64), (200, 50)])
@pytest.mark.parametrize("lengths", [(1,), (15, 1), (5, 30, 12), (16, 16), (33,)])
@torch.no_grad()
def test_every_token_is_counted_once(model, tmp_path, lengths, window, stride):
    tokens = token_file(tmp_path, lengths)
    result = perplexity(model, tokens, 1000, window, stride=stride, batch=3)
    assert result.tokens == sum(lengths)
    assert result.nats == pytest.approx(brute_force(model, tokens, window, stride), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(result.nats / math.log(2) / 1000)
    assert result.loss == pytest.approx(result.nats / sum(lengths))
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.calibration.tokens == sum(lengths)


@torch.no_grad()
def test_calibration_is_that_of_every_token_alone(model, tmp_path):
    model.lm_head.weight.mul_(30)
    tokens = token_file(tmp_path, (40, 23))
    found = perplexity(model, tokens, 1000, 16, stride=4, batch=3).calibration
    stream, wanted, predicted, start = [0, *tokens.tokens(0, 63).tolist()], Calibration(), 0, 0
    while predicted < 63:
        piece = torch.tensor(stream[start : start + 17])
        nats = model(piece[None, :-1])[0].log_softmax(-1)
        for place in range(predicted - start, len(piece) - 1):
            best = nats[place].max(-1)
            wanted.add(torch.stack([best.values, best.values, (best.indices == piece[place + 1])])[:, None])
        predicted, start = start + len(piece) - 1, start + 4
    torch.testing.assert_close(found.sums, wanted.sums, atol=1e-4, rtol=0)
    assert found.error == pytest.approx(wanted.error, abs=1e-6) and found.error > 0.1


def test_a_sample_of_windows_counts_its_share_of_the_bytes(model, tmp_path):
    tokens = token_file(tmp_path, (320,))
    part = perplexity(model, tokens, 960, 16, windows=5)
    assert part.tokens == 80
    assert part.text_bytes == pytest.approx(240)
    whole = perplexity(model, tokens, 960, 16, windows=500)
    assert whole.tokens == 320
    assert part.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.1)
