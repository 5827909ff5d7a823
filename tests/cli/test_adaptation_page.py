"""docs/adaptation.md: every command of the page, on a tiny model; the two configurations that it names."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from stablelm.config import load_run_config, preset
from stablelm.storage import read_json
from tests.cli.conftest import sentences

PAGE = "docs/adaptation.md"
SMALL = ["batch.sequences=4", "batch.micro_sequences=4", "precision=fp32", "device=cpu", "recompute=none"]


@pytest.fixture
def at_home(world, inside, root):
    """The names that the page uses, in an empty directory: a small model, its run, its data."""
    shutil.copytree(world / "model", inside / "models" / "base")
    shutil.copytree(world / "run", inside / "runs" / "base")
    shutil.copytree(root / "configs", inside / "configs")
    (inside / "long.jsonl").write_text(json.dumps({"text": sentences(900, 60)}) + "\n")
    lines = [json.dumps({"text": f"def f{i}(x):\n    y = x + {i}\n    return y\n"}) for i in range(20)]
    (inside / "code.jsonl").write_text("\n".join(lines))
    (inside / "before.py").write_text("def f(x):\n")
    (inside / "after.py").write_text("    return y\n")
    (inside / "corpus" / "code").mkdir(parents=True)
    (inside / "corpus" / "prose").mkdir()
    for number in range(12):
        program = f"def f{number}(x):\n    y = x + {number}\n    return y\n" * 20
        (inside / "corpus" / "code" / f"{number}.py").write_text(program)
        (inside / "corpus" / "prose" / f"{number}.txt").write_text(sentences(number, 30))
    return inside


def blocks(root, language):
    return re.findall(rf"```{language}\n(.*?)```", (root / PAGE).read_text("utf-8"), re.S)


def commands(root):
    lines = [line for block in blocks(root, "bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line]


def test_every_command_of_the_page(at_home, world, run, root):
    recipe = next(yaml.safe_load(b) for b in blocks(root, "yaml") if b.startswith("sources"))
    values = {"out": "data/new", "tokenizer": str(world / "tok"), "held_out": 0.2, **recipe}
    Path("recipe.yml").write_text(yaml.safe_dump(values))
    Path("data/new").parent.mkdir()
    to = {"16384": "256", "--dtype": "--dtype"}
    for line in commands(root):
        line = [to.get(word, word) for word in line]
        if line[0] == "train":
            settings = {
                "configs/extend-16k.yml": [
                    "init=models/base", f"data.path={world / 'data'}", "data.epochs={tales: 2}",
                    "adapt.max_position_embeddings=256", "batch.sequence_length=256",
                ],
                "configs/continued.yml": ["batch.sequence_length=32", "data.replay.share=0.2"],
            }[line[1]]  # fmt: skip
            line += [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
        if line[0] == "finetune":
            line += ["--set", "device=cpu", "--set", "precision=fp32", "--epochs", "1"]
        if line[0] == "generate":
            line += ["--max-new-tokens", "4"]
        said = run(*line)
        assert said.code == 0, (line, said.err)
    assert read_json(Path("models/extended/config.json"))["rope_theta"] == 1_000_000
    assert read_json(Path("runs/continued/plan.json"))["sources"].keys() == {
        "code", "replay:tales", "replay:my_notes",
    }  # fmt: skip
    page = Path("runs/continued/report.html").read_text()
    assert "replay:my_notes" in page and "initial weights" in page


def test_the_configurations_are_valid(root):
    original = preset("stablelm-3b-4e1t")
    longer = load_run_config(root / "configs/extend-16k.yml", architecture=lambda init: original)
    code = preset("stable-code-3b")
    assert longer.model == code and longer.batch.sequence_length == code.max_position_embeddings
    assert longer.batch.sequences * longer.batch.sequence_length == 1024 * 4096
    continued = load_run_config(root / "configs/continued.yml", architecture=lambda init: original)
    assert continued.model == original and continued.data.replay is not None
    assert longer.init == "stabilityai/stablelm-3b-4e1t" and continued.init == continued.data.replay.run


def test_model_beside_init_may_be_left_out(at_home, world, run):
    values = yaml.safe_load((world / "run.yml").read_text())
    del values["model"]
    Path("run.yml").write_text(yaml.safe_dump({**values, "out": "runs/again", "init": "models/base"}))
    assert run("train", "run.yml", "--set", "steps=1").code == 0
    assert read_json(Path("runs/again/run.json"))["model"]["hidden_size"] == 32
    said = run("train", "run.yml", "--set", "init=nowhere", "--out", "runs/none")
    assert (said.code, "nowhere: no such directory" in said.err) == (2, True)
    assert run("plan", "run.yml", "--gpus", 1, "--gpu", "a100-40gb").code == 0
