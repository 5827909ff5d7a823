"""`kill -9` of the real command while it tunes: the resumed run equals the other bit for bit, its best
checkpoint and its samples too."""

import json
import random
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from stablelm.interchange import open_path
from stablelm.interchange.native import result_of
from stablelm.training.metrics import read_metrics
from tests.end_to_end.test_kill import killed_after
from tests.finetuning.conftest import base  # noqa: F401 (a fixture)

STEPS = 160
EVERY_KIND = [
    pytest.param([], id="full"),
    pytest.param(["--set", "neftune=5"], id="neftune"),
    pytest.param(["--lora", "4", "--set", "adapter.dropout=0.2"], id="lora-dropout"),
    pytest.param(["--preference", "dpo"], id="dpo"),
    pytest.param(["--preference", "ipo", "--lora", "4"], id="ipo-lora"),
]
"""Flags of the runs that are killed."""


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A function: the file of examples that a run with these flags reads."""
    root = tmp_path_factory.mktemp("examples")
    draw = random.Random(1)
    answered, preferred = [], []
    for number in range(60):
        one, other = draw.sample([" blue", " green and white", " black."], 2)
        answered.append({"prompt": f"Number {number}:", "completion": one})
        preferred.append({"prompt": f"Number {number}:", "chosen": one, "rejected": other})
    for name, lines in (("answers", answered), ("pairs", preferred)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lambda flags: root / ("pairs.jsonl" if "--preference" in flags else "answers.jsonl")


def command(base, examples, out, flags):  # noqa: F811
    settings = {
        "steps": STEPS, "epochs": 12, "batch.sequences": 2, "optimizer.lr": 2e-3, "data.packing": "false",
        "data.held_out_share": 0.2, "checkpoint.every": 7, "checkpoint.keep": 1, "evaluation.every": 11,
        "evaluation.best": "loss", "evaluation.sample_tokens": 4, "device": "cpu",
    }  # fmt: skip
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    data = examples(flags)
    line = [sys.executable, "-m", "stablelm", "finetune", str(base), str(data), "--out", str(out)]
    return [*line, "--sequence-length", "32", *given, *flags, "--resume"]


@pytest.mark.parametrize("flags", EVERY_KIND)
def test_killed_again_and_again(base, examples, tmp_path, flags):  # noqa: F811
    moment, runs = random.Random(str(flags)), (tmp_path / "whole", tmp_path / "killed")
    subprocess.run(command(base, examples, runs[0], flags), check=True, capture_output=True)
    for _ in range(3):
        line = command(base, examples, runs[1], flags)
        assert killed_after(moment.randint(3, 40), moment.random() * 0.05, line, runs[1])
    subprocess.run(command(base, examples, runs[1], flags), check=True, capture_output=True)
    clock = ("seconds", "tokens_per_second", "mfu", "hfu", "memory")
    expected, found = (
        [{key: value for key, value in record.items() if key not in clock} for record in read_metrics(run)]
        for run in runs
    )
    different = [pair for pair in zip(expected, found, strict=False) if pair[0] != pair[1]]
    assert not different and len(expected) == len(found), different[:1]
    assert sum("kind" not in record for record in found) == STEPS
    assert result_of(runs[0]).name == result_of(runs[1]).name
    newest = [run / "checkpoints" / f"step-{STEPS:06d}" for run in runs]
    for paths in (runs, newest):
        a, b = (open_path(path)[0].state_dict() for path in paths)
        assert all((a[name] == b[name]).all() for name in a)
    assert not list((runs[1] / "checkpoints").glob("*.tmp-*"))
    # What continues a run is equal, too: moments and numbers.
    states = [json.loads((path / "state.json").read_text()) for path in newest]
    for state, run in zip(states, runs, strict=True):
        assert state["config"].pop("out") == str(run)
    assert states[0] == states[1]
    moments = [
        dict(pair for file in (path / "optimizer").glob("*.safetensors") for pair in load_file(file).items())
        for path in newest
    ]
    assert moments[0].keys() == moments[1].keys() and len(moments[0]) > 20
    assert all((moments[0][name] == moments[1][name]).all() for name in moments[0])
