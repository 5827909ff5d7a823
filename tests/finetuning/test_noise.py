"""NEFTune and label smoothing: the formulas, nothing where they are off, exact on resume."""

import numpy as np
import pytest
import torch

from stablelm.config import InputError
from stablelm.config.finetune import finetune_config
from stablelm.finetuning import finetune
from stablelm.finetuning.held_out import measure
from stablelm.finetuning.noise import EmbeddingNoise
from stablelm.finetuning.packing import ExampleSamples
from stablelm.finetuning.tuner import Tuner, prepare
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "kind" not in record]


def test_noise_is_that_of_the_paper_and_of_its_sample(make):
    config = make()
    model, data = prepare(config)
    order = ExampleSamples(data.rows, config.run(model))
    noise = EmbeddingNoise(5.0, order, seed=1, width=32)
    drawn = noise.of(4)
    row = int(order.mixture.address(np.array([4]))[2][0])
    at = 0
    for size in data.rows.sizes(row):
        part, bound = drawn[at : at + size], 5.0 / (size * 32) ** 0.5
        assert 0.9 * bound < part.abs().max() <= bound
        assert part.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        at += size
    assert (drawn[at:] == 0).all() and drawn.shape == (96, 32)
    assert torch.equal(drawn, noise.of(4)) and not torch.equal(drawn, noise.of(5))
    assert not torch.equal(drawn, EmbeddingNoise(5.0, order, seed=2, width=32).of(4))


def test_noise_reaches_the_loss_of_training_alone(make):
    """A step with noise is the step on embeddings to which it was added; held-out loss has none."""
    config = make(neftune=5.0, epochs=1, batch={"sequences": 4, "micro_sequences": 3})
    model, data = prepare(config)
    tuner = Tuner(data, config, config.run(model), Recorder(), dtype=torch.float64)
    numbers = np.arange(4)
    samples = torch.from_numpy(tuner.order.read(numbers))
    inputs = torch.where(samples < 0, ~samples, samples)[:, :-1]
    plain = tuner.model.model.embed_tokens(inputs)
    noisy = plain + torch.stack([tuner.noise.of(number) for number in range(4)]).double()
    handle = tuner.model.model.embed_tokens.register_forward_hook(lambda *_: noisy)
    ids = torch.from_numpy(tuner.order.documents(numbers))
    wanted = float(tuner.model(inputs, labels=samples[:, 1:], document_ids=ids).detach()) / int(
        (samples[:, 1:] >= 0).sum()
    )
    handle.remove()
    held = measure(tuner.model, data.held_rows, len(data.held_rows), 2)
    assert tuner.train_step()["loss"] == pytest.approx(wanted, abs=1e-12)
    quiet = make(epochs=1, out="quiet", batch={"sequences": 4, "micro_sequences": 3})
    other = Tuner(data, quiet, quiet.run(model), Recorder(), dtype=torch.float64)
    assert measure(other.model, data.held_rows, len(data.held_rows), 2) == held
    assert other.train_step()["loss"] != pytest.approx(wanted, abs=1e-6)


def test_smoothed_loss_and_gradients_are_pytorchs(make):
    config = make(label_smoothing=0.2, epochs=1, data={"held_out_share": 0.2})
    model, data = prepare(config)
    tuner = Tuner(data, config, config.run(model), Recorder(), dtype=torch.float64)
    network = tuner.model
    samples = torch.from_numpy(tuner.order.read(np.arange(3)))
    ids = torch.from_numpy(tuner.order.documents(np.arange(3)))
    inputs, labels = torch.where(samples < 0, ~samples, samples)[:, :-1], samples[:, 1:].clamp(min=-100)
    found = {}
    for name in ("theirs", "ours"):
        network.zero_grad()
        if name == "ours":
            loss = network(inputs, labels=labels, document_ids=ids)
        else:
            logits = network.lm_head(network.hidden_states(inputs, document_ids=ids))
            marked = torch.where(labels < 0, -100, labels)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), marked.flatten(), reduction="sum", label_smoothing=0.2
            )
        loss.backward()
        found[name] = loss.detach(), {n: p.grad.clone() for n, p in network.named_parameters()}
    assert torch.allclose(found["ours"][0], found["theirs"][0], atol=1e-10)
    for name, gradient in found["ours"][1].items():
        assert torch.allclose(gradient, found["theirs"][1][name], atol=1e-12), name
    tuner._evaluate()
    assert network.lm_head.smoothing == 0.2
    network.lm_head.smoothing = 0.0
    every = np.arange(len(data.held_rows))
    samples = torch.from_numpy(data.held_rows.ids(every))
    inputs, labels = torch.where(samples < 0, ~samples, samples)[:, :-1], samples[:, 1:]
    nats = network(inputs, labels=labels, document_ids=torch.from_numpy(data.held_rows.documents(every)))
    plain = float(nats.detach() / (labels >= 0).sum())
    assert tuner.evaluations[-1]["loss"] == pytest.approx(plain, abs=1e-9), "held-out loss is not smoothed"


def test_resume_with_both_is_exact_and_refuses_others(make):
    both = {"neftune": 5.0, "label_smoothing": 0.1, "steps": 6}

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    whole = finetune(make(out="whole", **both), console=Recorder())
    with pytest.raises(Stop):
        finetune(make(out="cut", **both), console=Recorder({5: stop}))
    cut = finetune(make(out="cut", **both), resume=True, console=Recorder())
    assert losses(cut) == losses(whole)
    for change in ({"neftune": 0.0}, {"label_smoothing": 0.0}, {"data": {"packing": False}}):
        name = next(iter(change))
        with pytest.raises(InputError, match=rf"the run began with {name}.* = .*this one says"):
            finetune(make(out="cut", **{**both, **change}), resume=True, console=Recorder())


def test_noise_under_tensor_parallelism_is_refused():
    with pytest.raises(InputError, match=r"neftune does not go with parallel\.tensor"):
        finetune_config({"model": "m", "data": {"paths": "a"}, "neftune": 5, "parallel": {"tensor": 2}})
