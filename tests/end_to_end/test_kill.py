"""`kill -9` of the real command at moments nobody chose: the resumed run equals the other bit for bit."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from stablelm.config.recipe import DataRecipe
from stablelm.data.preparation import prepare
from stablelm.interchange import open_path
from stablelm.tokenizer.training import train_tokenizer
from stablelm.training.goodput import read_goodput
from stablelm.training.metrics import read_metrics

STEPS = 200  # enough that a stalled test still finds the run alive


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("kill")
    words = random.Random(1)
    lines = [
        " ".join(
            words.choice(["stone", "river", "light", "over", "under", "small", "the", "a", "runs", "sleeps"])
            for _ in range(400)
        )
    ]
    lines += [line[::-1] for line in lines]
    (root / "text").mkdir()
    for number in range(12):
        words.shuffle(lines)
        (root / "text" / f"{number}.txt").write_text("\n".join(lines) + str(number) * number)
    train_tokenizer([p.read_text() for p in sorted((root / "text").iterdir())], 300, root / "tokenizer")
    source = {"name": "text", "paths": [str(root / "text")]}
    prepare(
        DataRecipe(out=str(root / "data"), tokenizer=str(root / "tokenizer"), sources=[source], held_out=0.25)
    )
    values = {
        "out": str(root / "whole"),
        "model": {"preset": "stablelm-1m", "vocab_size": 384, "hidden_size": 64},
        "data": {"path": str(root / "data"), "epochs": {"text": 40}},
        "batch": {"sequences": 4, "micro_sequences": 2, "sequence_length": 64},
        "optimizer": {"lr": 1e-3},
        "steps": STEPS,
        "precision": "bf16",
        "checkpoint": {"every": 4, "keep": 2},
        "evaluation": {"every": 50, "windows": 2},
        "device": "cpu",
    }
    path = root / "run.yml"
    path.write_text(yaml.safe_dump(values))
    subprocess.run(command(path), check=True, capture_output=True)
    return path


def command(path, *more):
    return [sys.executable, "-m", "stablelm", "train", str(path), *more]


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again(config, tmp_path, seed):
    moment, out = random.Random(seed), tmp_path / "killed"
    for _ in range(3):
        line = command(config, "--out", str(out), "--resume")
        assert killed_after(moment.randint(3, 40), moment.random() * 0.05, line, out)
    last = subprocess.run(command(config, "--out", str(out), "--resume"), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr + last.stdout
    whole = config.parent / "whole"
    keys = ("step", "kind", "loss", "grad_norm", "lr", "bits_per_byte")
    expected, found = ([[r.get(k) for k in keys] for r in read_metrics(run)] for run in (whole, out))
    different = [(e, f) for e, f in zip(expected, found, strict=False) if e != f]
    assert not different, f"first difference {different[0]}; the last resume said {last.stdout[:500]}"
    assert len(found) == len(expected)
    assert len([r for r in found if r[1] is None]) == STEPS
    for run in (whole, out):
        assert (
            json.loads((run / "checkpoints" / f"step-{STEPS:06d}" / "state.json").read_text())["step"]
            == STEPS
        )
    a, b = (open_path(run)[0].state_dict() for run in (whole, out))
    assert all((a[name] == b[name]).all() for name in a)
    assert not list((out / "checkpoints").glob("*.tmp-*"))
    account = read_goodput(out)
    assert account.starts == 4 and account.seconds["down"] > 0
    assert sum(account.seconds.values()) == pytest.approx(account.wall, rel=0.01)


def test_a_branch_killed_again_and_again(config, tmp_path):
    """Before its first save and after; its parent is not touched."""
    parent = config.parent / "whole" / "checkpoints" / f"step-{STEPS - 4:06d}"
    before = {path: path.stat().st_mtime_ns for path in parent.rglob("*")}
    values = yaml.safe_load(config.read_text())
    values["branch"] = {"checkpoint": str(parent), "cooldown_steps": 60}
    branch, out, whole = tmp_path / "branch.yml", tmp_path / "killed", tmp_path / "whole"
    branch.write_text(yaml.safe_dump(values))
    for steps, delay in ((2, 0.0), (7, 0.03)):
        assert killed_after(steps, delay, command(branch, "--out", str(out), "--resume"), out)
    for place in (out, whole):
        subprocess.run(command(branch, "--out", str(place), "--resume"), check=True, capture_output=True)
    found, expected = (
        [(r["step"], r.get("loss"), r.get("lr"), r.get("grad_norm")) for r in read_metrics(run)]
        for run in (out, whole)
    )
    assert found == expected
    assert [r[0] for r in found if r[2] is not None] == list(range(STEPS - 3, STEPS + 57))
    a, b = (open_path(run)[0].state_dict() for run in (whole, out))
    assert all((a[name] == b[name]).all() for name in a)
    assert {path: path.stat().st_mtime_ns for path in parent.rglob("*")} == before


def killed_after(steps, delay, line, out):
    """Starts or resumes the run by a command line, and kills it `steps` more lines of metrics later, perhaps
    inside a save."""
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = out / "metrics.jsonl"
    first = None
    while process.poll() is None:
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        first = (
            lines if first is None or lines < first else first
        )  # resuming drops lines after the checkpoint
        if lines >= first + steps:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            return process.wait(timeout=60) == -signal.SIGKILL
        time.sleep(0.005)
    raise AssertionError(f"the run ended by itself: {process.stdout.read()}")
