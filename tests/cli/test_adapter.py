"""`stablelm adapter …`, and generating with adapters, as they are typed."""

import json

import pytest
import torch

import stablelm
from stablelm.config.adapter import AdapterConfig
from stablelm.interchange import open_path
from stablelm.interchange.peft import save_adapter
from stablelm.model.adapters import attach, parts_of

WRITE = ("--max-new-tokens", 8, "--temperature", 0, "--seed", 3, "--quiet")


@pytest.fixture(scope="module")
def adapters(world, tmp_path_factory):
    """Two adapters on the world's model, in PEFT's format as another program leaves it."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("formal", "rude")):
        model, _ = open_path(world / "model")
        attach(model, AdapterConfig(rank=2, alpha=4), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for part in parts_of(model, "default").values():
            part.lora_B.data.normal_(0, 0.3, generator=generator)
        save_adapter(model, root / name, base=str(world / "model"))
    return root


def test_a_text_with_an_adapter_is_that_of_the_merged_model(world, run, adapters, tmp_path):
    said = run("adapter", "merge", adapters / "rude", tmp_path / "merged", "--dtype", "fp32")
    assert said.code == 0 and said.err == "" and "merged in" in said.out
    texts = [
        run("generate", world / "model", "the river", *WRITE, "--adapter", adapters / "rude").out,
        run("generate", tmp_path / "merged", "the river", *WRITE).out,
        run("generate", world / "model", "the river", *WRITE).out,
    ]
    assert texts[0] == texts[1] != texts[2]
    document = tmp_path / "note.txt"
    document.write_text("the river runs past a small town.")
    values = [
        json.loads(run("perplexity", *line, document, "--json").out)["all"]["loss"]
        for line in (
            [world / "model", "--adapter", adapters / "rude"], [tmp_path / "merged"], [world / "model"]
        )
    ]  # fmt: skip
    assert values[0] == pytest.approx(values[1], abs=1e-4) and abs(values[0] - values[2]) > 1e-3
    chat = run("chat", world / "model", "--adapter", adapters / "rude", "--temperature", 0,
               "--max-new-tokens", 8, stdin=b"the river\n")  # fmt: skip
    assert chat.code == 0 and chat.out.strip() == texts[0].strip()


def test_each_line_chooses_its_adapter(world, run, adapters, tmp_path):
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    chosen = ["formal", "formal", None, "rude", "formal"]
    lines = [{"prompt": f"{n} the river", "adapter": name} for n, name in enumerate(chosen)]
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    both = ("--adapter", adapters / "formal", "--adapter", f"rude={adapters / 'rude'}")
    hot = ("--max-new-tokens", 8, "--temperature", 1.5, "--top-p", 1, "--seed", 3)
    said = run("generate", world / "model", "--file", asked, "--out", out, *both, *hot, "--batch", 4)
    assert said.code == 0, said.err
    model, tokenizer = stablelm.load(world / "model", adapters=[adapters / "formal", adapters / "rude"])
    for number, (name, line) in enumerate(zip(chosen, out.read_text().splitlines(), strict=True)):
        model.use_adapter(name)
        wanted = stablelm.generate(
            model, tokenizer, lines[number]["prompt"], max_new_tokens=8, temperature=1.5, seed=3 + number
        )
        assert json.loads(line)["text"] == wanted


def test_extract_and_list(world, run, adapters, tmp_path):
    run("adapter", "merge", adapters / "formal", tmp_path / "tuned")
    said = run("adapter", "extract", tmp_path / "tuned", world / "model", tmp_path / "found", "--rank", 2)
    assert said.code == 0 and "rank 2 keeps 100.00%" in said.out
    said = run("adapter", "list", tmp_path)
    assert said.code == 0 and "found  lora  rank 2" in said.out and str(world / "model") in said.out
    assert run("adapter", "list", world / "tales").out.endswith("no adapter\n")


def test_mistakes(world, run, adapters, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "a"}\n{"prompt": "b", "adapter": "polite"}\n')
    many = ("--file", asked, "--out", tmp_path / "out.jsonl")
    both = ("--adapter", adapters / "formal", "--adapter", adapters / "rude")
    for line, words in (
        (["generate", world / "model", "x", *both], "one prompt takes one --adapter"),
        (["generate", world / "model", "x", "--adapter", tmp_path], "no adapter: adapter_config.json is not"),
        (["generate", world / "model", *many, *both], 'line 1: several adapters are given; choose one with'),
        (["generate", world / "model", *many, *both[:2]], "line 2: the adapter 'polite' is not given"),
        (["generate", world / "model", *many], "there are none: give them with --adapter"),
        (["adapter", "merge", world / "model", tmp_path / "m"], "no adapter"),
        (["adapter", "list", tmp_path / "nowhere"], "no such directory"),
        (["finetune", world / "model", asked, "--out", tmp_path / "r", "--quantize", 4], "adapter.rank"),
        (["finetune", world / "model", asked, "--out", "r", "--lora", 2, "--quantize", 5], "quantize"),
    ):  # fmt: skip
        said = run(*line)
        assert said.code == 2 and words in said.err and "Traceback" not in said.err, said.err
    assert {path.name for path in tmp_path.iterdir()} == {"asked.jsonl"}


def test_an_evaluation_with_adapters_is_that_of_the_merged_model(world, run, adapters, shared, tmp_path):
    run("adapter", "merge", adapters / "rude", tmp_path / "merged", "--dtype", "fp32")
    rest = ("--tasks", "piqa", "--data", shared / "data" / "eval", "--limit", 4, "--dtype", "fp32")
    both = ("--adapter", adapters / "rude", "--adapter", f"polite={adapters / 'formal'}", "--compare")
    said = run("evaluate", world / "model", *rest, *both, "--out", tmp_path / "e")
    assert said.code == 0, said.err
    assert "rude minus model" in said.out and "polite minus model" in said.out
    assert run("evaluate", tmp_path / "merged", *rest, "--out", tmp_path / "m").code == 0

    def scores(folder):
        lines = (folder / "samples" / "piqa.jsonl").read_text().splitlines()
        return torch.tensor([[float(r[0][0]) for r in json.loads(line)["resps"]] for line in lines])

    merged, rude, plain = (scores(tmp_path / where) for where in ("m", "e/rude", "e/model"))
    torch.testing.assert_close(rude, merged, rtol=1e-4, atol=1e-4)
    assert (plain - merged).abs().max() > 0.1
    against = json.loads((tmp_path / "e" / "rude" / "results.json").read_text())["stablelm"]["against"]
    assert against["model"] == "model"


def test_an_evaluation_with_an_adapter_in_the_wrong_place(world, run, adapters, tmp_path):
    words = ("--adapter", adapters / "rude")
    said = run("evaluate", world / "model", world / "model", *words)
    assert said.code == 2 and "--adapter goes with one MODEL, and 2 are given" in said.err
    said = run("evaluate", world / "model", "--adapter", tmp_path)
    assert said.code == 2 and "no adapter" in said.err and "Traceback" not in said.err
