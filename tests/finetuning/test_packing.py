"""Rows of examples: nothing cut, nothing lost, the same losses and gradients as one example a row."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.evaluation.shares import Share
from stablelm.finetuning.held_out import measure
from stablelm.finetuning.packing import ExampleSamples, Rows, pack
from stablelm.finetuning.tuner import Tuner, prepare
from tests.training.conftest import Recorder


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(0, 3))
def test_packing_keeps_every_example_whole(lengths, seed):
    rows = pack(lengths, 50, seed)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= 50 for row in rows)
    assert rows == pack(lengths, 50, seed)
    # Best fit, longest first, leaves at most one row that is not more than half full.
    assert sum(sum(lengths[number] for number in row) <= 25 for row in rows) <= 1


def test_packing_fills_rows():
    pick = np.random.default_rng(5)
    lengths = pick.integers(20, 400, 3000).tolist()
    rows = pack(lengths, 1025, seed=1)
    assert sum(lengths) / (1025 * len(rows)) > 0.99
    assert rows != pack(lengths, 1025, seed=2)


def rows_of(make, **data):
    config = make(data=data)
    model, tuning = prepare(config)
    return config, model, tuning


def test_rows_hold_their_examples_and_padding_nobody_predicts(make):
    _, _, tuning = rows_of(make)
    rows: Rows = tuning.rows
    seen = Counter()
    for number in range(len(rows)):
        ids, documents = rows.ids(np.array([number]))[0], rows.documents(np.array([number]))[0]
        parts = [tuning.train[n].ids for n in rows.examples[number]]
        used = sum(map(len, parts))
        assert ids[:used].tolist() == np.concatenate(parts).tolist()
        assert (ids[used:] == ~1).all(), "<|padding|> is id 1, never the separator"
        wanted = np.repeat(np.arange(len(parts) + 1), [*map(len, parts), 97 - used])
        assert documents.tolist() == wanted[:96].tolist()
        seen.update(rows.examples[number])
    assert seen == Counter(range(len(tuning.train)))
    assert max(map(len, rows.examples)) > 1


def test_packed_and_unpacked_losses_and_gradients_are_equal(make):
    """Of every example, and of a whole step: neighbours in a row do not see each other."""
    found = {}
    for packing in (True, False):
        config = make(data={"packing": packing, "held_out_share": 0}, batch={"sequences": 64}, epochs=1)
        model, tuning = prepare(config)
        tuner = Tuner(tuning, config, config.run(model), Recorder(), dtype=torch.float64)
        each = {}
        for row, numbers in enumerate(tuning.rows.examples):
            ids, documents = tuning.rows.ids(np.array([row])), tuning.rows.documents(np.array([row]))
            samples = torch.from_numpy(ids)
            inputs = torch.where(samples < 0, ~samples, samples)[:, :-1]
            logits = tuner.model(inputs, document_ids=torch.from_numpy(documents))
            logs = logits.log_softmax(-1).gather(-1, samples[:, 1:].clamp(min=0)[..., None])[..., 0]
            at = 0
            for number in numbers:
                size = len(tuning.train[number].ids)
                part = slice(at, at + size - 1)
                each[number] = -float((logs[0, part].detach() * (samples[0, 1:][part] >= 0)).sum())
                at += size
        # one step over one epoch, its gradients read before the weights move
        tuner.optimizer.step = lambda: None
        tuner.optimizer.zero_grad = lambda set_to_none: None
        record = tuner.train_step()
        gradients = {name: p.grad.clone() for name, p in tuner.model.named_parameters()}
        found[packing] = each, record, gradients, sum(tuning.rows.trained.tolist())
    (packed, one, grads, targets), (plain, other, same, count) = found[True], found[False]
    assert len(packed) == len(plain) == 40 and targets == count
    assert packed == pytest.approx(plain, abs=1e-9)
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-10)
    assert one["loss"] == pytest.approx(sum(packed.values()) / targets, abs=1e-10)
    assert one["step_tokens"] < 0.7 * other["step_tokens"]
    for name, gradient in grads.items():
        assert torch.allclose(gradient, same[name], atol=1e-10), name


def test_every_epoch_reads_every_row_once_in_an_order_of_its_own(make):
    config = make(epochs=3)
    model, tuning = prepare(config)
    samples = ExampleSamples(tuning.rows, config.run(model))
    size = len(tuning.rows)
    assert samples.num_samples == 3 * size
    orders = [samples.mixture.address(np.arange(e * size, (e + 1) * size))[2].tolist() for e in range(3)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    again = ExampleSamples(prepare(config)[1].rows, config.run(model))
    assert again.fingerprint == samples.fingerprint
    assert (again.samples(0, size) == samples.samples(0, size)).all()
    other = config.model_copy(update={"seed": 7})
    assert ExampleSamples(prepare(other)[1].rows, other.run(model)).fingerprint != samples.fingerprint
    sightings = samples.when("examples", 5)
    assert [s.epoch for s in sightings] == [0, 1, 2]
    assert all(5 in tuning.rows.examples[s.window] for s in sightings)
    for sighting in sightings:
        assert (
            samples.read(np.array([sighting.sample])) == tuning.rows.ids(np.array([sighting.window]))
        ).all()
        read = list(samples.predicted(np.array([sighting.sample])))
        assert ("examples", 5, sighting.tokens) in read and len(read) == len(
            tuning.rows.examples[sighting.window]
        )
    with pytest.raises(InputError, match="no example 99; there are 38"):
        samples.when("examples", 99)
    assert samples.consumed(4) == {"examples": 4}
    assert samples.table()["examples"] == {"epochs": "3", "windows": size, "samples": 3 * size}
    entries = samples.accounting()["examples"]["epochs"]
    assert [entry["windows"] for entry in entries] == [size] * 3


def test_held_out_loss_does_not_depend_on_who_reads_which_row(make):
    config = make(data={"held_out_share": 0.5})
    model, tuning = prepare(config)
    network = Tuner(tuning, config, config.run(model), Recorder(), dtype=torch.float64).model
    count = len(tuning.held_rows)
    whole = measure(network, tuning.held_rows, count, 2)
    assert whole.tokens == int(tuning.held_rows.trained.sum()) > 0
    for parts in (2, 3, 5):
        shares = [measure(network, tuning.held_rows, count, 2, Share(n, parts)) for n in range(parts)]
        assert sum(share.nats for share in shares) == pytest.approx(whole.nats, abs=1e-9)
        assert sum(share.tokens for share in shares) == whole.tokens
        assert sum(share.answers_right for share in shares) == whole.answers_right
