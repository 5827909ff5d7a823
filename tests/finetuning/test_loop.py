"""What a tuning run measures while it goes on: answers, samples; the best checkpoint; when it stops."""

import json

import numpy as np
import pytest
import torch

from stablelm.config import InputError
from stablelm.finetuning import finetune
from stablelm.finetuning.answering import prompts_of, write
from stablelm.finetuning.best import Best
from stablelm.finetuning.held_out import measure
from stablelm.finetuning.packing import Rows
from stablelm.finetuning.tuner import prepare
from stablelm.inference import generate_ids
from stablelm.interchange import open_path
from stablelm.interchange.checkpoints import list_checkpoints
from stablelm.interchange.export import export
from stablelm.interchange.inspection import describe
from stablelm.interchange.native import best_of, finished_checkpoints, result_of
from stablelm.interchange.open import locate
from stablelm.training import saving
from stablelm.training.metrics import read_metrics
from stablelm.training.report import run_page
from stablelm.training.report_tuning import verdict
from tests.cli.conftest import command
from tests.finetuning.conftest import COLOURS, TALKS, write_lines
from tests.training.conftest import Recorder

JUDGED = {"every": 8, "best": "loss", "samples": 0}
SLOW = {"optimizer": {"lr": 1e-2}, "batch": {"sequences": 1, "sequence_length": 16}, "epochs": 10}


def things(turn):
    """Prompts and completions; with a `turn`, each thing has the colour of another."""
    names, colours = list(COLOURS), list(COLOURS.values())
    return [
        {"prompt": f"The {name} is", "completion": f" {colours[(n + turn) % 5]}."}
        for n, name in enumerate(names)
    ] * 4


@pytest.fixture
def contrary(make, tmp_path):
    """A run whose held-out answers are not what it learns: their loss falls while it learns how an answer
    looks, and rises when it knows which."""
    held = write_lines(tmp_path / "held.jsonl", things(2))

    def made(out="run", checkpoint=None, **evaluation):
        data = {"held_out": [str(held)]}
        settings = {"checkpoint": {"every": 11, **(checkpoint or {})}, "evaluation": {**JUDGED, **evaluation}}
        return make(things(0), out, data, **settings, **SLOW)

    return made


def of_kind(run, kind):
    return [record for record in read_metrics(run) if record.get("kind") == kind]


@pytest.fixture(scope="module")
def learnt(base, tmp_path_factory):
    """A run on talks that has learnt some of them, its data, and its model: in the middle of learning, so
    that some answers are right and some are not."""
    from stablelm.config.finetune import finetune_config

    root = tmp_path_factory.mktemp("learnt")
    path = write_lines(root / "data.jsonl", [{"messages": said} for said in TALKS])
    config = finetune_config({
        "out": str(root / "run"), "model": str(base),
        "data": {"paths": [str(path)], "held_out_share": 0.3},
        "epochs": 5, "batch": {"sequences": 1, "micro_sequences": 1, "sequence_length": 96},
        "optimizer": {"lr": 5e-3}, "precision": "fp32", "device": "cpu", "checkpoint": {"every": 999},
        "evaluation": {"every": 20, "samples": 3, "sample_tokens": 20, "prompts": ["What colour is coal?"]},
    })  # fmt: skip
    run = finetune(config, console=Recorder())
    return run, prepare(config)[1], open_path(run)[0]


def greedy(model, ids, count):
    return generate_ids(model, torch.tensor([ids]), max_new_tokens=count, eos_ids=[0])[0, len(ids) :].tolist()


def test_right_answers_are_those_that_greedy_decoding_writes(learnt):
    run, data, model = learnt
    right = answers = 0
    for example in data.held:
        ids = np.where(example.ids < 0, ~example.ids, example.ids).tolist()
        trained = (example.ids >= 0).tolist()
        begins = [i for i in range(1, len(ids)) if trained[i] and not trained[i - 1]]
        for begin in begins:
            end = next((i for i in range(begin, len(ids)) if not trained[i]), len(ids))
            right += greedy(model, ids[:begin], end - begin) == ids[begin:end]
            answers += 1
    assert 0 < right < answers, "the fixture is to be in the middle of learning"
    last = of_kind(run, "evaluation")[-1]
    assert (last["answers"], last["answer_accuracy"]) == (answers, right / answers)
    for packing in (True, False):
        rows = Rows(data.held, 96, 1, 1, packing=packing)
        found = measure(model, rows, len(rows), 3)
        assert (found.answers_right, found.answers) == (right, answers)
        assert found.tokens == sum(example.trained for example in data.held)


def test_samples_are_what_the_checkpoint_writes(learnt):
    run, data, model = learnt
    told = [record for record in of_kind(run, "sample") if record["step"] == read_metrics(run)[-1]["step"]]
    assert [record["number"] for record in told] == [0, 1, 2, 3]
    assert told[0]["prompt"] == "What colour is coal?" and told[0]["wanted"] is None
    for record, example in zip(told[1:], data.held, strict=False):
        first = int(np.argmax(example.ids >= 0))
        prompt = (~example.ids[:first]).tolist()
        assert record["prompt"] == data.tokenizer.decode(prompt)
        assert record["prompt"].endswith("<|assistant|>\n")
        assert record["wanted"].endswith("<|endoftext|>") and "<|user|>" not in record["wanted"]
        new = greedy(model, prompt, 20)
        assert record["text"] == data.tokenizer.decode([i for i in new if i != 0])
        assert record["ended"] == (new[-1] == 0)
    assert any(record["ended"] for record in told), "so that ends are tried"
    page = run_page(run).html()
    assert "Prompt: What colour is coal?" in page and "held-out answer" in page and "Held-out answers" in page


def test_writing_agrees_with_generation_whatever_stands_beside_it(learnt):
    """Prompts of unlike length in one batch, read with a cache or anew; near the context's end, too."""
    _, data, model = learnt
    prompts = [(~e.ids[: int(np.argmax(e.ids >= 0))]).tolist() for e in data.held[:3]]
    prompts.append((prompts[0] * 5)[:124])  # of 128
    real = data.tokenizer.size
    wanted = [greedy(model, ids, min(12, 128 - len(ids))) for ids in prompts]
    assert len({len(ids) for ids in prompts}) > 2 and len(wanted[-1]) <= 4
    for multiple in (1, 2):
        assert write(model, prompts, 12, eos=0, real_ids=real, multiple=multiple) == wanted
    # Whether any process still writes is asked after each token, and obeyed.
    asked = []
    write(model, prompts[:1], 3, eos=-1, real_ids=real, ongoing=lambda mine: bool(asked.append(mine)) or True)
    assert asked == [True] * 3
    assert not model.lm_head._forward_pre_hooks, "the head is left as it was"


def test_prompts_of_texts_and_too_long_ones(make):
    records = [{"text": f"The sky above town number {number} is blue, they say."} for number in range(20)]
    _, data = prepare(make(records, evaluation={"samples": 1}))
    config = make(evaluation={"prompts": ["The sky"], "samples": 1}).evaluation
    model = open_path(make().model)[0].config
    mine, held = prompts_of(config, data, model)
    assert mine.ids == data.tokenizer.encode("The sky"), "a text is continued as it is"
    whole = ~data.held[0].ids[:1], data.held[0].ids[1:]
    assert held.ids == np.concatenate(whole)[: len(data.held[0].ids) // 2].tolist()
    assert not data.answers
    with pytest.raises(InputError, match=r"evaluation.prompts\[0\] has .* tokens, the model's context 128"):
        finetune(make(evaluation={"prompts": ["sky " * 200]}), console=Recorder())


def test_the_best_is_kept_and_opened(contrary, tmp_path):
    config = contrary(checkpoint={"keep": 1})
    console = Recorder()
    run = finetune(config, console=console)
    losses = {record["step"]: record["loss"] for record in of_kind(run, "evaluation")}
    best, last = min(losses, key=losses.get), max(losses)
    assert best < last - 4 and losses[last] > 1.1 * losses[best], "it has overfitted"
    assert [path.name for path in finished_checkpoints(run)] == [f"step-{best:06d}", f"step-{last:06d}"]
    assert locate(run) == result_of(run) == run / "checkpoints" / f"step-{best:06d}"
    expected = {"metric": "loss", "step": best, "value": losses[best]}
    assert best_of(finished_checkpoints(run)[-1]) == describe(run)["best"] == expected
    assert [row.note for row in list_checkpoints(run)] == ["best", "latest"]
    assert any(f"opens as its best checkpoint, step-{best:06d}" in line for line in console.messages)
    # It is the model that had this loss, and what is exported.
    data = prepare(config)[1]
    found = measure(open_path(run)[0], data.held_rows, len(data.held_rows), 2)
    assert found.nats / found.tokens == pytest.approx(losses[best], abs=1e-5)
    lines = list(export(run, tmp_path / "exported", torch.float32))
    assert any(f"its best checkpoint, step-{best:06d} (loss" in line for line in lines)
    weights = [open_path(path)[0].state_dict() for path in (run, tmp_path / "exported")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "Overfitting: held-out loss was lowest after step" in run_page(run).html()
    # Without its best, the run does not quietly open as another.
    (run / "checkpoints" / f"step-{best:06d}").rename(tmp_path / "away")
    with pytest.raises(InputError, match=f"its best checkpoint, step-{best:06d}, is gone"):
        locate(run)


def test_a_run_that_waits_in_vain_stops_and_resumes_as_undisturbed(contrary):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    def config(out, patience=3):
        return contrary(out, best=None, patience=patience, samples=1, sample_tokens=4)

    console = Recorder()
    whole = finetune(config("whole"), console=console)
    held = of_kind(whole, "evaluation")
    last = held[-1]["step"]
    best = min(held, key=lambda record: record["loss"])
    assert held[-4] is best and last < json.loads((whole / "plan.json").read_text())["steps"]
    assert f"no better loss in 3 evaluations: stopped at step {last:,}" in console.messages
    assert finished_checkpoints(whole)[-1].name == f"step-{last:06d}"
    assert result_of(whole).name == f"step-{best['step']:06d}"
    # Cut between the best one and the end, and resumed: the same best, the same end, the same numbers.
    with pytest.raises(Stop):
        finetune(config("cut"), console=Recorder({last - 1: stop}))
    cut = finetune(config("cut"), resume=True, console=Recorder())
    clock = ("seconds", "tokens_per_second", "mfu", "hfu", "memory")
    kept = [
        [{key: value for key, value in record.items() if key not in clock} for record in read_metrics(run)]
        for run in (whole, cut)
    ]
    assert kept[0] == kept[1]
    assert result_of(cut).name == result_of(whole).name
    weights = [open_path(run)[0].state_dict() for run in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # Once more: nothing is left. More patience goes on from there.
    again = Recorder()
    finetune(config("cut"), resume=True, console=again)
    assert any(f"stopped at step {last:,} already" in line for line in again.messages)
    finetune(config("cut", patience=4), resume=True, console=Recorder())
    assert of_kind(cut, "evaluation")[-1]["step"] > last


def test_a_best_that_the_disk_refused_is_not_the_best(contrary, monkeypatch):
    """The losses fall up to step 40, whose save fails: at 41 the best one on the disk is 32."""
    real, told = saving.write_checkpoint, []

    def refusing(target, tensors, files, *rest):
        told.append(json.loads(files["best.json"]))
        if target.name == "step-000040":
            raise OSError(28, "No space left on device")
        return real(target, tensors, files, *rest)

    monkeypatch.setattr(saving, "write_checkpoint", refusing)
    console = Recorder()
    config = contrary(checkpoint={"keep": 1, "every": 41}).model_copy(update={"steps": 43})
    run = finetune(config, console=console)
    assert any("could not be saved: [Errno 28]" in line for line in console.messages)
    losses = [record["loss"] for record in of_kind(run, "evaluation")]
    assert losses[:5] == sorted(losses[:5], reverse=True)
    last = best_of(finished_checkpoints(run)[-1])["step"]
    assert [best["step"] for best in told] == [8, 16, 24, 32, 40, 32, last]
    assert locate(run).name == f"step-{last:06d}" != "step-000040"


def evaluations(*values, **more):
    return [{"step": 10 * n, "source": "examples", "loss": v, **more} for n, v in enumerate(values, 1)]


def test_what_the_best_is():
    loss = Best("loss", 2)
    assert loss.of(evaluations(3.0, 2.0, 2.0, 2.5)) == {"metric": "loss", "step": 20, "value": 2.0}
    assert [loss.stops(evaluations(*[3.0, 2.0, 2.0, 2.5][:n])) for n in range(5)] == [False] * 4 + [True]
    assert loss.of(evaluations(3.0, 2.0, 2.5), among={10, 30})["step"] == 30
    assert loss.of(evaluations(float("nan"), 4.0)) == {"metric": "loss", "step": 20, "value": 4.0}
    assert loss.of(evaluations(float("nan"))) is None and loss.stops(evaluations(*[float("inf")] * 2))
    assert not Best("loss").stops(evaluations(1.0, *[2.0] * 99))
    right = Best("answer_accuracy")
    records = [
        {**r, "answer_accuracy": a} for r, a in zip(evaluations(1, 2, 3), (0.1, 0.4, 0.2), strict=True)
    ]
    assert right.of(records)["step"] == 20
    for metric, step in (("acc", 20), ("word_perplexity", 10)):
        tasks = [
            {**r, "tasks": {"wiki": {"metric": metric, "value": v}}}
            for r, v in zip(evaluations(1, 2, 3), (7.0, 9.0, 8.0), strict=True)
        ]
        assert Best("wiki").of(tasks)["step"] == step


def test_what_the_report_says_of_the_losses():
    def steps(*losses):
        return [{"step": n, "loss": loss} for n, loss in enumerate(losses, 1)]

    falling = steps(*np.linspace(3, 1, 30).tolist())
    assert verdict(falling, evaluations(3.0)) is None
    assert verdict(falling, evaluations(3.0, 2.0)).endswith("fell to 2.0000 and is lowest at the end.")
    assert "stays near its lowest, of step 20" in verdict(falling, evaluations(3.0, 2.0, 2.01))
    over = verdict(falling, evaluations(3.0, 2.0, 2.5))
    assert over.startswith(
        "Overfitting: held-out loss was lowest after step 20 (2.0000) and has risen by 25 %"
    )
    assert "while training loss fell on" in over and "--early-stopping" in over
    assert "a lower learning rate" in verdict(
        falling[::-1][:1] + steps(*range(1, 30)), evaluations(3.0, 2.0, 2.5)
    )
    other = [*evaluations(3.0, 2.0), {"step": 20, "source": "web", "loss": 4.0}]
    assert verdict(falling, other) is None, "sources of a pre-training run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"best": "accuracy"}}, "best 'accuracy' is not measured; take loss, answer_accuracy"),
        ({"evaluation": {"best": "loss"}, "data": {"held_out_share": 0}}, "best and patience need held-out"),
        ({"evaluation": {"prompts": [""]}}, "prompts has an empty one"),
        ({"evaluation": {"task_data": "here"}}, "task_data is given but no tasks"),
        (
            {"evaluation": {"best": "answer_accuracy"}, "records": [{"text": f"a {n}"} for n in range(9)]},
            "answer_accuracy wants examples with answers",
        ),
        ({"evaluation": {"patience": 2}, "records": [{"text": "one"}]}, "no example is held out"),
    ],
)
def test_what_cannot_be_judged_is_refused_and_leaves_nothing(make, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        finetune(make(**changes), console=Recorder())
    assert not (tmp_path / "run").exists()


def test_the_flags(base, tmp_path):
    path = write_lines(tmp_path / "data.jsonl", things(0))
    out = tmp_path / "tuned"
    said = command(
        "finetune", base, path, "--out", out, "--early-stopping", 2, "--keep-best", "--lr", 1e-2,
        "--set", "steps=3", "--set", "precision=fp32", "--set", "device=cpu", "--sequence-length", 32,
        "--set", "evaluation.every=1", "--set", "batch.sequences=1",
    )  # fmt: skip
    assert said.code == 0, said.err
    written = json.loads((out / "finetune.json").read_text())["evaluation"]
    assert (written["patience"], written["best"]) == (2, "loss")
    assert f"opens as its best checkpoint, {locate(out).name} (loss" in said.out
    told = command("checkpoint", "list", out)
    assert "best" in told.out


def test_a_task_may_judge(make, shared, monkeypatch):
    """The tasks of a training run, here too; the checkpoint with the best number is kept."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = str(shared / "data" / "eval")
    settings = {"tasks": ["piqa"], "task_data": data, "limit": 4, "copying": 2, "samples": 0, "every": 3}
    run = finetune(make(steps=6, evaluation={**settings, "best": "piqa"}), console=Recorder())
    told = [record["value"] for record in of_kind(run, "task")]
    held = of_kind(run, "evaluation")
    assert len(told) == len(held) == len(of_kind(run, "copying")) == 2
    assert [record["tasks"]["piqa"] for record in held] == [{"metric": "acc", "value": v} for v in told]
    best = best_of(finished_checkpoints(run)[-1])
    assert best == {"metric": "piqa", "step": 3 if told[0] >= told[1] else 6, "value": max(told)}
    with pytest.raises(InputError, match=r"evaluation.best: arc_easy is no task; there are piqa"):
        finetune(make(out="other", evaluation={**settings, "best": "arc_easy"}), console=Recorder())
