"""Every command of docs/preference.md, as it stands there, on a tiny model; and what the loop leaves."""

import json
import re
import shlex
import shutil

from stablelm.finetuning.tuner import prepare
from tests.cli.conftest import command
from tests.finetuning.conftest import write_lines
from tests.finetuning.test_preference import pairs

# What keeps a run on a tiny model short.
QUICK = {
    "finetune": shlex.split(
        "--set device=cpu --set precision=fp32 --set batch.sequences=2 --sequence-length 128"
    ),
    "evaluate": shlex.split("--limit 4 --device cpu"),
}


def commands(root):
    blocks = re.findall(r"```bash\n(.*?)```", (root / "docs" / "preference.md").read_text("utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) >= 7 and all(line.startswith("stablelm ") for line in lines)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_page_runs_and_the_card_has_before_and_after(root, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "runs/tuned")
    shutil.copytree(root / "examples", "examples")
    write_lines(tmp_path / "pairs.jsonl", pairs())
    texts = None
    for line in commands(root):
        done = command(*line, *QUICK.get(line[0], ()))
        assert done.code == 0, (line, done.err)
        if "--compare" in line:
            assert "safer minus tuned" in done.out and "unclear" in done.out
            assert texts == (tmp_path / "safety" / "tuned" / "texts.jsonl").read_bytes(), "not written again"
        elif line[0] == "evaluate":
            texts = (tmp_path / "safety" / "tuned" / "texts.jsonl").read_bytes()
    # Both numbers and the paired difference of each, on the card; of the weights that it is of.
    card = (tmp_path / "models" / "safer" / "README.md").read_text("utf-8")
    assert "| Task | Metric | Before: tuned | After | Difference, 95 % interval |" in card
    known = json.loads((tmp_path / "safety" / "safer" / "results.json").read_text())["stablelm"]["against"]
    assert {part["metric"] for part in known["differences"]} == {
        "toxic_lexicon", "ever_toxic_lexicon", "stereotype", "leaked",
    }  # fmt: skip
    for part in known["differences"]:
        low, high = part["interval"]
        assert low < part["difference"] < high and part["items"] == 4
        before, after = f"{part['first']:.2f}", f"{part['second']:.2f}"
        change = f"{part['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
        assert f"| {part['task']} | {part['metric']} | {before} | {after} | {change} |" in card
    assert "Differences are paired" in card and "A low number is no proof of safety" in card
    assert "not bit for bit" not in card and "on examples by preferences (dpo, beta 0.1)" in card


def test_the_pairs_of_the_loop_are_read(make, root, tmp_path):
    records = [
        json.loads(line) for line in (root / "examples" / "safety-pairs.jsonl").read_text().splitlines()
    ]
    data = prepare(make(records, preference={"loss": "dpo"}, batch={"sequence_length": 128}))[1]
    assert data.accounts["train"].kept == 24 and not data.duplicates
    prompts = {json.loads(line)["prompt"] for line in (
        root / "stablelm/evaluation/safety/data/prompts.jsonl"
    ).read_text().splitlines()}  # fmt: skip
    assert not prompts & {record["prompt"] for record in records}, "what is measured is not trained on"
