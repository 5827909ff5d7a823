"""Phases that change batch, context and learning rate: what a step reads and computes, and who refuses."""

import numpy as np
import pytest
import torch

from stablelm.config import InputError
from stablelm.storage import read_json
from stablelm.training import Trainer, train
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder

RAMP = [
    {"sequences": 2, "until_step": 3},
    {"sequences": 8, "sequence_length": 16, "until_step": 5},
    {"sequences": 8, "sequence_length": 8, "lr": 1e-3, "until_step": 7},
    {"schedule": {"shape": "linear", "warmup_steps": 2, "floor": 0.5}},
]


def records(run):
    return [record for record in read_metrics(run) if "kind" not in record]


def test_a_ramp_reads_every_window_once_and_says_so(make_config):
    config = make_config(data={"phases": RAMP})
    console = Recorder()
    run = train(config, console=console)
    made = records(run)
    spans = [(r["first_sample"], r["last_sample"] + 1) for r in made]
    sizes = [2, 2, 2, 4, 4, 2, 2, 4, 4, 4, 4, 4, 2]  # windows of 32 tokens; 40 in all
    assert [last - first for first, last in spans] == sizes
    assert [first for first, _ in spans] == np.cumsum([0, *sizes])[:-1].tolist()
    assert [r["step_tokens"] for r in made] == [32 * size for size in sizes]
    assert [r["sequence_length"] for r in made] == [32] * 3 + [16] * 2 + [8] * 2 + [32] * 6
    assert (made[-1]["tokens"], made[-1]["samples"]) == (40 * 32, 40)
    lines = "\n".join(console.messages)
    assert "2 × 32 from step 1; 8 × 16 from step 4; 8 × 8 from step 6; 4 × 32 from step 8" in lines
    plan = read_json(run / "plan.json")
    assert (plan["steps"], plan["last_step_samples"], plan["tokens"]) == (13, 2, 1280)
    assert plan["batches"] == [[0, 2, 32], [3, 8, 16], [5, 8, 8], [7, 4, 32]]


def test_rates_of_phases(make_config):
    """The run's own, scaled by a phase's peak; a phase's own schedule from its first step to its last."""
    made = records(train(make_config(data={"phases": RAMP}), console=Recorder()))
    plain = Trainer(make_config("plain", steps=10), Recorder()).schedule
    ours = Trainer(make_config("other", data={"phases": RAMP}), Recorder()).schedule
    assert ours.warmup_steps == round(0.2 * 13)
    rates = [r["lr"] for r in made]
    assert rates == [ours.rate(step) for step in range(13)]
    assert rates[5:7] == [pytest.approx(ours._shape(step) / 5) for step in (5, 6)]  # 1e-3 instead of 5e-3
    # 6 steps of its own: up to 5e-3 in two, then down a line to half of it
    expected = [2.5e-3, 2.5e-3, 5e-3, *(2.5e-3 + 2.5e-3 * (1 - k / 4) for k in (1, 2, 3))]
    assert rates[7:] == pytest.approx(expected)
    points = dict(ours.turning_points())
    assert set(points) == {0, 3, 5, 7, 9, 13}
    assert (points[9], points[13]) == (pytest.approx(5e-3), pytest.approx(2.5e-3))
    assert plain.parts == ()


def test_a_shorter_context_is_its_pieces_alone(make_config):
    """The step's loss and gradients, from every piece of every window by itself in float64."""
    config = make_config(data={"phases": [{"sequence_length": 8, "sequences": 8}]})
    trainer = Trainer(config, Recorder(), dtype=torch.float64)
    windows = torch.from_numpy(trainer.loader.samples(0, 2))
    assert windows.shape == (2, 33)
    total = sum(
        trainer.model(row[None, at : at + 8], labels=row[None, at + 1 : at + 9])
        for row in windows
        for at in (0, 8, 16, 24)
    )
    (total / 64).backward()
    total = total.detach()
    wanted = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad(set_to_none=True)
    kept = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
    )
    trainer.config = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"clip": 0.0})}
    )
    assert trainer.train_step()["loss"] == pytest.approx(float(total) / 64, rel=1e-12)
    for name, gradient in wanted.items():
        torch.testing.assert_close(kept[name], gradient, rtol=1e-10, atol=1e-13)


def test_documents_stay_apart_in_a_shorter_context(make_config):
    data = {"phases": [{"sequence_length": 16, "sequences": 80, "document_boundaries": True}], "windows": {}}
    trainer = Trainer(make_config(data=data), Recorder())
    batch = trainer.batches.get(trainer.loader.steps.span(0, 40), None)
    assert batch.samples.shape == (80, 17) and batch.documents.shape == (80, 16)
    whole = trainer.loader.document_ids(0, 40)
    assert np.array_equal(batch.documents.numpy().reshape(40, 32), whole)
    assert torch.equal(batch.samples[:, 0].reshape(40, 2)[:, 1], batch.samples[::2, -1])


def test_where_a_document_is_seen_counts_the_steps_of_phases(make_config):
    config = make_config(data={"phases": RAMP})
    trainer = Trainer(config, Recorder())
    steps, samples = trainer.loader.steps, trainer.plan.samples
    for document in (0, 3, 7):
        for seen in trainer.loader.when("tales", document):
            span = steps.span(seen.step - 1, samples)
            assert span.first <= seen.position < span.first + span.windows


def test_a_phase_too_short_for_its_schedule_is_refused(make_config):
    phases = [{"until_step": 3}, {"until_step": 5, "schedule": {"warmup_steps": 3}}, {}]
    with pytest.raises(InputError, match=r"data.phases.1: schedule: 3 steps of warm-up .* into 2 steps"):
        Trainer(make_config(data={"phases": phases}), Recorder())


def test_more_steps_than_the_phases_hold_are_refused(make_config):
    with pytest.raises(InputError, match=r"steps 14: they ask for 46 windows; .* hold 40 \(13 steps\)"):
        Trainer(make_config(data={"phases": RAMP}, steps=14), Recorder())


def test_the_last_phase_may_end_early(make_config):
    phases = [{"until_step": 4}, {"sequences": 2, "until_step": 6}]
    made = records(train(make_config(data={"phases": phases}), console=Recorder()))
    assert [r["samples"] for r in made] == [4, 8, 12, 16, 18, 20]
