"""Whole small runs: what they learn, what they leave, that they resume exactly, whom they refuse."""

import json

import numpy as np
import pytest
import torch

import stablelm
from stablelm.config import InputError
from stablelm.config.finetune import FinetuneConfig, finetune_yaml, load_finetune_config
from stablelm.finetuning import finetune
from stablelm.finetuning.data import split
from stablelm.finetuning.tuner import prepare
from stablelm.inference import generate_ids
from stablelm.interchange import open_path
from stablelm.interchange.checkpoints import average
from stablelm.interchange.export import export
from stablelm.interchange.native import finished_checkpoints
from stablelm.tokenizer.chat import ZEPHYR, render
from stablelm.training.metrics import read_metrics
from stablelm.training.report import run_page
from tests.finetuning.conftest import COLOURS, TALKS, write_lines
from tests.training.conftest import Recorder


def steps_of(run):
    return [record for record in read_metrics(run) if "kind" not in record]


def test_a_model_learns_to_answer_and_stays_a_model(make, tmp_path):
    console = Recorder()
    config = make(epochs=14, batch={"sequences": 2}, optimizer={"lr": 1e-2}, checkpoint={"every": 999})
    run = finetune(config, console=console)
    steps = steps_of(run)
    assert steps[-1]["loss"] < 0.25 < 5 < steps[0]["loss"]
    held = [record for record in read_metrics(run) if record.get("kind") == "evaluation"]
    assert held[-1]["step"] == steps[-1]["step"] and held[-1]["loss"] < held[0]["loss"]
    assert held[-1]["source"] == "examples" and held[-1]["tokens"] > 0
    lines = "\n".join(console.messages)
    assert "40 records (chat), 40 examples" in lines and "held out: 2" in lines
    assert "stablelm-zephyr's, since the model has none; it is stored" in lines
    # The directory is the tuned model, template and all.
    model, tokenizer = stablelm.load(run)
    assert tokenizer.chat_template == ZEPHYR
    assert (tokenizer.pad_id, tokenizer.eos_id) == (1, 0)
    right = 0
    for thing, colour in COLOURS.items():
        prompt = render(ZEPHYR, [{"role": "user", "content": f"What colour is the {thing}, number 3?"}])
        ids = torch.tensor([tokenizer.encode(prompt)])
        answer = generate_ids(model, ids, max_new_tokens=24, eos_ids=[0])[0, ids.shape[1] :].tolist()
        right += tokenizer.decode(answer) == f"The {thing} is {colour}.<|endoftext|>"
    assert right == len(COLOURS), "answers are learnt to their end"
    # It exports, with its card; the page about the run can be made.
    list(export(run, tmp_path / "exported", torch.float32))
    exported, words = open_path(tmp_path / "exported")
    assert words.chat_template == ZEPHYR
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), model.parameters(), strict=True))
    settings = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())
    assert settings["pad_token"] == "<|padding|>" and settings["eos_token"] == "<|endoftext|>"
    assert "| examples |" in (tmp_path / "exported" / "README.md").read_text()
    run_page(run).write(tmp_path / "report.html")
    # A second tuning goes on with the template that is there.
    again = prepare(make(model=str(run)))[1]
    assert "the model's own" in "\n".join(again.describe())


def test_only_answers_are_counted(make):
    """Prompts are not trained: the loss of a step is that of its answers alone."""
    config = make(epochs=1, batch={"sequences": 64}, data={"held_out_share": 0})
    _, tuning = prepare(config)
    run = finetune(config, console=Recorder())
    model, _ = open_path(config.model)
    nats, targets = 0.0, 0
    for example in tuning.train:
        ids = torch.from_numpy(example.ids).long()
        inputs = torch.where(ids < 0, ~ids, ids)
        logs = model(inputs[None, :-1])[0].log_softmax(-1)
        for place in range(len(ids) - 1):
            if ids[place + 1] >= 0:
                nats -= float(logs[place, ids[place + 1]].detach())
                targets += 1
    answers = sum(len(tuning.tokenizer.encode(m["content"])) + 1 for said in TALKS for m in said[1::2])
    assert targets == answers
    (step,) = steps_of(run)
    assert step["loss"] == pytest.approx(nats / targets, abs=1e-5)


def test_a_run_that_stops_goes_on_bit_for_bit(make):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    whole = finetune(make(out="whole"), console=Recorder())
    with pytest.raises(Stop):
        finetune(make(out="cut"), console=Recorder({5: stop}))
    assert [path.name for path in finished_checkpoints(whole.parent / "cut")] == ["step-000003"]
    console = Recorder()
    cut = finetune(make(out="cut"), resume=True, console=console)
    assert any("resumed" in message for message in console.messages)
    assert [r["loss"] for r in steps_of(cut)] == [r["loss"] for r in steps_of(whole)]
    weights = [open_path(run)[0].state_dict() for run in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    saved = finished_checkpoints(cut)
    list(average(cut.parent / "mean", saved[-2:]))
    assert open_path(cut.parent / "mean")[1].chat_template == ZEPHYR, "an average keeps the template"
    with pytest.raises(InputError, match="already holds a run"):
        finetune(make(out="cut"), console=Recorder())
    for changes, message in (
        ({"data": {"train_on": "all"}}, "the run began with data.train_on = 'answers'"),
        ({"records": [{"text": "The sky is blue."}] * 9}, "another dataset or mixture"),
        ({"optimizer": {"lr": 1e-3}}, "optimizer.lr"),
        ({"epochs": 3}, "epochs"),
        ({"seed": 5}, "seed"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(make(out="cut", **changes), resume=True, console=Recorder())


def test_what_is_held_out(make, tmp_path):
    tuning = prepare(make(data={"held_out_share": 0.25}))[1]
    assert (len(tuning.train), len(tuning.held)) == (30, 10)
    assert not {e.where for e in tuning.train} & {e.where for e in tuning.held}
    again = prepare(make(data={"held_out_share": 0.25}))[1]
    assert [e.where for e in again.held] == [e.where for e in tuning.held]
    other = prepare(make(data={"held_out_share": 0.25}, seed=9))[1]
    assert [e.where for e in other.held] != [e.where for e in tuning.held]
    assert not prepare(make(data={"held_out_share": 0}))[1].held
    # Equal examples stay on one side.
    twice = [{"messages": said} for said in TALKS] * 2
    tuning = prepare(make(twice, data={"held_out_share": 0.25}))[1]
    keys = [{example.ids.tobytes() for example in side} for side in (tuning.train, tuning.held)]
    assert not keys[0] & keys[1] and len(tuning.held) == 20
    assert tuning.duplicates == 30
    assert any("30 of them repeat another example" in line for line in tuning.describe())
    assert split(tuning.train[:1], 0.5, 1) == (tuning.train[:1], [])
    # A file that the user holds out is compared with what is trained.
    mixed = [{"messages": TALKS[3]}, {"messages": TALKS[4][:1] + TALKS[5][1:]}]
    path = write_lines(tmp_path / "held.jsonl", mixed)
    tuning = prepare(make(data={"held_out": str(path)}))[1]
    assert (len(tuning.train), len(tuning.held)) == (40, 2)
    lines = "\n".join(tuning.describe())
    assert "1 held-out examples are trained too, the first" in lines and "held.jsonl, line 1" in lines


def test_texts_need_no_template_and_keep_the_models(make):
    records = [{"text": f"The {thing} is {colour}."} for thing, colour in COLOURS.items()]
    tuning = prepare(make(records))[1]
    assert tuning.tokenizer.chat_template is None
    assert tuning.summary()["chat_template_sha256"] is None
    assert not any("template" in line for line in tuning.describe())


def test_a_template_from_a_file(make, tmp_path):
    path = tmp_path / "mine.jinja"
    own = ZEPHYR.replace("'<|' + message['role'] + '|>\\n'", "message['role'] + ': '")
    own = own.replace("'<|assistant|>\\n'", "'assistant: '")
    path.write_text(own)
    tuning = prepare(make(data={"template": str(path)}))[1]
    assert tuning.tokenizer.chat_template == own
    ids = tuning.train[0].ids
    assert tuning.tokenizer.decode(np.where(ids < 0, ~ids, ids)).startswith("user: What colour")
    with pytest.raises(InputError, match=r"data\.template: nowhere\.jinja: no such file.*write zephyr"):
        prepare(make(data={"template": "nowhere.jinja"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere"}, "nowhere: no such directory"),
        ({"batch": {"sequence_length": 256}}, "batch.sequence_length 256 is longer than model.max_position"),
        ({"batch": {"sequence_length": 16}}, "line 1: .* tokens; the longest that fits rows of 16"),
        ({"steps": 10_000}, "steps 10,000"),
        ({"epochs": "1/1000"}, "not half a window"),
    ],
)
def test_runs_that_do_not_fit_leave_nothing(make, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        finetune(make(**changes), console=Recorder())
    assert not (tmp_path / "run").exists()


def test_a_base_without_a_tokenizer_or_with_packed_weights(make, base, tmp_path):
    from stablelm.interchange import save_pretrained

    save_pretrained(open_path(base)[0], None, tmp_path / "bare")
    with pytest.raises(InputError, match="bare: has no tokenizer.json"):
        prepare(make(model=str(tmp_path / "bare")))
    settings = json.loads((tmp_path / "bare" / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "stablelm"}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="packed weights cannot be trained"):
        prepare(make(model=str(tmp_path / "bare")))


def test_few_steps_are_told(make):
    console = Recorder()
    finetune(make(batch={"sequences": 64}, epochs=1), console=console)
    assert any("only 1 step;" in message for message in console.messages)


def test_the_configuration(root, tmp_path, base):
    assert (root / "configs" / "finetune.yml").read_text("utf-8") == finetune_yaml(), "run `make docs`"
    assert load_finetune_config(root / "configs" / "finetune.yml") == FinetuneConfig(
        model="models/mine", data={"paths": ["data.jsonl"]}
    )
    path = tmp_path / "run.yml"
    path.write_text("model: m\ndata: {paths: a.jsonl, keys: {prompt: q}}\n")
    config = load_finetune_config(path, ["epochs=7/3", "data.held_out=b.jsonl"])
    assert (config.data.paths, config.data.held_out, config.epochs) == (["a.jsonl"], ["b.jsonl"], "7/3")
    for text, message in (
        ("model: {preset: stablelm-12m}\ndata: {paths: a}\n", "model is a section.*Fine-tuning wants"),
        ("model: m\ndata: {paths: a, key: {}}\n", "unknown key; did you mean 'keys'"),
        ("model: m\ndata: {paths: a, keys: {question: prompt}}\n", "'question' is none of ours"),
        ("model: m\ndata: {paths: a}\nepochs: 0\n", "epochs must be above 0"),
        ("model: m\ndata: {paths: []}\n", "data.paths"),
        ("data: {paths: a}\n", "model: this key is required"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_finetune_config(path)


def test_tuning_can_extend_the_context(make):
    texts = [{"text": f"The sky is blue, number {number}. " * 12} for number in range(6)]
    batch = {"sequences": 2, "sequence_length": 200}
    with pytest.raises(
        InputError, match="sequence_length 200 is longer than model.max_position_embeddings 128"
    ):
        prepare(make(texts, batch=batch))
    longer = {"rope_theta": 1e5, "max_position_embeddings": 256}
    console = Recorder()
    run = finetune(make(texts, batch=batch, adapt=longer, data={"held_out_share": 0}), console=console)
    assert any("context changed from 128 to 256 and rotary base" in message for message in console.messages)
    config = open_path(run)[0].config
    assert (config.rope_theta, config.max_position_embeddings) == (1e5, 256)
