"""Continuations scored together equal each scored alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError, ModelConfig
from stablelm.config.errors import RunError
from stablelm.evaluation.scoring import score
from stablelm.evaluation.shares import Share
from stablelm.model import StableLM

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
    max_position_embeddings=48,
)  # fmt: skip
MODEL = StableLM(CONFIG, seed=3).to(torch.float64)


def alone(context, continuation, limit=48):
    """The definition: one request, all logits."""
    ids = [*context, *continuation][-(limit + 1) :]
    with torch.no_grad():
        log_p = MODEL(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    wanted = ids[len(ids) - len(continuation) :] if len(continuation) < len(ids) else ids[1:]
    places = range(len(ids) - 1 - len(wanted), len(ids) - 1)
    values = [float(log_p[place, token]) for place, token in zip(places, wanted, strict=True)]
    return sum(values), all(
        int(log_p[place].argmax()) == token for place, token in zip(places, wanted, strict=True)
    )


TOKENS = st.integers(0, 60)
FEW = st.lists(st.integers(0, 3), min_size=1, max_size=14)  # few ids: beginnings coincide often


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=12), st.integers(8, 200))
def test_equals_each_request_alone(requests, batch_tokens):
    for result, (context, continuation) in zip(
        score(MODEL, requests, batch_tokens=batch_tokens), requests, strict=True
    ):
        value, greedy = alone(context, continuation)
        assert result.loglikelihood == pytest.approx(value, abs=1e-9)
        assert result.greedy == greedy


def test_questions_share_their_beginning(monkeypatch):
    read = []
    plain = StableLM.hidden_states
    monkeypatch.setattr(
        StableLM,
        "hidden_states",
        lambda self, ids, *a, **k: read.append(ids.numel()) or plain(self, ids, *a, **k),
    )
    question = list(range(30))
    score(MODEL, [(question, [answer, 5]) for answer in range(4)])
    assert sum(read) <= 30 + 4 * 1  # not 4 × 31


@pytest.mark.parametrize("length", [46, 47, 48, 49, 60, 120])
def test_what_is_longer_than_the_context_loses_its_beginning(length):
    generator = np.random.default_rng(length)
    context, continuation = generator.integers(0, 61, length).tolist(), [7, 8, 9]
    (result,) = score(MODEL, [(context, continuation)])
    assert result.loglikelihood == pytest.approx(alone(context, continuation)[0], abs=1e-9)


def test_a_continuation_as_long_as_the_context():
    (result,) = score(MODEL, [([1], list(range(48)))])
    assert result.loglikelihood == pytest.approx(alone([1], list(range(48)))[0], abs=1e-9)


def test_batches_are_told_as_they_come():
    told = {}
    requests = [([1, 2, number], [3]) for number in range(20)]
    results = score(MODEL, requests, batch_tokens=8, on_batch=told.update)
    assert [told[number] for number in range(20)] == results


def test_how_each_token_was_predicted_is_told_too():
    told = []
    requests = [([1, 2], [3, 4]), ([1, 2], [3]), ([5], list(range(20)))]
    results = score(MODEL, requests, batch_tokens=8, on_tokens=lambda *batch: told.append(batch))
    assert sorted(number for _, members in told for number in members) == [0, 1, 2]
    every = torch.cat([part for part, _ in told], 1)
    assert every.shape == (3, 23)
    assert float(every[0].sum()) == pytest.approx(sum(one.loglikelihood for one in results))
    assert bool((every[0] <= every[1]).all()) and set(every[2].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("parts", [2, 3])
def test_shares_make_equally_many_passes_and_add_up(parts):
    """What parts score apart, added up, is what one scores; in between each hears of its own alone."""
    requests = [([1, 2, number], list(range(number % 7 + 1))) for number in range(20)]
    whole, passes, sums, heard = score(MODEL, requests, batch_tokens=16), [], [], []
    for part in range(parts):
        made, own = [], {}
        handle = MODEL.register_forward_hook(lambda *_, made=made: made.append(1))
        share = Share(part, parts, total=lambda mine: sums.append(mine) or mine, multiple=4)
        score(MODEL, requests, batch_tokens=16, on_batch=own.update, share=share)
        handle.remove()
        passes.append(len(made))
        heard += own
    assert len(set(passes)) == 1 and sorted(heard) == list(range(20))
    assert sum(sums)[0].tolist() == pytest.approx([one.loglikelihood for one in whole], abs=1e-12)
    assert sum(sums)[1].bool().tolist() == [one.greedy for one in whole]


def test_wrong_input():
    with pytest.raises(InputError, match="request 1: an empty context"):
        score(MODEL, [([1], [2]), ([], [2])])
    with pytest.raises(InputError, match=r"ids from 1 to 61, the model has 61.*do not belong together"):
        score(MODEL, [([1], [61])])
    broken = StableLM(CONFIG, seed=3)
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        score(broken, [([1], [2])])
