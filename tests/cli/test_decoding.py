"""Beams, best of n, windows and prefixes from the command line."""

import json
import re

import pytest
import torch

import stablelm
from stablelm.inference import PrefixCache
from stablelm.inference.runner import ModelRunner
from tests.cli.conftest import sentences

START = "the river runs past a small town. my neighbour"


def test_beams_and_best_of_are_those_of_the_library(world, run):
    model, tokenizer = stablelm.load(world / "model")
    line = ("generate", world / "model", "the river", "--max-new-tokens", 12)
    said = run(*line, "--beams", 4, "--length-penalty", 0.5)
    text = stablelm.generate(model, tokenizer, "the river", max_new_tokens=12, beams=4, length_penalty=0.5)
    assert (said.code, said.out) == (0, f"{text}\n") and re.fullmatch(r"[\d.]+ s, 4 beams\n", said.err)
    assert run(*line, "--beams", 4, "--length-penalty", 0.5, "--echo").out == f"the river{text}\n"
    said = run(*line, "--best-of", 3, "--seed", 5, "--temperature", 1.5, "--top-p", 1)
    text = stablelm.generate(
        model, tokenizer, "the river", max_new_tokens=12, best_of=3, seed=5, temperature=1.5
    )
    assert (said.code, said.out) == (0, f"{text}\n") and "the likeliest of 3, seeds 5 to 7" in said.err
    assert run(*line, "--best-of", 3, "--quiet").err == ""


def test_a_file_of_prompts_with_beams_goes_on_with_the_same(world, run, tmp_path):
    asked, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    prompts = ["the river", "x", "her letter waits for"]
    asked.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    line = ("generate", world / "model", "--file", asked, "--out", out, "--max-new-tokens", 9, "--batch", 2)
    assert run(*line, "--beams", 3).code == 0
    model, tokenizer = stablelm.load(world / "model")
    texts = stablelm.generate(model, tokenizer, prompts, max_new_tokens=9, beams=3)
    assert [json.loads(each)["text"] for each in out.read_text().splitlines()] == texts
    work = tmp_path / "out.jsonl.partial"
    work.mkdir()
    (work / "settings.json").write_text(json.dumps({"beams": 1}))
    out.unlink()
    said = run(*line, "--beams", 3)
    assert said.code == 2 and "beams" in said.err


def test_a_window_writes_beyond_the_context(world, run):
    line = ("generate", world / "model", "the river", "--max-new-tokens", 150, "--min-new-tokens", 150)
    said = run(*line, "--temperature", 0)
    assert said.code == 2 and "the model's context is 128" in said.err
    said = run(*line, "--temperature", 0, "--window", 60)
    model, tokenizer = stablelm.load(world / "model")
    sampling = stablelm.inference.Sampling(temperature=0.0, min_new_tokens=150)
    text = stablelm.generate(model, tokenizer, "the river", max_new_tokens=150, sampling=sampling, window=60)
    assert said.code == 0 and said.out == f"{text}\n" and said.err.startswith("150 tokens in")
    drawn = [run(*line, "--seed", 3, "--window", 20, "--sinks", sinks).out for sinks in (4, 0)]
    assert drawn[0] == run(*line, "--seed", 3, "--window", 20).out != drawn[1]
    long = sentences(7, 60)
    assert run("generate", world / "model", long, "--window", 60, "--max-new-tokens", 9).code == 0


@pytest.fixture
def passes(monkeypatch):
    found = []
    hidden = ModelRunner._hidden
    monkeypatch.setattr(ModelRunner, "_hidden", lambda *g: found.append(tuple(g[1].shape)) or hidden(*g))
    return found


def test_a_prefix_is_saved_and_used(world, run, tmp_path, passes):
    file = tmp_path / "rules.prefix"
    line = ("generate", world / "model", "--max-new-tokens", 12, "--temperature", 0)
    plain = [run(*line, "--quiet", text).out for text in (START, f"{START} waits for")]
    passes.clear()
    said = run(*line, START, "--save-prefix", file)
    length = passes[0][1]
    assert said.code == 0 and said.out == plain[0] and f"{file}: {length} tokens" in said.err
    assert passes[:2] == [(1, length), (1, 1)], "read once; the last token again, for its logits"
    passes.clear()
    said = run(*line, f"{START} waits for", "--prefix", file, "--stats")
    assert said.code == 0 and said.out == plain[1]
    whole = length + passes[0][1]
    assert f"{file}: {length} of the prompt's {whole} tokens were read before" in said.err
    assert f"prefill: {whole - length} tokens" in said.err and passes[0][1] < 9
    longer = tmp_path / "longer.prefix"
    said = run(*line, f"{START} waits for", "--prefix", file, "--save-prefix", longer)
    assert said.code == 0 and said.out == plain[1]
    assert len(PrefixCache.load(longer, stablelm.load(world / "model")[0]).ids) == whole
    best = ("--best-of", 3, "--seed", 1, "--quiet")
    line = ("generate", world / "model", "--max-new-tokens", 12, f"{START} waits for")
    assert run(*line, *best).out == run(*line, *best, "--prefix", file).out
    said = run(*line[:-1], "her letter", "--prefix", file)
    assert said.code == 2 and "the prompt does not begin as its text does ('the river" in said.err
    assert said.out == ""
    said = run(*line, "--save-prefix", file)
    assert said.code == 2 and "already exists" in said.err
    said = run(*line, "--prefix", tmp_path / "nowhere")
    assert said.code == 2 and "no such file. Make it with --save-prefix" in said.err
    said = run("generate", world / "run", START, "--prefix", file, "--max-new-tokens", 3, "--quiet")
    assert said.code == 0, "the run that the model was exported from has the same weights"


def test_another_models_prefix_is_refused(world, run, tmp_path):
    file = tmp_path / "rules.prefix"
    assert run("generate", world / "model", START, "--save-prefix", file, "--max-new-tokens", 1).code == 0
    model, _ = stablelm.load(world / "model")
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 0.5
    model.save_pretrained(tmp_path / "tuned")
    said = run("generate", tmp_path / "tuned", START, "--prefix", file)
    assert said.code == 2 and f"{file}: computed by another model" in said.err


def test_prompts_of_a_file_share_their_beginning(world, run, tmp_path, passes):
    asked, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    prompts = [
        f"{START}{end}" for end in (" waits for", " remembers a small town", "", " never answers x", ".")
    ]
    asked.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    line = ("generate", world / "model", "--file", asked, "--out", out, "--batch", 2, "--seed", 3)
    hot = ("--max-new-tokens", 15, "--temperature", 1.5, "--top-p", 1)
    assert run(*line, *hot).code == 0
    assert passes[0][0] == 1 and passes[0][1] >= 8
    assert passes[1][0] == 2 and passes[1][1] < 10
    model, tokenizer = stablelm.load(world / "model")
    for number, text in enumerate(out.read_text("utf-8").split("\n")[:-1]):
        settings = dict(max_new_tokens=15, temperature=1.5, seed=3 + number)
        assert json.loads(text)["text"] == stablelm.generate(model, tokenizer, prompts[number], **settings)


def test_a_conversation_reads_what_is_new(world, run, passes):
    line = ("chat", world / "model", "--temperature", 0, "--max-new-tokens", 12)
    said = run(*line, stdin=b"the river runs past a small town\nher letter\nx\n")
    assert said.code == 0
    starts = [shape for shape in passes if shape[1] > 1]
    assert len(starts) <= 3 and all(shape[1] < 15 for shape in starts[1:]), starts
    assert len(passes) == 3 * 12, "a pass an answer reads what is new, one a token"


def test_what_does_not_go_together(world, run, tmp_path):
    line, asked = ("generate", world / "model"), tmp_path / "a.jsonl"
    asked.write_text('{"prompt": "x"}\n')
    many = ("--file", asked, "--out", tmp_path / "o.jsonl")
    for more, message in (
        (("x", "--beams", 0), "beams must be a whole number of at least 1"),
        (("x", "--beams", 2, "--best-of", 2), "choose one of them"),
        (("x", "--beams", 2, "--temperature", 0.5), "temperature has no effect"),
        (("x", "--beams", 2, "--seed", 5), "seed has no effect"),
        (("x", "--best-of", 2, "--temperature", 0), "at temperature 0 all 2 texts are the same"),
        (("x", "--length-penalty", 2), "length_penalty compares"),
        (("x", "--sinks", 4), "--sinks stay in sight of a --window"),
        (("x", "--window", 9, "--truncate", "left"), "leave --truncate left away"),
        (("x", "--window", 125), "context is 128. Ask for a window of at most 124"),
        (("x", "--beams", 2, "--stats"), "--stats measures plain writing"),
        (("x", "--lookup", "--best-of", 2), "does not go with best_of"),
        ((*many, "--window", 125), "context is 128. Ask for a window of at most 124"),
        ((*many, "--save-prefix", tmp_path / "p"), "go with one prompt"),
    ):
        said = run(*line, *more)
        assert said.code == 2 and said.out == "" and message in " ".join(said.err.split()), said.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
