"""The nine tasks from files, end to end: tables, files, pages, interruptions, comparisons."""

import json
import os
import shutil
import socket

import numpy as np
import pytest
import torch

from stablelm.auto import load
from stablelm.config import InputError
from stablelm.evaluation.evaluate import distinct_names, evaluate, evaluate_suite
from stablelm.evaluation.published import TASKS
from stablelm.evaluation.suites import choose_tasks
from stablelm.inference.quantization import Recipe, quantize
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer.training import train_tokenizer


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True, scope="module")
def _no_forks():
    """A process with threads must not be forked: children wait for locks that nobody will open."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse():
            raise AssertionError("something forked")

        patch.setattr(os, "fork", refuse)
        yield


@pytest.fixture(scope="module")
def done(small_model, shared, tmp_path_factory):
    """The suite with 4 items a task, and where it was written."""
    out = tmp_path_factory.mktemp("out") / "evaluation"
    (found,) = evaluate(small_model, data=shared / "data" / "eval", limit=4, out=out, progress=False)
    return found, out


def test_all_nine_tasks_run_and_are_written_in_lm_evals_schema(done):
    found, out = done
    saved = json.loads((out / "results.json").read_text())
    assert set(saved["results"]) == set(TASKS)
    assert saved["results"]["hellaswag"].keys() >= {"acc,none", "acc_norm,none", "acc_stderr,none"}
    assert saved["n-samples"]["boolq"]["effective"] == 4 and saved["n-shot"]["piqa"] == 0
    assert saved["model_name"] == "small"
    for task in TASKS:
        items = [json.loads(line) for line in (out / "samples" / f"{task}.jsonl").read_text().splitlines()]
        assert len(items) == 4 == len(found.samples[task])


def test_the_numbers_are_those_of_the_items(done):
    found, _ = done
    for task in TASKS:
        items = found.samples[task]
        value = found.results["results"][task]["acc,none"]
        assert value == pytest.approx(sum(item["acc"] for item in items) / len(items))


def test_notes_say_what_the_numbers_are_not(done):
    found, _ = done
    assert any("first 4 items" in note for note in found.notes)
    assert any("SciQ is its validation split" in note for note in found.notes)
    assert any("longer than the context" in note for note in found.notes)  # 256 tokens of context


def test_the_page_has_the_table_the_chart_and_the_rule(done):
    page = (done[1] / "report.html").read_text()
    for wanted in (
        "66.93",
        "66.65",
        "64.18",
        "HellaSwag",
        "validation split",
        "<svg ",
        "pythia-2.8b-deduped",
    ):
        assert wanted in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")


def test_an_interrupted_evaluation_computes_only_what_is_missing(small_model, shared, tmp_path, monkeypatch):
    reads, plain, stop = [], StableLM.hidden_states, [3]

    def counted(self, ids, *arguments, **keywords):
        if len(reads) == stop[0]:
            raise KeyboardInterrupt
        reads.append(ids.numel())
        return plain(self, ids, *arguments, **keywords)

    monkeypatch.setattr(StableLM, "hidden_states", counted)
    monkeypatch.setattr("stablelm.evaluation.harness.BATCH_TOKENS", 512)
    data = shared / "data" / "eval"

    def run():
        return evaluate(
            small_model, tasks=["arc_easy", "piqa"], data=data, limit=30, out=tmp_path, progress=False
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    before = len(reads)
    stop[0] = None
    (resumed,) = run()
    assert before == 3 and len(reads) > before
    total, tokens = len(reads), sum(reads)
    (again,) = run()  # everything is known
    assert len(reads) == total
    fresh = evaluate(small_model, tasks=["arc_easy", "piqa"], data=data, limit=30, progress=False)[0]
    assert tokens < 1.2 * (sum(reads) - tokens)  # interrupted and resumed shared the work of one
    assert resumed.results["results"] == again.results["results"] == fresh.results["results"]


def test_models_are_compared_item_by_item(small_model, shared, tmp_path):
    model, tokenizer = load(small_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    other = tmp_path / "other"
    save_pretrained(model, tokenizer, other)
    suite = choose_tasks(None, ["arc_easy", "openbookqa"])
    found, differences = evaluate_suite(
        [small_model, other, small_model], suite, shared / "data" / "eval", 40, tmp_path / "out",
        compared=True, progress=False,
    )  # fmt: skip
    assert [one.model for one in found] == ["small", "other", "small-2"]
    (first, second, parts), (_, _, same) = differences
    assert (first, second) == ("small", "other") and len(parts) == 3
    assert sum(one.changed for one in parts[:2]) > 0
    assert all(one.changed == 0 and one.difference == 0 for one in same)
    for one in parts[:2]:
        items = {item["doc_id"]: item for item in found[0].samples[one.task]}
        others = {item["doc_id"]: item for item in found[1].samples[one.task]}
        mean = sum(others[i]["acc"] - items[i]["acc"] for i in items) / len(items)
        assert one.difference == pytest.approx(100 * mean)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "other minus small" in page and "95 % interval" in page


def test_a_quick_comparison_with_4_bits_holds_what_all_items_say(small_model, tmp_path):
    """A network with large weights, so that rounding changes answers; a task of short items."""
    model, tokenizer = load(small_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 1 if "norm" in name else 5
    save_pretrained(model, tokenizer, tmp_path / "whole")
    recipe = quantize(model, Recipe.of(4, 32))
    save_pretrained(model, tokenizer, tmp_path / "packed", quantization=recipe.as_dict())
    words = ["river", "water", "towns", "place", "seven", "house", "plane"]
    texts = (words[int(number) % 7] for number in np.random.Philox(key=5).random_raw(400))
    items = [dict(goal=next(texts), sol1=next(texts), sol2=next(texts), label=n % 2) for n in range(120)]
    (tmp_path / "piqa.jsonl").write_text("\n".join(json.dumps(item) for item in items))

    def compared(limit):
        models, suite = [tmp_path / "whole", tmp_path / "packed"], choose_tasks(None, ["piqa"])
        return evaluate_suite(models, suite, tmp_path, limit, compared=True, progress=False)[1][0][2][0]

    quick, whole = compared(40), compared(None)
    assert (quick.items, whole.items) == (40, 120) and quick.changed > 0
    assert quick.interval[0] <= whole.difference <= quick.interval[1]
    assert 0 < whole.stderr < quick.stderr


def test_names_are_distinct_and_fit_for_folders():
    assert distinct_names(["a/model", "b/model/", "org/x:y", "."]) == ["model", "model-2", "x-y", "model-3"]


def test_mistakes(small_model, shared, tmp_path):
    with pytest.raises(
        InputError, match="suite 'glue' does not exist; the suites are stablelm-3b-4e1t, open"
    ):
        choose_tasks("glue", [])
    with pytest.raises(InputError, match="keep one"):
        choose_tasks("stablelm-3b-4e1t", ["piqa"])
    with pytest.raises(InputError, match="at least one item"):
        evaluate(small_model, data=shared / "data" / "eval", limit=0)
    with pytest.raises(InputError, match="missing arc_challenge.jsonl"):
        evaluate(small_model, data=tmp_path)
    model, _ = load(small_model)
    mixed = shutil.copytree(small_model, tmp_path / "mixed")
    train_tokenizer([f"word{number} " * 20 for number in range(300)], 500, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", mixed / "tokenizer.json")
    with pytest.raises(InputError, match="it is not this model's tokenizer"):
        evaluate(mixed, data=shared / "data" / "eval", limit=1)
    save_pretrained(model, None, tmp_path / "bare")
    with pytest.raises(InputError, match="no tokenizer"):
        evaluate(tmp_path / "bare", data=shared / "data" / "eval", limit=1)
