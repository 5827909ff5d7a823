"""The worked example: a model of the demo learns to name the source of an excerpt, one of five, from
documents that were held out; untuned it cannot. Minutes, nearly all of them training."""

import json
import subprocess
import sys


def test_five_sources_are_told_apart(root, shared, tmp_path):
    """A short demo is enough: the model has to know how text looks, not much more."""
    subprocess.run(
        [sys.executable, "-m", "stablelm", "demo", "--steps", "250", "--out", tmp_path / "demo"], check=True
    )
    out = tmp_path / "named"
    line = [sys.executable, root / "examples" / "source_naming.py", shared / "data" / "corpus", out]
    done = subprocess.run([*line, "--model", tmp_path / "demo" / "model"], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    result = json.loads((out / "result.json").read_text())
    right = result["right"]
    assert (result["trained"], result["held_out"]) == (2400, 400)
    assert right["untuned"] <= 20
    assert right["full"] >= 320
    assert right["lora"] >= right["full"] - 40  # ten points
    assert 200 < right["naive Bayes"] < 400  # guessing gets 80
    for name, count in right.items():
        assert f"{name:12s} {count:4d}  {count / 4:5.1f} %" in done.stdout
    assert set(result["seconds_of_tuning"]) == {"full", "lora"}
    answers = [json.loads(line)["text"] for line in (out / "lora.jsonl").read_text().splitlines()]
    held = [json.loads(line)["completion"] for line in (out / "held.jsonl").read_text().splitlines()]
    assert right["lora"] == sum(map(str.__eq__, answers, held))
    assert {held.count(name) for name in held} == {80}  # every source alike
