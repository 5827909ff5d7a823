"""Every verb on the way from text to a model that writes: what it prints where, and what it leaves."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import stablelm
from stablelm.data import Dataset
from stablelm.tokenizer import Tokenizer

VERBS = [
    "demo",
    "data prepare",
    "tokenizer train",
    "init",
    "train",
    "generate",
    "inspect",
    "export",
    "report",
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_fits_80_columns_and_shows_an_example(run, verb):
    said = run(*verb.split(), "--help")
    assert (said.code, said.err) == (0, "")
    assert f"stablelm {verb}" in " ".join(said.out.split()).split("Example:")[1]
    assert max(map(len, said.out.splitlines())) <= 80
    assert said == run(*verb.split(), "-h")


def test_defaults_are_in_the_help(run):
    for verb, defaults in {
        "generate": ("64", "0.75", "0.95", "auto", "(random)"),
        "demo": ("(3)", "runs/demo"),
        "report": ("(RUN/report.html)",),
        "tokenizer train": ("32768", "stop", "text"),
        "export": ("fp32",),
    }.items():
        shown = run(*verb.split(), "--help").out
        for default in defaults:
            assert f"[default: {default}]" in shown


def test_alone_it_shows_its_help(run):
    said = run()
    assert said.err == ""
    for verb in VERBS:
        assert f" {verb.split()[0]} " in said.out
    assert "prepare" in run("data").out
    assert said.out.strip() == run("--help").out.strip()
    assert run("--help").code == 0


def test_version(run):
    assert run("--version").out == f"stablelm {stablelm.__version__}\n"


def test_tokenizer_train(world, run, tmp_path):
    said = world.said["tokenizer"]
    assert said.out == f"{world / 'tok'}: 340 ids\n"
    assert said.err == "50 documents read; learning 340 ids\n"
    assert Tokenizer.from_file(world / "tok").size == 340
    lines = [{"body": "a rose is a rose is a rose"}, {"title": "no body"}, {"body": "  "}, {"body": "a nose"}]
    (tmp_path / "odd.data").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--format", "jsonl", "--text-key", "body", "--on-error", "skip", "--vocab-size", 286)
    said = run("tokenizer", "train", tmp_path / "rose", tmp_path / "*.data", *options)
    assert said.code == 0, said.err
    assert "2 documents read; learning 286 ids" in said.err
    assert f"left out: 1 × missing key, first at {tmp_path}/odd.data:2" in said.err
    assert f"left out: 1 × empty, first at {tmp_path}/odd.data:3" in said.err
    assert len(Tokenizer.from_file(tmp_path / "rose").encode(" rose")) < 5


def test_data_prepare(world, run, tmp_path):
    said = world.said["data"]
    assert said.out.splitlines() == Dataset(world / "data").describe()
    assert "tokenize: 2 tasks in" in said.err and "bytes of work kept" in said.err
    changed = ("--set", f"out={tmp_path / 'd'}", "--set", "held_out=0", "--set", "append_eod=false")
    said = run("data", "prepare", world / "recipe.yml", *changed)
    assert said.code == 0, said.err
    made, before = Dataset(tmp_path / "d"), Dataset(world / "data")
    assert made.held_out("tales") is None
    assert made.manifest["append_eod"] is False
    both = sum(before.info("tales")[side]["tokens"] for side in ("train", "held_out"))
    assert made.train("tales").num_tokens == both - 30


def test_train(world, run, tmp_path):
    said = world.said["train"]
    assert said.err == ""
    assert "step 6/6" in said.out and "held-out tales" in said.out
    assert said.out.splitlines()[-1].startswith(f"{world / 'run'}: done. Next: stablelm report ")
    odd = tmp_path / "it's \"ä\\ run: #1"
    options = ("--out", odd, "--set", "steps=2", "--set", "optimizer.lr=1e-3", "--set", "logging={every: 1}")
    said = run("train", world / "run.yml", *options)
    assert said.code == 0, said.err
    assert "step 2/2" in said.out
    assert json.loads((odd / "run.json").read_text())["optimizer"]["lr"] == 1e-3
    again = run("train", world / "run.yml", *options, "--resume")
    assert again.code == 0
    assert "all 2 steps are done already" in again.out


def test_report(world, run, tmp_path):
    said = run("report", world / "run", "--out", tmp_path / "new" / "page.html")
    assert (said.code, said.out, said.err) == (0, f"{tmp_path / 'new' / 'page.html'}\n", "")
    page = (tmp_path / "new" / "page.html").read_text()
    assert page.count("<svg") >= 4
    assert "my_notes" in page


LONG = {"fp32": "float32", "bf16": "bfloat16"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("source", ["run", "run/checkpoints/step-000006", "model"])
def test_export(world, run, tmp_path, source, dtype):
    said = run("export", world / source, tmp_path / "m", "--dtype", dtype)
    assert (said.code, said.out) == (0, f"{tmp_path / 'm'}: 45,376 parameters, {LONG[dtype]}\n")
    assert "states no licence" in said.err and (tmp_path / "m" / "README.md").is_file()
    model, tokenizer = stablelm.load(tmp_path / "m")
    trained, _ = stablelm.load(world / "run")
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    for name, weight in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.to(kept)), name
    assert tokenizer.sha256 == Tokenizer.from_file(world / "tok").sha256


def test_a_model_without_a_tokenizer_is_exported_with_a_warning(run, tmp_path):
    said = run("init", tmp_path / "m", "--preset", "stablelm-1m", "--set", "num_hidden_layers=1")
    assert (said.code, said.err) == (0, "")
    said = run("export", tmp_path / "m", tmp_path / "n")
    assert said.code == 0
    assert "warning" in said.err and "no tokenizer.json" in said.err
    assert "warning" not in said.out


def test_init_is_fixed_by_preset_seed_and_changes(world, run, tmp_path):
    options = ("--preset", "stablelm-1m", "--set", "num_hidden_layers=1", "--set", "vocab_size=384")
    for name, more in {
        "a": (), "b": ("--seed", 1234), "c": ("--seed", 7),
        "d": ("--dtype", "bf16", "--tokenizer", world / "tok"),
    }.items():  # fmt: skip
        said = run("init", tmp_path / name, *options, *more)
        assert said.code == 0, said.err
    a, b, c, d = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abcd")
    assert a == b and a != c and len(d) < len(a)
    assert stablelm.load(tmp_path / "d")[1].size == 340
    assert stablelm.AutoModelForCausalLM.from_pretrained(tmp_path / "d").dtype == torch.bfloat16
    assert json.loads((tmp_path / "a" / "config.json").read_text())["num_hidden_layers"] == 1


def test_generate_writes_the_text_and_nothing_else(world, run):
    greedy = dict(max_new_tokens=20, temperature=0)
    expected = stablelm.generate(*stablelm.load(world / "model"), "the river", **greedy)
    line = ("--max-new-tokens", 20, "--temperature", 0)
    for path in ("model", "run", "run/checkpoints/step-000006"):
        said = run("generate", world / path, "the river", *line)
        assert (said.code, said.out) == (0, expected + "\n")
        assert re.fullmatch(
            r"20 tokens in [\d.]+ s \([\d.]+ tokens/s\), ended by the limit, greedy\n", said.err
        )
    assert run("generate", world / "model", "the river", *line, "--echo").out == f"the river{expected}\n"
    assert run("generate", world / "model", "the river", *line, "--quiet").err == ""


def test_statistics_count_what_was_drawn(world, run):
    """Bytes that make no character yet, stop texts and the end token are tokens as well."""
    drawn: list[int] = []
    model, tokenizer = stablelm.load(world / "model")
    from stablelm.inference import stream

    text = "".join(stream(model, tokenizer, "é", max_new_tokens=100, seed=3, on_token=drawn.append))
    said = run("generate", world / "model", "é", "--max-new-tokens", 100, "--seed", 3, "--temperature", 1,
               "--top-p", 1)  # fmt: skip
    assert said.out == text + "\n"
    assert said.err.startswith(f"{len(drawn)} tokens in ")
    assert len(tokenizer.encode(text)) != len(drawn), "the text alone does not tell how many were drawn"
    stop = text[10:13]
    said = run("generate", world / "model", "é", "--max-new-tokens", 100, "--seed", 3, "--temperature", 1,
               "--top-p", 1, "--stop", stop, "--stop", "\0never")  # fmt: skip
    assert said.out == text[: text.index(stop)] + "\n"
    assert "ended by stop text" in said.err


def test_a_seed_that_was_told_repeats_the_text(world, run):
    line = (
        "generate",
        world / "model",
        "my neighbour",
        "--max-new-tokens",
        30,
        "--temperature",
        2,
        "--top-p",
        1,
    )
    first, second = run(*line), run(*line)
    assert first.out != second.out
    seed = re.search(r"seed (\d+)$", first.err.strip())[1]
    assert run(*line, "--seed", seed).out == first.out
    huge = run(*line, "--seed", 10**40)
    assert (huge.code, huge.out) == (0, run(*line, "--seed", 10**40).out)


def test_prompts_from_everywhere(world, run):
    line = ("--max-new-tokens", 6, "--temperature", 0, "--quiet", "--echo")
    model = world / "model"
    plain = run("generate", model, "her letter 😀", *line).out
    assert plain.startswith("her letter 😀")
    text = "her letter 😀".encode()
    for given in (text, text + b"\n", text + b"\r\n"):
        assert run("generate", model, "-", *line, stdin=given).out == plain
    assert run("generate", model, "-", *line, stdin=text + b"\n\n").out.startswith("her letter 😀\n")
    empty = run("generate", model, "", *line)
    assert empty.code == 0
    assert empty.out == run("generate", model, "-", *line).out
    for dashed in ("-x", "--debug", "--version", "-"):
        said = run("generate", model, *line, "--", dashed, stdin=b"-")
        assert said.code == 0, said.err
        assert said.out.startswith(dashed)


def test_demo_passes_its_options_on_and_tells_how_to_go_on(run, monkeypatch, tmp_path):
    import stablelm.demo as room

    asked = []
    monkeypatch.setattr(room, "run_demo", lambda out, **options: asked.append((out, options)))
    assert run("demo").code == 0
    assert run("demo", "--minutes", "0.5", "--out", tmp_path / "d", "--resume").code == 0
    assert run("demo", "--steps", "12").code == 0
    assert asked == [
        (Path("runs/demo"), {"minutes": None, "steps": None, "resume": False}),
        (tmp_path / "d", {"minutes": 0.5, "steps": None, "resume": True}),
        (Path("runs/demo"), {"minutes": None, "steps": 12, "resume": False}),
    ]

    def interrupted(out, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "run_demo", interrupted)
    said = run("demo", "--out", tmp_path / "d")
    assert said.code == 130
    assert said.err == f"Continue with: stablelm demo --out {tmp_path / 'd'} --resume\nstopped\n"


@pytest.mark.parametrize("path", ["model", "run", "run/checkpoints/step-000006", "data", "data/tales/train",
                                  "data/tales/train.bin", "tok", "data/tokenizer.json",
                                  "model/model.safetensors"])  # fmt: skip
def test_inspect_says_the_same_to_readers_and_machines(world, run, path):
    text = run("inspect", world / path, "--verify")
    facts = run("inspect", world / path, "--verify", "--json")
    assert (text.code, facts.code, text.err, facts.err) == (0, 0, "", "")
    found = json.loads(facts.out)
    assert found["path"] == str(world / path)
    first, second, *_ = text.out.splitlines()
    assert first.split(None, 1) == ["kind", found["kind"]]
    assert second.split() == ["path", str(world / path)]
    numbers = [value for value in _leaves(found) if isinstance(value, int)]
    for number in numbers:
        assert f"{number:,}" in text.out
    starts = {
        re.match(r" *\S+(?: \S+)*  +", line).end() for line in text.out.splitlines() if "  " in line.strip()
    }
    assert len(starts) == 1, "values are aligned"


def _leaves(value):
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, list) else [value]


def test_recipes_and_runs_may_lie_anywhere(world, run, inside):
    """Relative paths start where the command runs."""
    values = yaml.safe_load((world / "recipe.yml").read_text())
    values |= {"out": "made/here", "sources": [{"name": "t", "paths": ["text"]}]}
    (inside / "text").symlink_to(world / "tales")
    (inside / "deep").mkdir()
    (inside / "deep" / "recipe.yml").write_text(yaml.safe_dump(values))
    said = run("data", "prepare", "deep/recipe.yml")
    assert said.code == 0, said.err
    assert json.loads(run("inspect", "made/here", "--json").out)["sources"]["t"]["read"] == 30
