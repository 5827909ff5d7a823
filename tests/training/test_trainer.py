"""Whole small runs: what they write, that they learn, that they read exactly what the mixture says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stablelm.config import InputError
from stablelm.data import Dataset, Loader
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.native import finished_checkpoints as checkpoints
from stablelm.model import StableLM
from stablelm.training import Trainer, train
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder


def steps_of(run: Path):
    return [record for record in read_metrics(run) if "kind" not in record]


def test_a_run_learns_and_writes_everything(make_config):
    config = make_config()
    run = train(config, console=Recorder())
    steps = steps_of(run)
    assert [record["step"] for record in steps] == list(range(1, 11))  # 2·12 + 16 windows, four a step
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert [path.name for path in checkpoints(run)] == ["step-000009", "step-000010"]
    evaluations = [record for record in read_metrics(run) if record.get("kind") == "evaluation"]
    assert [(r["step"], r["source"]) for r in evaluations] == [
        (step, source) for step in (4, 8, 10) for source in ("tales", "notes")
    ]
    about = json.loads((checkpoints(run)[-1] / "about.json").read_text())
    assert {name: seen["samples"] for name, seen in about["data"].items()} == {"tales": 24, "notes": 16}
    assert steps[-1]["tokens"] == 40 * 32
    assert {"lr", "grad_norm", "tokens_per_second", "mfu", "seconds"} <= set(steps[0])
    model, tokenizer = open_path(run)
    assert model.config == config.model
    assert tokenizer is not None


def test_the_last_step_is_smaller_when_the_epochs_do_not_fill_it(make_config):
    config = make_config(batch={"sequences": 9, "micro_sequences": 4})
    run = train(config, console=Recorder())
    assert [record["step_tokens"] for record in steps_of(run)] == [288, 288, 288, 288, 128]


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_factoring_the_batch_changes_no_ids_and_hardly_the_losses(make_config, micro):
    whole = steps_of(train(make_config("whole", batch={"micro_sequences": 4}), console=Recorder()))
    parts = steps_of(train(make_config("parts", batch={"micro_sequences": micro}), console=Recorder()))
    assert [a["loss"] for a in whole] == pytest.approx([b["loss"] for b in parts], abs=2e-5)
    assert [a["grad_norm"] for a in whole] == pytest.approx([b["grad_norm"] for b in parts], rel=1e-3)
    loaders = [
        Loader(Dataset(c.data.path), c.data, c.batch.sequence_length, c.seed)
        for c in (make_config(), make_config(batch={"micro_sequences": micro, "sequences": 5}))
    ]
    assert (loaders[0].samples(0, 40) == loaders[1].samples(0, 40)).all()


def test_bf16_follows_fp32(make_config):
    exact = steps_of(train(make_config("exact"), console=Recorder()))
    rough = steps_of(train(make_config("rough", precision="bf16"), console=Recorder()))
    assert [a["loss"] for a in exact] != [b["loss"] for b in rough]
    assert [a["loss"] for a in exact] == pytest.approx([b["loss"] for b in rough], abs=0.05)


def test_initial_weights_from_a_directory(make_config, tmp_path):
    config = make_config("first")
    model = StableLM(config.model, seed=77)
    save_pretrained(model, None, tmp_path / "weights")
    trainer = Trainer(make_config(init=str(tmp_path / "weights")), Recorder())
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), model.parameters(), strict=True))
    other = make_config(init=str(tmp_path / "weights"), model={"intermediate_size": 96})
    with pytest.raises(InputError, match=r"intermediate_size 64, model.intermediate_size is 96"):
        Trainer(other, Recorder())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 11}, r"steps 11 × batch.sequences 4 asks for 44 windows; the epochs asked for hold 40"),
        ({"model": {"vocab_size": 256}}, r"model.vocab_size 256 is smaller than the 340 ids.*384"),
        ({"data": {"epochs": {"tails": 1}, "windows": {}}}, r"no source 'tails'; did you mean 'tales'\?"),
        ({"data": {"windows": {"tales": 10_000}}}, r"10,000 windows of 'tales'"),
        ({"data": {"path": "/nowhere/at/all"}}, r"/nowhere/at/all: not a prepared dataset"),
        ({"device": "gpu"}, r"device 'gpu' does not exist; write auto, cpu, cuda"),
    ],
)
def test_a_run_that_does_not_fit_its_data_is_refused(make_config, changes, message):
    with pytest.raises(InputError, match=message):
        train(make_config(**changes), console=Recorder())


def test_a_second_run_in_the_same_directory_is_refused(make_config):
    train(make_config(), console=Recorder())
    with pytest.raises(InputError, match=r"already holds a run \(step-000010\).*--resume"):
        train(make_config(), console=Recorder())
    console = Recorder()
    train(make_config(), resume=True, console=console)
    assert any("all 10 steps are done already" in message for message in console.messages)


def test_tensorboard_files_are_written_when_asked(make_config):
    run = train(make_config(logging={"every": 2, "tensorboard": True}), console=Recorder())
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


def test_an_entry_below_0_is_read_but_no_target(make_config):
    """The loss of a sample with such entries is that of the others, in the context of all."""
    config = make_config()
    trainer = Trainer(config, Recorder())
    plain = trainer.loader.read(np.arange(4))
    marked = np.where(np.arange(33) % 3 == 1, ~plain, plain)
    trainer.loader.read = lambda numbers: marked[: len(numbers)]
    ids = torch.from_numpy(plain)
    logs = trainer.model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].detach()
    counted = torch.from_numpy(marked[:, 1:] >= 0)
    expected = -float(logs[counted].sum() / counted.sum())
    assert trainer.train_step()["loss"] == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(-float(logs.mean()), abs=1e-3)
