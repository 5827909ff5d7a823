"""Every command of docs/guide-finetuning.md, in its order, on a tiny model and a few texts."""

import json
import random
import subprocess
import sys

import pytest

from stablelm.config import ModelConfig
from stablelm.interchange import open_path, save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer import train_tokenizer
from tests.cli.conftest import SUBJECTS, VERBS, command
from tests.pages import commands


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the page starts from: a demo's corpus and model, and a README.md."""
    draw = random.Random(1)
    texts = {"code": [], "prose": []}
    for number in range(12):
        lines = [f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(SUBJECTS)}." for _ in range(30)]
        texts["prose"].append("\n".join(lines))
        texts["code"].append("\n".join(f"def f{number}_{i}(x): return x + {i * number}" for i in range(40)))
    for kind, found in texts.items():
        folder = tmp_path / "runs" / "demo" / "corpus" / kind
        folder.mkdir(parents=True)
        for number, text in enumerate(found):
            (folder / f"{number}.txt").write_text(text)
    words = train_tokenizer(
        [*texts["code"], *texts["prose"], "\n\nSource: code" * 9], 400, tmp_path / "words"
    )
    config = ModelConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=256,
    )  # fmt: skip
    save_pretrained(StableLM(config, seed=3), words, tmp_path / "runs" / "demo" / "model")
    (tmp_path / "README.md").write_text(texts["prose"][0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_guide(root, place):
    lines = commands(root / "docs" / "guide-finetuning.md")
    assert {words[1] for words in lines if words[0] == "stablelm"} == {
        "finetune", "report", "generate", "perplexity", "quantize", "export", "convert", "inspect",
    }  # fmt: skip
    for words in lines:
        if words[0] == "python":
            done = subprocess.run(
                [sys.executable, root / words[1], *words[2:]], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert "train.jsonl: 200 examples" in done.stdout and "Naive Bayes" in done.stdout
            continue
        assert words[0] == "stablelm"
        said = command(*words[1:])
        assert said.code == 0, (words, said.err)
        if "--preview" in words:
            assert "⟦ code<|endoftext|>⟧" in said.out and not (place / "runs" / "tuned").exists()
    told = [json.loads(line) for line in (place / "runs/tuned/metrics.jsonl").read_text().splitlines()]
    held = [record for record in told if record.get("kind") == "evaluation"]
    assert held[-1]["answers"] == 32 and "answer_accuracy" in held[0]
    assert "Samples" in (place / "runs/tuned/report.html").read_text()
    for name in ("answers", "answers-4bit"):
        assert len((place / f"data/{name}.jsonl").read_text().splitlines()) == 32
    assert "Source naming" in (place / "models/naming/README.md").read_text()
    assert (place / "runs/adapter/adapter/adapter_config.json").is_file()
    weights = [open_path(place / "models" / name)[0].num_parameters() for name in ("naming", "naming.gguf")]
    assert weights[0] == weights[1]


def test_the_example_refuses_what_it_cannot_use(root, place):
    for given, message in (
        (("nowhere", "out"), "nowhere is no folder"),
        (("runs/demo/corpus/code", "out"), "needs two sources"),
        (("runs/demo/corpus", "words"), "words is there already"),
    ):
        line = [sys.executable, root / "examples/source_naming.py", *given]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
        assert not (place / "out").exists()
