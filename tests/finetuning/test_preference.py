"""Preference tuning: losses and gradients beside the papers' formulas, and whole small runs."""

import json
import math
import shutil

import pytest
import torch

from stablelm.config import InputError
from stablelm.config.finetune import finetune_config
from stablelm.finetuning import finetune
from stablelm.finetuning.answers import FILE, read_reference
from stablelm.finetuning.preference_tuner import PreferenceTuner
from stablelm.finetuning.tuner import prepare
from stablelm.interchange import open_path
from stablelm.interchange.export import export
from stablelm.training.metrics import read_metrics
from stablelm.training.report import run_page
from tests.cli.conftest import command
from tests.finetuning.conftest import COLOURS, write_lines
from tests.training.conftest import Recorder


def pairs(count=24):
    """The right colour is preferred; answers differ in length, prompts too."""
    names, found = list(COLOURS), []
    for number in range(count):
        thing, other = names[number % 5], names[(number + 1 + number // 5) % 5]
        found.append({
            "prompt": f"What colour is the {thing}, number {number}?" + " Say it." * (number % 3),
            "chosen": f"The {thing} is {COLOURS[thing]}.",
            "rejected": f"{COLOURS[other]}, as {other} is." + " Surely." * (number % 2),
        })  # fmt: skip
    return found


def judged(count=24):
    return [
        {"prompt": p["prompt"], "completion": p["chosen" if n % 3 else "rejected"], "label": bool(n % 3)}
        for n, p in enumerate(pairs(count))
    ]


def by_hand(config, records, reference):
    """Loss of one step over all records by full logits and the formulas; leaves gradients in a model.

    `reference`: an untuned model. Returns loss, gradients by name."""
    choice = config.preference
    model, tokenizer = open_path(config.model, torch.float64)
    frozen, _ = open_path(reference, torch.float64)

    def ids(text):
        return tokenizer.encode_documents([text])[0]

    def logp(network, prompt, answer):
        before, after = ids(prompt), [*ids(answer), 0]
        logs = network(torch.tensor([[*before, *after][:-1]])).log_softmax(-1)[0]
        return sum(logs[len(before) - 1 + n, token] for n, token in enumerate(after)), len(after)

    def ratio(prompt, answer):
        ours, length = logp(model, prompt, answer)
        with torch.no_grad():
            theirs, _ = logp(frozen, prompt, answer)
        return ours - theirs, length

    losses = []
    if choice.loss == "kto":
        with torch.no_grad():
            count = len(records)
            kl = sum(
                ratio(record["prompt"], records[(n + 1) % count]["completion"])[0] / count
                for n, record in enumerate(records)
            ).clamp(min=0)
        for record in records:
            value, _ = ratio(record["prompt"], record["completion"])
            if record["label"]:
                losses.append(choice.desirable_weight * (1 - torch.sigmoid(choice.beta * (value - kl))))
            else:
                losses.append(choice.undesirable_weight * (1 - torch.sigmoid(choice.beta * (kl - value))))
    for record in records if choice.loss != "kto" else ():
        (better, m), (worse, n) = (ratio(record["prompt"], record[side]) for side in ("chosen", "rejected"))
        if choice.loss == "dpo":
            h, wrong = choice.beta * (better - worse), choice.label_smoothing
            losses.append(-(1 - wrong) * torch.sigmoid(h).log() - wrong * torch.sigmoid(-h).log())
        else:
            losses.append((better / m - worse / n - 1 / (2 * choice.beta)) ** 2)
    loss = sum(losses) / len(losses)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


CHOICES = [
    {"loss": "dpo", "beta": 0.3},
    {"loss": "dpo", "beta": 0.3, "label_smoothing": 0.2},
    {"loss": "ipo", "beta": 0.7},
    {"loss": "kto", "beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.6},
]


@pytest.fixture(scope="module")
def moved(base, tmp_path_factory):
    """The base with other weights, so that ratios are not all 0."""
    from stablelm.interchange import save_pretrained

    model, tokenizer = open_path(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    folder = tmp_path_factory.mktemp("moved") / "model"
    save_pretrained(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_loss_and_gradients_are_the_formulas(make, base, moved, choice):
    records = judged(10) if choice["loss"] == "kto" else pairs(10)
    before, now = (moved, base) if choice["loss"] == "kto" else (base, moved)  # so that z₀ is above 0
    config = make(
        records, model=str(now), preference=choice, data={"held_out_share": 0},
        batch={"sequences": 99, "micro_sequences": 2}, optimizer={"clip": 0.0},
        recompute="full" if "label_smoothing" in choice else "none",
    )  # fmt: skip
    architecture, data = prepare(config)
    assert sorted(len(row) for row in data.rows.examples)[-1] > 1, "some rows hold several pairs"
    tuner = PreferenceTuner(data, config, config.run(architecture), Recorder(), dtype=torch.float64)
    untuned = PreferenceTuner(
        data, config, config.run(architecture).model_copy(update={"init": str(before)}), Recorder(),
        dtype=torch.float64,
    )  # fmt: skip
    untuned._read_answers()
    tuner.reference = untuned.reference
    batch = tuner.batches.get(tuner.loader.steps.span(0, tuner.plan.samples), None)
    loss, norm = tuner.passes(batch)
    wanted, gradients = by_hand(config, records, before)
    assert loss == pytest.approx(wanted, abs=1e-9)
    if choice["loss"] == "kto":
        assert tuner.told["kl"] > 0.01, "z₀ is not at its bound"
    for name, parameter in tuner.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-9, rtol=0, msg=name)
    total = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert float(norm) == pytest.approx(total, rel=1e-9)


def steps_of(run):
    return [record for record in read_metrics(run) if "kind" not in record]


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto"])
def test_a_run_learns_what_is_preferred(make, tmp_path, loss):
    console = Recorder()
    records = judged(30) if loss == "kto" else pairs(30)
    config = make(
        records, preference={"loss": loss}, data={"held_out_share": 0.2}, epochs=4,
        batch={"sequences": 2, "micro_sequences": 1}, checkpoint={"every": 99}, evaluation={"every": 99},
    )  # fmt: skip
    run = finetune(config, console=console)
    steps = steps_of(run)
    beginning = {"dpo": math.log(2), "ipo": 25.0, "kto": 0.5}[loss]
    assert steps[0]["loss"] == pytest.approx(beginning, abs=1e-4), "the model is its own reference"
    assert abs(steps[0]["rewards/chosen"]) < 1e-5
    assert steps[-1]["loss"] < 0.8 * beginning
    assert steps[-1]["rewards/margins"] > 0.1 > 1e-4 > abs(steps[0]["rewards/margins"])
    (held,) = [record for record in read_metrics(run) if record.get("kind") == "preference"]
    assert held["step"] == steps[-1]["step"] and held["pairs"] == 6 and held["rewards/margins"] > 0
    (chosen,) = [record for record in read_metrics(run) if record.get("kind") == "evaluation"]
    number = sum(pair.wanted for pair in prepare(config)[1].held)
    assert chosen["loss"] == pytest.approx(-held["logps/chosen"] * number / chosen["tokens"])
    lines = "\n".join(console.messages)
    if loss == "kto":
        assert "30 records (judged texts), 30 examples" in lines and "kl" in steps[-1]
        assert "warning: wanted answers weigh" in lines and "rewards/accuracies" not in steps[-1]
    else:
        assert "30 records (text pairs), 30 examples" in lines
        assert steps[-1]["rewards/accuracies"] > 0.9 and held["rewards/accuracies"] >= 0.5
    assert "held-out preferences: loss" in lines
    run_page(run).write(tmp_path / "report.html")
    assert "Rewards" in (tmp_path / "report.html").read_text()
    list(export(run, tmp_path / "exported", torch.float32))


class Stop(Exception):
    pass


def stop():
    raise Stop


def test_a_run_that_stops_goes_on_bit_for_bit(make, monkeypatch):
    same = {
        "records": pairs(20), "preference": {"loss": "dpo"},
        "batch": {"sequences": 2, "micro_sequences": 1, "sequence_length": 64},
    }  # fmt: skip
    whole = finetune(make(out="whole", **same), console=Recorder())
    with pytest.raises(Stop):
        finetune(make(out="cut", **same), console=Recorder({5: stop}))
    with monkeypatch.context() as patch:
        patch.setattr(PreferenceTuner, "_read_answers", stop)  # the reference is read, not made
        cut = finetune(make(out="cut", **same), resume=True, console=Recorder())
    assert steps_of(cut)[-1]["step"] > 5
    keys = ("loss", "grad_norm", "rewards/margins")
    assert [[r.get(k) for k in keys] for r in steps_of(cut)] == [
        [r.get(k) for k in keys] for r in steps_of(whole)
    ]
    weights = [open_path(run)[0].state_dict() for run in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_adapter_learns_preferences_beside_the_frozen_model(make, base, tmp_path):
    """The reference is the model below the adapter; a resumed run reads it, and the rest, exactly."""
    same = {
        "records": pairs(20), "preference": {"loss": "dpo"}, "adapter": {"rank": 4},
        "optimizer": {"lr": 2e-2}, "batch": {"sequences": 2, "micro_sequences": 1}, "epochs": 3,
    }  # fmt: skip
    whole = finetune(make(out="whole", **same), console=Recorder())
    steps = steps_of(whole)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and steps[-1]["loss"] < 0.65
    with pytest.raises(Stop):
        finetune(make(out="cut", **same), console=Recorder({4: stop}))
    cut = finetune(make(out="cut", **same), resume=True, console=Recorder())
    assert [r["loss"] for r in steps_of(cut)] == [r["loss"] for r in steps]
    # The same numbers as from the plain model, which the adapter is on.
    config = make(**{**same, "adapter": {}})
    architecture, data = prepare(config)
    plain = PreferenceTuner(data, config, config.run(architecture), Recorder())
    plain._read_answers()
    kept, _ = read_reference(whole, {name: len(rows.pairs) for name, rows in plain.sides.items()})
    for name, found in plain.reference.items():
        torch.testing.assert_close(torch.from_numpy(kept[name]), found.cpu(), atol=1e-4, rtol=0)


def test_the_usual_learning_rates(make):
    for changes, rate in (({}, 1e-6), ({"adapter": {"rank": 4}}, 1e-5), ({"optimizer": {"lr": 3e-7}}, 3e-7)):
        values = {"model": "m", "data": {"paths": "d"}, "preference": {"loss": "ipo"}, **changes}
        assert finetune_config(values).optimizer.lr == rate


def test_what_a_resumed_run_finds_changed(make, base, tmp_path):
    model = tmp_path / "base"
    shutil.copytree(base, model)
    same = {
        "records": pairs(20),
        "model": str(model),
        "preference": {"loss": "dpo"},
        "batch": {"sequences": 2},
    }
    with pytest.raises(Stop):
        finetune(make(**same), console=Recorder({4: stop}))
    kept = (tmp_path / "run" / FILE).read_bytes()
    sizes = {"train": 19, "held_out": 1}
    numbers, about = read_reference(tmp_path / "run", sizes)
    for changes, message in (
        ({"preference": {"loss": "dpo", "beta": 0.2}}, r"preference\.beta = 0\.1, this one says 0\.2"),
        ({"preference": {"loss": "kto"}}, r"preference\.loss = 'dpo', this one says 'kto'"),
        ({"records": pairs(19)}, "another dataset or mixture"),
        ({"precision": "bf16"}, "precision"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(make(**{**same, **changes}), resume=True, console=Recorder())
        assert (tmp_path / "run" / FILE).read_bytes() == kept, "a refused run changes nothing"
    make(**same)  # the file of pairs as it was
    # Damaged: made again from the base, before the checkpoint's weights are read.
    (tmp_path / "run" / FILE).write_bytes(kept[:-9])
    console = Recorder({4: stop})
    with pytest.raises(Stop):
        finetune(make(**same), resume=True, console=console)
    assert any("not there any more, or damaged" in line for line in console.messages)
    again, about_again = read_reference(tmp_path / "run", sizes)
    assert about_again == about and all((again[name] == numbers[name]).all() for name in sizes)
    # The base is another now: told, and the run goes on against the reference it began with.
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    console = Recorder()
    finetune(make(**same), resume=True, console=console)
    assert any("has changed since the run began" in line for line in console.messages)


def test_settings_that_do_not_go_together(make):
    for changes, message in (
        ({"neftune": 5.0}, "neftune does not go with preference.loss dpo"),
        ({"label_smoothing": 0.1}, r"preference\.label_smoothing is that of dpo"),
        ({"data": {"train_on": "all"}}, "answers are what is compared"),
        ({"data": {"format": "chat"}}, "shapes of its own"),
        ({"preference": {"loss": "ipo", "label_smoothing": 0.1}}, "belongs to dpo"),
        ({"preference": {"loss": "dpo", "desirable_weight": 2.0}}, "belong to kto"),
        ({"preference": {"loss": "dpo", "beta": 0}}, "greater than 0"),
        ({"preference": {"loss": "rlhf"}}, "'none', 'dpo', 'ipo' or 'kto'"),
    ):
        with pytest.raises(InputError, match=message):
            make(pairs(4), **{"preference": {"loss": "dpo"}, **changes})


def test_the_command(base, tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", pairs())
    told = command("finetune", base, path, "--preference", "dpo", "--preview")
    assert told.code == 0, told.err
    assert "line 1, chosen: " in told.out and "line 1, rejected: " in told.out
    assert "What colour is the sky, number 0?⟦The sky is blue.<|endoftext|>⟧" in told.out
    out = tmp_path / "run"
    told = command(
        "finetune", base, path, "--preference", "dpo", "--out", out, "--epochs", 1, "--sequence-length", 96,
        "--set", "preference.beta=0.3", "--set", "device=cpu",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert "margin" in told.out and "right" in told.out
    assert json.loads((out / "finetune.json").read_text())["preference"]["beta"] == 0.3
    assert steps_of(out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3), "also in bf16"
    told = command("finetune", base, path, "--preview")
    assert told.code == 2 and "or learn what is preferred: --preference dpo" in told.err
    told = command("finetune", base, path, "--preference", "ppo", "--preview")
    assert told.code == 2 and "ppo" in told.err
