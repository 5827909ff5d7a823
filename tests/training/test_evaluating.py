"""What a run measures while it goes on: the small suite, lm_eval tasks, their curves, and refusals."""

import json
import socket

import pytest
import torch

from stablelm.config import InputError
from stablelm.evaluation.evaluate import evaluate
from stablelm.interchange.native import finished_checkpoints
from stablelm.training import Trainer, train
from stablelm.training.metrics import read_metrics
from stablelm.training.report import run_page
from tests.training.conftest import Recorder


def of(run, kind):
    return [record for record in read_metrics(run) if record.get("kind") == kind]


def test_a_run_without_anything_at_hand_measures_the_small_suite(make_config):
    console = Recorder()
    run = train(make_config(evaluation={"copying": 16, "cloze": 32}), console=console)  # as by default
    copied, filled, held_out = (of(run, kind) for kind in ("copying", "cloze", "evaluation"))
    assert [record["step"] for record in copied] == [4, 8, 10]
    assert [(r["step"], r["source"]) for r in filled] == [
        (step, source) for step in (4, 8, 10) for source in ("tales", "notes")
    ]
    assert all(record["choices"] == 32 and record["words"] > 10 for record in filled)
    assert filled[-2]["word_loss"] < filled[0]["word_loss"]  # it learns
    assert copied[0]["sequences"] == 16 and copied[0]["period"] == 16
    assert all(0 <= record["ece"] <= 1 and 0 < record["accuracy"] < 1 for record in held_out)
    about = json.loads((finished_checkpoints(run)[-1] / "about.json").read_text())
    assert [record["kind"] for record in about["suite"]] == ["copying", "cloze", "cloze"]
    assert {record["step"] for record in about["suite"]} == {10}
    told = "\n".join(console.messages)
    assert "step 4: copying: " in told and "% of continuations (25 % by chance)" in told
    html = run_page(run).html()
    for curve in ("Copying", "Cloze, from held-out documents", "tales, last word", "Calibration error"):
        assert curve in html


def test_nothing_is_measured_that_is_not_wanted_and_training_does_not_notice(make_config):
    plain = train(make_config("plain", evaluation={"copying": 0, "cloze": 0}), console=Recorder())
    full = train(make_config("full"), console=Recorder())
    assert not of(plain, "copying") and not of(plain, "cloze")
    losses = [[r["loss"] for r in read_metrics(run) if "kind" not in r] for run in (plain, full)]
    assert losses[0] == losses[1]
    assert "Small tasks" not in run_page(plain).html()


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_tasks_are_those_of_stablelm_evaluate(make_config, shared, offline, capsys):
    """Scored in training, and from its checkpoint by the other way, at the same number of items."""
    data = shared / "data" / "eval"
    settings = {"every": 100, "tasks": ["piqa", "hellaswag"], "task_data": str(data), "limit": 5}
    config = make_config(evaluation=settings, batch={"sequence_length": 64}, data={"windows": {"tales": 4}})
    before = torch.random.get_rng_state()
    run = train(config, console=Recorder())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr().err == ""  # no bars of the harness
    first, second = of(run, "task")
    assert (first["task"], first["metric"], first["items"]) == ("piqa", "acc", 5)
    assert (second["task"], second["metric"], second["items"]) == ("hellaswag", "acc_norm", 5)
    assert second["truncated"] > 0  # 64 tokens of context
    (found,) = evaluate(run, tasks=["piqa", "hellaswag"], data=data, limit=5, progress=False)
    assert first["value"] == found.results["results"]["piqa"]["acc,none"]
    assert second["value"] == found.results["results"]["hellaswag"]["acc_norm,none"]
    assert "piqa acc" in run_page(run).html()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["piqa"], "task_data": "nowhere"}, "nowhere: no such directory"),
        ({"tasks": ["mmlu"], "task_data": "."}, "mmlu cannot be read from files"),
        ({"task_data": "somewhere"}, "task_data is given but no tasks"),
        ({"tasks": ["piqa", "piqa"]}, "names piqa twice"),
        ({"cloze": 3}, "cloze 3: a continuation stands among"),
    ],
)
def test_mistakes_are_told_before_the_first_step(make_config, settings, message):
    with pytest.raises(InputError, match=message):
        Trainer(make_config(evaluation=settings), Recorder())


def test_tasks_that_write_text_are_refused(make_config, monkeypatch, tmp_path):
    monkeypatch.setattr("stablelm.evaluation.curves.SCORED", ())
    (tmp_path / "piqa.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}\n')
    settings = {"tasks": ["piqa"], "task_data": str(tmp_path)}
    with pytest.raises(InputError, match="piqa wants text to be written"):
        Trainer(make_config(evaluation=settings), Recorder())
