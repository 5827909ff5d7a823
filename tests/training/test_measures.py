"""What the records of steps say beside the loss: by source, perplexity, bits per byte, epochs, memory."""

import json
import math

import numpy as np
import pytest
import torch

from stablelm.config import InputError
from stablelm.config.finetune import FinetuneConfig
from stablelm.config.run import run_config
from stablelm.config.schema import validate
from stablelm.data.run_data import open_data
from stablelm.training import Trainer, train
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder


def steps_of(run):
    return [record for record in read_metrics(run) if "kind" not in record]


def test_the_losses_of_the_sources_are_those_of_their_samples(make_config):
    """Beside each sample's loss by the network, read anew by its number."""
    trainer = Trainer(make_config(batch={"sequences": 5, "micro_sequences": 2}), Recorder())
    samples = torch.from_numpy(trainer.loader.samples(0, 5))
    with torch.no_grad():
        logs = trainer.model(samples[:, :-1]).log_softmax(-1).gather(-1, samples[:, 1:, None])[..., 0]
    names = [trainer.loader.mixture.sources[n] for n in trainer.loader.mixture.address(np.arange(5))[0]]
    assert set(names) == {"tales", "notes"}
    record = trainer.train_step()
    text = 0.0
    for name in ("tales", "notes"):
        rows = [row for row, whose in enumerate(names) if whose == name]
        assert record[f"loss/{name}"] == pytest.approx(-float(logs[rows].mean()), abs=2e-6)
        about = trainer.dataset.info(name)["train"]
        text += 32 * len(rows) * about["bytes"] / about["tokens"]
    assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))
    assert record["bits_per_byte"] == pytest.approx(record["loss"] * 5 * 32 / math.log(2) / text)
    assert record["epochs/tales"] == pytest.approx(names.count("tales") / 12, abs=1e-6)
    assert record["epochs/notes"] == pytest.approx(names.count("notes") / 16, abs=1e-6)


def test_a_run_tells_epochs_and_memory_where_it_is_shown(make_config):
    config = make_config(recompute="full")
    console = Recorder()
    steps = steps_of(train(config, console=console))
    assert [r["step"] for r in steps if "memory" in r] == [1, 5, 10]
    assert (steps[-1]["epochs/tales"], steps[-1]["epochs/notes"]) == (2, 1)
    assert 50e6 < steps[-1]["memory"] < 20e9
    assert all(r["hfu"] > 1.1 * r["mfu"] > 0 for r in steps)
    held = [line for line in console.messages if "held-out tales" in line]
    assert held and all("perplexity" in line for line in held)


def test_one_source_says_its_bits_per_byte_and_no_loss_of_its_own(make_config, dataset_path):
    config = make_config(data={"epochs": {"notes": 1}, "windows": {"notes": 16}})
    first = steps_of(train(config, console=Recorder()))[0]
    about = open_data(config)[0].info("notes")["train"]
    assert first["bits_per_byte"] == pytest.approx(
        first["loss"] / math.log(2) * about["tokens"] / about["bytes"]
    )
    assert not [key for key in first if key.startswith("loss/")]


def test_a_rejected_step_tells_only_why(make_config):
    trainer = Trainer(make_config(), Recorder())
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = math.inf
    record = trainer.train_step()
    assert record["loss"] is None and "perplexity" not in record
    json.dumps(record, allow_nan=False)


def test_the_z_loss_is_learned_from_and_told_apart(make_config):
    """A loss is −ln p with it and without; the first step's are equal, the last are not."""
    plain = steps_of(train(make_config("plain"), console=Recorder()))
    config = make_config("z", z_loss=0.1)
    run = train(config, console=Recorder())
    steps = steps_of(run)
    assert steps[0]["loss"] == pytest.approx(plain[0]["loss"], abs=1e-6)
    assert steps[-1]["loss"] != pytest.approx(plain[-1]["loss"], abs=1e-3)
    assert "z_loss" not in plain[0]
    trainer = Trainer(make_config("again", z_loss=0.1), Recorder())
    samples = torch.from_numpy(trainer.loader.samples(0, 4))
    with torch.no_grad():
        log_z = trainer.model(samples[:, :-1]).logsumexp(-1)
    assert steps[0]["z_loss"] == pytest.approx(0.1 * float(log_z.square().mean()), rel=1e-5)
    assert steps[-1]["z_loss"] < 0.9 * steps[0]["z_loss"]


def test_a_z_loss_that_is_none_or_elsewhere_is_refused(make_config):
    with pytest.raises(InputError, match="z_loss"):
        make_config(z_loss=-1)
    with pytest.raises(InputError, match="z_loss"):
        validate(FinetuneConfig, {"model": "m", "data": {"paths": ["a"]}, "z_loss": 1e-4}, "tune.yml")
    assert run_config(make_config().model_dump()).z_loss == 0
