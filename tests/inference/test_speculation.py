"""Prompt lookup: the same text with fewer passes, and no guesses where they do not come true."""

from functools import partial

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.inference import Decoding, Sampling, generate_ids, speculation
from stablelm.inference import generation as loop
from stablelm.inference.runner import ModelRunner
from stablelm.inference.speculation import LookupRunner
from stablelm.model import StableLM
from tests.inference.networks import network as sharp

network = partial(sharp, 64)


class Copier(torch.nn.Module):
    """A head that goes on with a given text: its likeliest id after n ids is text[n]. Knows n by counting."""

    def __init__(self, runner_length, text):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.length, self.text = runner_length, text

    def forward(self, hidden):
        count = hidden.shape[1] if hidden.dim() == 3 else 1
        logits = torch.zeros(1, count, 64)
        for row in range(count):
            logits[0, row, self.text[self.length() - count + row + 1]] = 9.0
        return logits if hidden.dim() == 3 else logits[:, -1]


def ids_of(model, prompt, count, sampling, lookup, monkeypatch=None):
    steps = loop._new_ids(model, [prompt], count, sampling, 64, [0], Decoding(lookup=lookup))
    return [int(chosen) for chosen in steps]


PENALTIES = dict(repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, min_new_tokens=9)


@pytest.mark.parametrize("settings", [
    dict(temperature=0.0),
    dict(temperature=0.8, seed=3),
    dict(temperature=1.5, seed=4, top_k=20, top_p=0.95, logit_bias={7: 2.0}),
    dict(temperature=0.7, seed=5, **PENALTIES),
    dict(temperature=0.0, **PENALTIES),
])  # fmt: skip
def test_the_same_ids_with_and_without(settings):
    generator = torch.Generator().manual_seed(1)
    for seed in range(3):
        model = network(seed)
        for length in (1, 2, 3, 40):
            prompt = torch.randint(1, 9, (length,), generator=generator).tolist()
            plain = ids_of(model, prompt, 90, Sampling(**settings), False)
            assert ids_of(model, prompt, 90, Sampling(**settings), True) == plain


@pytest.fixture
def made(monkeypatch):
    """The runners that the loop made."""
    runners = []

    class Kept(LookupRunner):
        def __init__(self, *given):
            super().__init__(*given)
            runners.append(self)

    monkeypatch.setattr(loop, "LookupRunner", Kept)
    return runners


def copying(text, made):
    model = network()
    model.lm_head = Copier(lambda: made[-1].under._cache.length, text)
    return model


def test_a_text_that_repeats_costs_few_passes(made):
    period = [5, 9, 2, 33, 41, 17, 8, 3, 60, 12]
    text = period * 20
    model = copying(text, made)
    got = ids_of(model, text[:20], 150, Sampling(temperature=0.0), True)
    assert got == text[20:170]
    assert made[-1].passes < 20 and made[-1].saved > 3


def test_what_was_guessed_wrong_is_read_again_right(made):
    """Repeats with changes at odd places: each guess is right for a while, then wrong."""
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(1, 64, (30,), generator=generator).tolist() * 6
    for place in range(40, 180, 7):
        text[place] = (text[place] + place) % 63 + 1
    model = copying(text, made)
    assert ids_of(model, text[:30], 145, Sampling(temperature=0.0), True) == text[30:175]
    runner = made[-1]
    assert runner.under._cache.length <= runner.under._cache.capacity and runner.passes < 120


def test_it_gives_up_where_guesses_fail(made):
    """Every two words come back and are followed by another one each time."""
    text = []
    for number in range(80):
        text += [5, 9, 10 + number % 50]
    model = copying(text, made)
    assert ids_of(model, text[:30], 200, Sampling(temperature=0.0), True) == text[30:230]
    assert made[-1].saved < speculation.GIVE_UP
    made[-1]._guess = []
    assert made[-1]._next_guess() == []


def test_runner_logits_are_those_of_a_plain_one():
    """Any order of right and wrong guesses, and a trim, leave the cache as plain steps would."""
    model = network()
    prompt = torch.tensor([[3, 4, 5, 6, 3, 4, 5, 6, 3, 4]])
    plain, ahead = ModelRunner(model), LookupRunner(model)
    with torch.inference_mode():
        torch.testing.assert_close(ahead.prefill(prompt, None, 40), plain.prefill(prompt, None, 40))
        for token in (5, 6, 3, 9, 9, 3, 4, 5, 6, 3, 4, 4, 3, 4, 5):
            one = torch.tensor([token])
            torch.testing.assert_close(ahead.step(one), plain.step(one), rtol=1e-4, atol=1e-4)
        assert ahead.passes < 15
        ahead.trim(12)
        plain.trim(12)
        for token in (3, 4, 5, 6, 7):
            one = torch.tensor([token])
            torch.testing.assert_close(ahead.step(one), plain.step(one), rtol=1e-4, atol=1e-4)
        assert ahead.text == [*prompt[0].tolist(), 5, 6, 3, 4, 5, 6, 7]


def test_the_last_tokens_fit_the_cache(made):
    """Guesses stop at what was asked for, also when that is all of the context."""
    model = StableLM(preset("stablelm-1m", num_hidden_layers=1, vocab_size=64, max_position_embeddings=48))
    model.lm_head = Copier(lambda: made[-1].under._cache.length, [5, 6] * 30)
    for count in (1, 2, 3, 44):
        assert ids_of(model, [5, 6, 5, 6], count, Sampling(temperature=0.0), True) == ([5, 6] * 30)[:count]


def test_several_texts_are_refused():
    with pytest.raises(InputError, match="lookup reads ahead for one text, not for 2"):
        loop._new_ids(network(), [[1], [2]], 3, Sampling(), 64, [0], Decoding(lookup=True))
    assert generate_ids(network(), torch.tensor([[1], [2]]), max_new_tokens=3).shape == (2, 4)
