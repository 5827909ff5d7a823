"""Runs that train an adapter: what they learn and leave, that they resume exactly, whom they refuse."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

import stablelm
from stablelm.config import InputError
from stablelm.finetuning import finetune
from stablelm.finetuning.low_rank import build_adapted
from stablelm.inference import generate_ids
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.checkpoints import average, verify
from stablelm.interchange.export import export
from stablelm.interchange.inspection import describe
from stablelm.interchange.native import finished_checkpoints
from stablelm.interchange.peft import load_adapter
from stablelm.model.fingerprint import digest
from stablelm.tokenizer.chat import ZEPHYR, render
from stablelm.training.parallel import Layout
from tests.finetuning.conftest import COLOURS, TALKS
from tests.finetuning.test_finetune import steps_of
from tests.training.conftest import Recorder

LORA = {"rank": 4, "alpha": 8}


def test_an_adapter_learns_to_answer_and_the_run_is_the_tuned_model(make, tmp_path):
    console = Recorder()
    wrong = dict(zip(COLOURS.values(), [*list(COLOURS.values())[1:], "blue"], strict=True))

    def mistaken(message):
        told = re.sub(r"\w+(?=\.)", lambda found: wrong[found[0]], message["content"])
        return {**message, "content": told} if message["role"] == "assistant" else message

    lies = [{"messages": [mistaken(message) for message in said]} for said in TALKS]
    same = {"batch": {"sequences": 2}, "checkpoint": {"every": 999}}
    base = finetune(make(lies, out="base", epochs=14, optimizer={"lr": 1e-2}, **same), console=Recorder())
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    adapter = {"rank": 16, "alpha": 32}
    config = make(
        model=str(base), epochs=6, optimizer={"lr": 5e-3}, adapter=adapter, recompute="full", **same
    )
    run = finetune(config, console=console)
    steps = steps_of(run)
    assert steps[-1]["loss"] < 0.1 < 0.7 < steps[0]["loss"]
    assert all(path.read_bytes() == content for path, content in before.items()), "the base stays as it is"
    lines = "\n".join(console.messages)
    assert "parameters (17,408 trained)" in lines
    model, tokenizer = stablelm.load(run)
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear", "merged: a plain model"
    assert tokenizer.chat_template == ZEPHYR and model.dtype == torch.float32
    right = 0
    for thing, colour in COLOURS.items():
        prompt = render(ZEPHYR, [{"role": "user", "content": f"What colour is the {thing}, number 3?"}])
        ids = torch.tensor([tokenizer.encode(prompt)])
        answer = generate_ids(model, ids, max_new_tokens=24, eos_ids=[0])[0, ids.shape[1] :].tolist()
        right += tokenizer.decode(answer) == f"The {thing} is {colour}.<|endoftext|>"
    assert right == len(COLOURS)
    # A checkpoint holds the adapter alone; RUN/adapter is the same in PEFT's format.
    (saved,) = finished_checkpoints(run)
    size = sum(path.stat().st_size for path in saved.rglob("*.safetensors"))
    assert 12 * 17_408 < size < 13 * 17_408 + 40_000
    attached, _ = open_path(base)
    load_adapter(attached, run / "adapter")
    again, _ = open_path(base)
    load_adapter(again, saved, "mine")
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(attached(ids), model(ids), atol=1e-5, rtol=1e-5)
        assert torch.equal(attached(ids), again(ids))
    opened, words = open_path(run / "adapter")
    assert digest(opened.state_dict()) == digest(model.state_dict()) and words.chat_template == ZEPHYR
    # What looks at it knows what it is.
    facts = describe(run, verify=True)
    assert facts["adapter"] == {
        "on": str(base), "rank": 16, "alpha": 32, "rank_stabilized": "no", "row_lengths": "no",
        "matrices": 14, "parameters": 17_408,
    }  # fmt: skip
    assert "28 tensors" in facts["verified"] and describe(run / "adapter")["kind"] == "adapter"
    assert "whole" in next(verify(run))
    with pytest.raises(InputError, match="the mean of B and of A is not that of B A"):
        list(average(tmp_path / "mean", [run, base]))
    list(export(run, tmp_path / "exported", torch.float32))
    exported, _ = open_path(tmp_path / "exported")
    assert digest(exported.state_dict()) == digest(model.state_dict())


@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_an_adapter_run_that_stops_goes_on_bit_for_bit(make, method):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    adapter = {**LORA, "method": method, "targets": ["q_proj", "down_proj", "lm_head"]}
    whole = finetune(make(out="whole", adapter=adapter), console=Recorder())
    with pytest.raises(Stop):
        finetune(make(out="cut", adapter=adapter), console=Recorder({5: stop}))
    assert not (whole.parent / "cut" / "adapter").exists()
    cut = finetune(make(out="cut", adapter=adapter), resume=True, console=Recorder())
    assert [r["loss"] for r in steps_of(cut)] == [r["loss"] for r in steps_of(whole)]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (cut / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()
    for changes, message in (
        ({"adapter": {**adapter, "rank": 8}}, "the run began with adapter.rank = 4, this one says 8"),
        ({"adapter": {**adapter, "targets": "all-linear"}}, "adapter.targets"),
        ({}, "adapter"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(make(out="cut", **changes), resume=True, console=Recorder())


def test_a_base_that_changed_or_went_away(make, base, tmp_path):
    mine = tmp_path / "here" / "mine"
    shutil.copytree(base, mine)
    run = finetune(make(model=str(mine), out="here/run", steps=3, adapter=LORA), console=Recorder())
    kept = digest(open_path(run)[0].state_dict())
    for file in ("run/adapter/base.json", "run/checkpoints/step-000003/base.json"):
        about = json.loads((tmp_path / "here" / file).read_text())
        assert about["beside"] == "../mine" and about["model"] == str(mine)
    # Both move together; then the base is another one; then it is gone.
    (tmp_path / "here").rename(tmp_path / "there")
    run, mine = tmp_path / "there" / "run", tmp_path / "there" / "mine"
    assert digest(open_path(run)[0].state_dict()) == kept
    model, words = open_path(mine)
    model.model.norm.bias.data[3] += 1e-3
    shutil.rmtree(mine)
    save_pretrained(model, words, mine)
    for path in (run, run / "adapter", run / "checkpoints" / "step-000003"):
        with pytest.raises(InputError, match=r"mine: the weights have changed since the adapter in .* was"):
            open_path(path)
    with pytest.raises(InputError, match="the weights have changed since the adapter"):
        finetune(
            make(model=str(mine), out="there/run", steps=3, adapter=LORA), resume=True, console=Recorder()
        )
    shutil.rmtree(mine)
    with pytest.raises(InputError, match="its base model, .*mine, is not there, nor is .*put it back"):
        open_path(run)


def test_an_adapter_on_an_adapter(make):
    first = finetune(make(steps=3, adapter=LORA), console=Recorder())
    second = finetune(make(model=str(first), out="second", steps=3, adapter=LORA), console=Recorder())
    model, _ = open_path(second)
    plain, _ = open_path(first)
    load_adapter(plain, second / "adapter")
    ids = torch.arange(60).view(2, 30)
    torch.testing.assert_close(plain(ids), model(ids), atol=1e-5, rtol=1e-5)
    newest = finished_checkpoints(first)[-1] / "base.json"
    newest.write_text(newest.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(InputError):
        open_path(second)


def test_the_base_is_kept_in_bf16_and_the_adapter_in_float32(make, base):
    config = make(precision="bf16", adapter={**LORA, "method": "dora"})
    run = config.run(open_path(base)[0].config)
    model, _, found = build_adapted(run, config.adapter.asked(), Layout(), torch.device("cpu"))
    kinds = {".adapters." in name: parameter.dtype for name, parameter in model.named_parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32} and len(found.fingerprint) == 64
    loss = model(torch.arange(20).view(1, 20), labels=torch.arange(1, 21).view(1, 20))
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    tuned = finetune(make(precision="bf16", steps=4, adapter=LORA), console=Recorder())
    assert steps_of(tuned)[-1]["loss"] < steps_of(tuned)[0]["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"rank": 33}}, r"rank 33: model\.layers\.0\.self_attn\.q_proj is \[32, 32\]"),
        (
            {"adapter": {"rank": 4, "targets": ["wq"]}},
            "'wq' is no matrix of this model. This model has down_proj",
        ),
        (
            {"adapter": {"rank": 4}, "parallel": {"tensor": 2}},
            "adapter does not go with parallel.tensor above 1",
        ),
        ({"adapter": {"rank": 4, "method": "vera"}}, "adapter.method"),
        ({"adapter": {"rank": -1}}, "adapter.rank"),
        ({"adapter": {"rank": 4}, "adapt": {"rope_theta": 1e6}}, "adapt does not go with adapter"),
        ({"adapter": {"r": 4}}, "adapter.r: unknown key"),
    ],
)
def test_adapters_that_cannot_be_leave_nothing(make, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        finetune(make(**changes), console=Recorder())
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_of_an_adapter(base):
    from stablelm.config.finetune import finetune_config

    values = {"model": str(base), "data": {"paths": ["a.jsonl"]}}
    assert finetune_config(values).optimizer.lr == 2e-5
    assert finetune_config(values, ["adapter.rank=8"]).optimizer.lr == 2e-4
    assert finetune_config(values, ["adapter.rank=8", "optimizer.lr=1e-5"]).optimizer.lr == 1e-5
    assert finetune_config(values).adapter.asked() is None


def test_an_adapter_has_a_card_with_its_base_and_its_licence(make, base, tmp_path):
    mine = shutil.copytree(base, tmp_path / "somebody" / "small")
    matter = "license: cc-by-sa-4.0\ncredit: A. Maker\nmodel-index:\n- name: small\n  results: []\n"
    (mine / "README.md").write_text(f"---\n{matter}---\n")
    adapter = {**LORA, "method": "dora", "targets": ["q_proj"]}
    with pytest.raises(InputError, match="card.licence mit: the weights come from small"):
        finetune(make(model=str(mine), adapter=adapter, card={"licence": "mit"}), console=Recorder())
    card = {"name": "My [answers]", "authors": "B. Tuner", "tags": ["lora", "colours"]}
    run = finetune(make(model=str(mine), out="tuned", adapter=adapter, card=card), console=Recorder())
    text = (run / "adapter" / "README.md").read_text("utf-8")
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "cc-by-sa-4.0" and data["library_name"] == "peft"
    assert data["tags"] == ["causal-lm", "dora", "lora", "colours"]
    assert "base_model" not in data, "a path of this machine is no id of the Hub"
    (parent,) = data["lineage"]
    assert parent["credit"] == "A. Maker" and "an adapter beside it trained for" in parent["changes"]
    assert "# My \\[answers\\]" in text and f'base, adapter = {str(mine)!r}, "."' in text
    assert "DoRA, rank 4, alpha 8" in text and "**Matrices**: q_proj" in text
    assert "| examples |" in text and "Held-out documents of" in text
    assert f'model, tokenizer = stablelm.load({str(mine)!r}, adapters=".")' in text
    # What it says works: the adapter loads where the card lies.
    model, words = stablelm.load(mine, adapters=run / "adapter")
    assert words.chat_template == ZEPHYR and model.adapters == ["tuned"]
