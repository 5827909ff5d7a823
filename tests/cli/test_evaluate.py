"""stablelm evaluate, as it is typed."""

import json

import pytest


@pytest.fixture
def data(shared):
    return shared / "data" / "eval"


def test_a_quick_look_without_a_network(run, world, data, tmp_path):
    said = run("evaluate", world / "model", "--tasks", "piqa,sciq", "--data", data, "--limit", 3,
               "--out", tmp_path / "e")  # fmt: skip
    assert said.code == 0, said.err
    assert "piqa" in said.out and "first 3 items" in said.out and "validation split" in said.out
    saved = json.loads((tmp_path / "e" / "results.json").read_text())
    assert set(saved["results"]) == {"piqa", "sciq"}
    assert (tmp_path / "e" / "report.html").is_file()


def test_two_models_are_compared(run, world, data, tmp_path):
    said = run("evaluate", world / "model", world / "model", "--tasks", "piqa", "--data", data, "--limit", 3,
               "--compare", "--out", tmp_path / "e")  # fmt: skip
    assert said.code == 0, said.err
    assert "model-2 minus model" in said.out
    assert (tmp_path / "e" / "model-2" / "results.json").is_file()


def test_the_safety_suite_and_its_place_on_the_card(run, world, tmp_path):
    said = run("evaluate", world / "model", "--suite", "safety", "--limit", 2, "--out", tmp_path / "s")
    assert said.code == 0, said.err
    assert "toxic_lexicon" in said.out and "no proof of safety" in said.out
    assert (tmp_path / "s" / "report.html").is_file()
    said = run("export", world / "model", tmp_path / "released", "--evaluation", tmp_path / "s")
    assert said.code == 0, said.err
    assert "## Safety" in (tmp_path / "released" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--suite", "glue"), "suite 'glue' does not exist"),
        (("--compare",), "--compare wants at least two models"),
        (("--data", "nowhere"), "nowhere: no such directory"),
        (("--limit", "0", "--data", "{data}"), "at least one item"),
        (("--tasks", "mmlu", "--data", "{data}"), "mmlu cannot be read from files"),
        (("--suite", "safety", "--data", "{data}"), "holds none of prompts.jsonl"),
        (("--classifier", "nowhere"), "--classifier belongs to --suite safety"),
        (("--suite", "safety", "--classifier", "nowhere"), "nowhere: no classifier"),
    ],
)
def test_mistakes_are_messages(run, world, data, words, message):
    said = run("evaluate", world / "model", *(word.replace("{data}", str(data)) for word in words))
    assert said.code == 2 and message in said.err and "Traceback" not in said.err
    assert said.out in ("", f"model: {world / 'model'}\n")


def test_a_path_that_is_not_there(run, data, tmp_path):
    said = run("evaluate", tmp_path / "nothing", "--data", data, "--limit", 1, "--out", tmp_path / "e")
    assert said.code == 2 and "nothing: no such directory" in said.err
