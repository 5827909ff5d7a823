"""Penalties, biases, allowed and banned ids, least length, typical sampling: alone, and in generation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError, preset
from stablelm.inference import Sampling, generate, generate_ids
from stablelm.inference.sampling import adjust, distribution
from stablelm.model import StableLM
from stablelm.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def model() -> StableLM:
    return StableLM(preset("stablelm-1m", num_hidden_layers=1, vocab_size=512), seed=3)


def run(model: StableLM, count: int = 30, rows: int = 1, **options) -> torch.Tensor:
    ids = torch.tensor([[4, 5, 6]] * rows)
    return generate_ids(model, ids, max_new_tokens=count, sampling=Sampling(**options), eos_ids=[0])[:, 3:]


@settings(max_examples=200)
@given(seed=st.integers(0, 9999), size=st.integers(1, 50), mass=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999]))
def test_typical(seed: int, size: int, mass: float) -> None:
    """Meister et al. (2022), equation 11, by a plain loop."""
    logits = np.random.default_rng(seed).normal(0, 2, size)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    entropy = -(p * np.log(p)).sum()
    kept, total = [], 0.0
    for number in sorted(range(size), key=lambda i: abs(-np.log(p[i]) - entropy)):
        kept.append(number)
        total += p[number]
        if total >= mass:
            break
    expected = np.zeros(size)
    expected[kept] = p[kept] / p[kept].sum()
    ours = distribution(torch.tensor(logits)[None], Sampling(typical_p=mass))[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_typical_after_the_other_filters_keeps_something() -> None:
    logits = torch.randn(20, 60, generator=torch.Generator().manual_seed(0)) * 3
    kept = distribution(logits, Sampling(1.3, 9, 0.9, 0.05, typical_p=0.3))
    wider = distribution(logits, Sampling(1.3, 9, 0.9, 0.05))
    assert ((kept > 0) <= (wider > 0)).all() and (kept > 0).sum() < (wider > 0).sum()
    torch.testing.assert_close(kept.sum(-1), torch.ones(20))


def test_presence_and_frequency_count_the_new_text() -> None:
    logits, counts = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 3.0]])
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    assert adjust(logits, sampling, None, counts, None).tolist() == [[1.0, 1.25, 1.75]]


def test_a_frequency_penalty_forbids_repetition_but_not_of_the_prompt(model: StableLM) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        new = run(model, 60, temperature=0, logit_bias={5: 50.0}, **{name: 1e5})[0].tolist()
        assert new[0] == 5 and len(set(new)) == len(new)
        assert set(run(model, 9, temperature=0, **{name: -1e5})[0].tolist()).__len__() == 1


def test_bias_bans_and_allows(model: StableLM) -> None:
    for temperature in (0.0, 1.0):
        base = dict(temperature=temperature, seed=1)
        assert set(run(model, logit_bias={9: 1e4}, **base)[0].tolist()) == {9}
        assert set(run(model, 60, allowed_ids=[7, 8], **base)[0].tolist()) <= {7, 8}
        assert set(run(model, allowed_ids=[7, 8], banned_ids=[8], **base)[0].tolist()) == {7}
        first = run(model, 1, **base).item()
        assert first not in run(model, 40, banned_ids=[first], **base)[0].tolist()


def test_a_text_does_not_end_before_its_least_length(model: StableLM) -> None:
    end = dict(logit_bias={0: 1e4}, seed=2)
    for temperature in (0.0, 1.0):
        assert run(model, temperature=temperature, **end).tolist() == [[0]]
        new = run(model, temperature=temperature, min_new_tokens=7, **end)[0].tolist()
        assert len(new) == 8 and new[-1] == 0 and 0 not in new[:-1]


def test_the_same_text_alone_and_in_a_batch_of_seven() -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat and looked at the dog " * 9], 300)
    model = StableLM(preset("stablelm-1m", num_hidden_layers=1, vocab_size=512), seed=3)
    setting = dict(
        typical_p=0.9, presence_penalty=0.3, frequency_penalty=0.2, min_new_tokens=3, banned_ids=[40],
        logit_bias={50: 1.0}, repetition_penalty=1.1,
    )  # fmt: skip
    prompts = ["the cat", "", "on", "a dog and the cat sat", "mat " * 9, "x", "the"]
    together = generate(model, tokenizer, prompts, sampling=Sampling(seed=11, **setting), max_new_tokens=20)
    for row, prompt in enumerate(prompts):
        alone = Sampling(seed=11 + row, **setting)
        assert generate(model, tokenizer, prompt, sampling=alone, max_new_tokens=20) == together[row]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(typical_p=1.5), "typical_p must be a number from 0 to 1"),
        (dict(presence_penalty=float("nan")), "presence_penalty must be a number that is finite"),
        (dict(logit_bias={-1: 1.0}), "logit_bias must name ids"),
        (dict(logit_bias={1: float("inf")}), "logit_bias must map ids to finite numbers"),
        (dict(logit_bias=[1, 2]), "logit_bias must map ids"),
        (dict(banned_ids="12"), "banned_ids must name ids"),
        (dict(allowed_ids=[1.5]), "allowed_ids must name ids"),
        (dict(min_new_tokens=-1), "min_new_tokens must be a whole number"),
    ],
    ids=str,
)
def test_out_of_range_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sampling(**wrong)


def test_ids_that_cannot_be_are_refused_before_the_start(model: StableLM, monkeypatch) -> None:
    monkeypatch.setattr(model, "hidden_states", None)
    for wrong in (dict(banned_ids=[512]), dict(allowed_ids=[3, 999]), dict(logit_bias={600: 1.0})):
        with pytest.raises(InputError, match="the vocabulary has 512"):
            run(model, **wrong)
    for wrong in (dict(allowed_ids=[]), dict(allowed_ids=[4], banned_ids=[4])):
        with pytest.raises(InputError, match="leave no id to choose"):
            run(model, **wrong)
    with pytest.raises(InputError, match="both in `sampling` and by name"):
        generate(model, train_tokenizer(["ab"], 281), "a", temperature=0.5, sampling=Sampling())


def test_only_the_end_is_allowed_and_forbidden(model: StableLM) -> None:
    with pytest.raises(InputError, match="min_new_tokens forbids the end"):
        run(model, allowed_ids=[0], min_new_tokens=2)
