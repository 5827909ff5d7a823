"""Three numbers a token, against a plain softmax; logits of a few tokens at a time."""

import pytest
import torch

from stablelm.config import preset
from stablelm.inference.quantization import Recipe, quantize
from stablelm.model import StableLM
from stablelm.model.predictions import predictions

CONFIG = preset(
    "stablelm-1m", vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=48, max_position_embeddings=64,
)  # fmt: skip


def test_the_numbers_are_those_of_a_softmax():
    model = StableLM(CONFIG, seed=3).double()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    ids = torch.randint(61, (3, 40), generator=torch.Generator().manual_seed(1))
    nats = model(ids).log_softmax(-1)  # [3, 40, V]
    wanted = nats[:, :-1].argmax(-1)
    wanted[:, ::2] = ids[:, 1::2][:, : wanted[:, ::2].shape[1]]
    places = (torch.arange(3)[:, None] * 40 + torch.arange(39)).flatten()
    told = model(ids, labels=wanted.flatten(), places=places)
    assert told.shape == (3, 117) and told.dtype == torch.float64
    expected = nats[:, :-1].gather(2, wanted[..., None]).flatten()
    torch.testing.assert_close(told[0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(told[1], nats[:, :-1].amax(-1).flatten(), atol=1e-12, rtol=0)
    assert torch.equal(told[2].bool(), (nats[:, :-1].argmax(-1) == wanted).flatten())
    assert 20 < told[2].sum() < 117


def test_of_equal_ones_the_first_is_the_likeliest():
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0]] * 4)
    told = predictions(lambda h: logits.clone(), torch.zeros(4, 8), torch.arange(4))
    assert told[2].tolist() == [0, 1, 0, 0]
    assert told[0][1] == told[0][2] == told[1][0]


def test_logits_of_few_places_at_a_time(monkeypatch):
    monkeypatch.setattr("stablelm.model.predictions.ROWS", 3)
    seen, weight = [], torch.randn(50, 8)
    told = predictions(lambda h: seen.append(len(h)) or h @ weight.T, torch.randn(20, 8), torch.arange(20))
    assert max(seen) == 3 and sum(seen) == 20 and told.shape == (3, 20)
    assert predictions(lambda h: h @ weight.T, torch.zeros(0, 8), torch.arange(0)).shape == (3, 0)


def test_a_quantised_head_answers_alike():
    model = StableLM(preset("stablelm-1m", vocab_size=128, num_hidden_layers=1), seed=2)
    quantize(model, Recipe.of(8))
    ids = torch.arange(40).view(2, 20)
    told = model(ids, labels=ids[:, 1:].flatten(), places=torch.tensor([*range(19), *range(20, 39)]))
    nats = model(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).flatten()
    assert told[0].tolist() == pytest.approx(nats.tolist(), abs=1e-5)
