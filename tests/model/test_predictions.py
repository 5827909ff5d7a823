"""Three numbers a token, against a plain softmax; logits of a few tokens at a time."""

import pytest
import torch

from stablelm.config import preset
from stablelm.inference.quantization import Recipe, quantize
from stablelm.model import StableLM
from stablelm.model.head import Head
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


class Known:
    """A matrix whose products are looked up."""

    def __init__(self, logits):
        self.logits, self.rows, self.asked = logits, logits.shape[1], []

    def times(self, x, out):
        out.copy_(self.logits[: len(x)])
        self.asked.append(len(x))


def test_of_equal_ones_the_first_is_the_likeliest():
    matrix = Known(torch.tensor([[1.0, 5.0, 5.0, 0.0]] * 4))
    told = predictions(torch.zeros(4, 8), matrix, torch.arange(4))
    assert told[2].tolist() == [0, 1, 0, 0]
    assert told[0][1] == told[0][2] == told[1][0]


def test_logits_of_few_places_at_a_time(monkeypatch):
    monkeypatch.setattr("stablelm.model.predictions.ROWS", 3)
    matrix = Known(torch.randn(3, 50))
    told = predictions(torch.randn(20, 8), matrix, torch.arange(20))
    assert max(matrix.asked) == 3 and sum(matrix.asked) == 20 and told.shape == (3, 20)
    assert predictions(torch.zeros(0, 8), torch.randn(50, 8), torch.arange(0)).shape == (3, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_first_number_has_the_gradient_of_a_softmax(monkeypatch, dtype):
    """Through a function of all of them, a few tokens at a time; places may repeat."""
    monkeypatch.setattr("stablelm.model.predictions.ROWS", 7)
    draw = torch.Generator().manual_seed(2)
    head = Head(16, 50).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(50, 16, generator=draw))
    hidden = torch.randn(3, 20, 16, generator=draw).to(dtype).requires_grad_()
    places, ids = torch.randint(60, (33,), generator=draw), torch.randint(50, (33,), generator=draw)
    weights = torch.rand(33, generator=draw).to(torch.promote_types(dtype, torch.float32))
    told = head(hidden, ids, places)[0]
    logits = torch.nn.functional.linear(hidden.flatten(0, 1)[places], head.weight)
    plain = logits.to(told.dtype).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    ours, theirs = (
        torch.autograd.grad((nats * weights).sum().div(33).sin(), (hidden, head.weight))
        for nats in (told, plain)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and float(b.abs().max()) > 1e-3
        torch.testing.assert_close(a, b, atol=1e-13 if dtype == torch.float64 else 2e-3, rtol=0)


def test_a_frozen_quantised_head_passes_the_gradient_on():
    model = StableLM(preset("stablelm-1m", vocab_size=128, num_hidden_layers=1), seed=2)
    quantize(model, Recipe.of(8))
    hidden = torch.randn(9, model.config.hidden_size).requires_grad_()
    ids = torch.arange(9)
    plain = model.lm_head(hidden).log_softmax(-1).gather(1, ids[:, None]).square().sum()
    told = model.lm_head(hidden[None], ids, ids)[0].square().sum()
    wanted, found = (torch.autograd.grad(value, hidden)[0] for value in (plain, told))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_a_quantised_head_answers_alike():
    model = StableLM(preset("stablelm-1m", vocab_size=128, num_hidden_layers=1), seed=2)
    quantize(model, Recipe.of(8))
    ids = torch.arange(40).view(2, 20)
    told = model(ids, labels=ids[:, 1:].flatten(), places=torch.tensor([*range(19), *range(20, 39)]))
    nats = model(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).flatten()
    assert told[0].tolist() == pytest.approx(nats.tolist(), abs=1e-5)
