"""The worked example: a model of the demo learns to name the source of an excerpt, one of five, from
documents that were held out; untuned it cannot, and all of it takes minutes."""

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A short demo: it has to know how text looks, not much more."""
    out = tmp_path_factory.mktemp("demo") / "out"
    subprocess.run(
        [sys.executable, "-m", "stablelm", "demo", "--steps", "250", "--out", str(out)], check=True
    )
    return out / "model"


def named(root, shared, demo, out, *flags):
    """result.json of the example."""
    line = [sys.executable, root / "examples" / "source_naming.py", shared / "data" / "corpus", out]
    subprocess.run([*map(str, line), "--model", str(demo), *flags], check=True)
    return json.loads((out / "result.json").read_text())


def test_five_sources_are_told_apart(root, shared, demo, tmp_path):
    full = named(root, shared, demo, tmp_path / "full")
    assert (full["trained_examples"], full["held_out_examples"]) == (1200, 200)
    assert full["untuned"] <= 0.05 and full["naive_bayes"] > 0.2
    assert full["tuned"] >= 0.8
    assert full["seconds_of_tuning"] <= 300
