"""`stablelm config`: explains all nine files of the family, converts both ways, and says what is wrong."""

import json

import pytest
import yaml

from stablelm.config import load_run_config

ORIGINAL = "stablelm-3b-4e1t.yml"


@pytest.fixture
def nine(shared):
    files = sorted((shared / "seed" / "configs").glob("*.yml"))
    assert len(files) == 9
    return files


def test_explain_gives_every_key_of_the_nine_one_verdict(run, nine):
    for file in nine:
        said = run("config", "explain", file, "--gpus", 256, "--json")
        assert (said.code, said.err) == (0, "")
        about = json.loads(said.out)
        given = [row["key"] for row in about["keys"] if row["given"]]
        assert len(set(given)) == len(given) and set(yaml.safe_load(file.read_text("utf-8"))) <= set(given)
        refused = [row for row in about["keys"] if row["verdict"] == "refused"]
        assert len(about["faults"]) == len(refused) and all(row["why"] for row in about["keys"])
        assert about["format"] == "gpt-neox"
        assert (refused == []) == (file.name == ORIGINAL)


def test_the_table(run, nine, root):
    said = run("config", "explain", root / "configs" / ORIGINAL)
    assert said.code == 0 and "is refused" in said.out
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    assert all(word in lines["min_lr"] for word in ("1.28e-05", "mapped", "schedule.floor = 0.04", "÷ lr"))
    assert "batch.sequences = 1024" in lines["reference_world"]
    assert '[[["flash"], 32]]' in lines["attention-config"]
    assert "ignored" in lines["launcher"] and "used" in lines["norm"]
    alpha = run("config", "explain", next(f for f in nine if f.stem == "stablelm-base-alpha-7b"))
    assert "refused: activation = gelu" in alpha.out and "--set batch.reference_world=N" in alpha.out
    world = run("config", "explain", nine[2], "--set", "batch.reference_world=8", "--json")
    assert json.loads(world.out)["faults"] == []


def test_our_own_keys_are_explained(run, root, tmp_path):
    about = json.loads(run("config", "explain", root / "configs" / "small.yml", "--json").out)
    rows = {row["key"]: row for row in about["keys"]}
    assert about["format"] == "stablelm"
    assert (rows["optimizer.lr"]["verdict"], rows["optimizer.lr"]["value"]) == ("used", 0.001)
    (tmp_path / "run.yml").write_text("data: {path: p, epochs: {web: 1}}\n")
    rows = json.loads(run("config", "explain", tmp_path / "run.yml", "--json").out)["keys"]
    assert {row["key"] for row in rows if row["verdict"] == "used"} == {"data.path", "data.epochs"}
    assert run("config", "explain", tmp_path / "run.yml").code == 0


def test_convert_both_ways(run, root, inside):
    source = root / "configs" / ORIGINAL
    said = run("config", "convert", source, "ours.yml")
    assert (said.code, said.out) == (0, "ours.yml: written\n")
    assert load_run_config(inside / "ours.yml") == load_run_config(source)
    said = run("config", "convert", "ours.yml", "theirs.yml", "--set", "data.skip=[[1, 2]]")
    assert said.code == 0 and "without: " in said.out and "data.skip" in said.out
    assert load_run_config("theirs.yml").data.skip == [(1, 2)]
    again = run("config", "convert", source, "ours.yml")
    assert again.code == 2 and "ours.yml: already exists" in again.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config explain none.yml", "none.yml: no such file"),
        ("config explain list.yml", "list.yml: a mapping of keys"),
        ("config explain {o} --gpus 0", "--gpus"),
        (
            "config explain {o} --set train-iters=5",
            "--set takes our keys, train-iters is GPT-NeoX's: it sets steps",
        ),
        ("config explain typo.yml", "typo.yml: dat: unknown key"),
        ("config convert {o} out.yml", "--set batch.reference_world=N"),
        ("config convert {o}", "Missing argument 'out'"),
        ("train {o}", "--set batch.reference_world=N"),
        ("train {o} --set batch.reference_world=256", "train-data-paths is empty"),
        (
            "train unknown.yml --set batch.reference_world=8",
            "unknown.yml: hiden-size = 64: unknown key; did you",
        ),
    ],
)
def test_mistakes(run, nine, inside, line, message):
    (inside / "list.yml").write_text("- 1\n")
    (inside / "typo.yml").write_text("dat: {path: p}\n")
    original = next(file for file in nine if file.name == ORIGINAL)
    text = original.read_text("utf-8")
    (inside / "unknown.yml").write_text(text.replace('"hidden-size": 2560', '"hiden-size": 64'))
    before = set(inside.iterdir())
    said = run(*line.format(o=original).split())
    assert (said.code, said.out) == (2, "") and message in said.err and "Traceback" not in said.err
    assert set(inside.iterdir()) == before


def test_a_gpt_neox_yaml_trains(run, world, inside):
    """Three steps from token files in GPT-NeoX's order, and the converted run repeats them exactly."""
    values = {
        "num-layers": 2, "hidden-size": 32, "num-attention-heads": 2, "seq-length": 32,
        "max-position-embeddings": 128, "pos-emb": "rotary", "rotary_pct": 0.25, "activation": "swiglu",
        "intermediate_size": 192, "no-weight-tying": True, "use_bias_in_attn_linear": False,
        "use_bias_in_mlp": False, "tokenizer-type": "HFTokenizer", "vocab-file": str(world / "tok"),
        "train-data-paths": [str(world / "data" / name / "train") for name in ("tales", "my_notes")],
        "train-data-weights": [2, 1], "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1,
        "optimizer": {"type": "Adam", "params": {"lr": 5e-3}}, "lr-decay-style": "cosine", "min_lr": 5e-4,
        "train-iters": 3, "precision": "fp32", "save": "run", "checkpoint-factor": 2,
    }  # fmt: skip
    (inside / "neox.yml").write_text(yaml.safe_dump(values))
    world_of_two = ("--set", "batch.reference_world=2", "--set", "device=cpu")
    said = run("train", "neox.yml", *world_of_two)
    assert said.code == 0, said.err
    plan = json.loads((inside / "run" / "plan.json").read_text())
    assert (plan["steps"], plan["micro_batches"], plan["samples"]) == (3, 2, 12)
    assert run("config", "convert", "neox.yml", "ours.yml", *world_of_two).code == 0
    assert run("train", "ours.yml", "--out", "again").code == 0
    losses = [
        [json.loads(line)["loss"] for line in (inside / name / "metrics.jsonl").read_text().splitlines()[:3]]
        for name in ("run", "again")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3
