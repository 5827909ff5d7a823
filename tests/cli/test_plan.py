"""`stablelm plan` as it is typed."""

import json

import pytest
import yaml

ORIGINAL = {"data": {"path": "nowhere", "epochs": {"web": 1}}, "steps": 955_000}


@pytest.fixture
def original(inside):
    """The original run in our spelling; no data beside it."""
    (inside / "run.yml").write_text(yaml.safe_dump(ORIGINAL))
    return inside


def test_plan(run, original):
    said = run("plan", "run.yml", "--gpus", 256, "--gpu", "a100-40gb", "--tokens-per-second", 6028,
               "--price-per-gpu-hour", 1.5)  # fmt: skip
    assert said.code == 0 and said.err == ""
    for words in (
        "2,795,443,200 parameters",
        "955,000 steps",
        "30.0 days",
        "ZeRO",
        "276,872 at the price given",
    ):
        assert words in said.out
    assert {path.name for path in original.iterdir()} == {"run.yml"}  # nothing is written


def test_plan_as_json(run, original):
    said = run("plan", "run.yml", "--gpus", 8, "--gpu", "H100", "--mfu", 0.4, "--json")
    about = json.loads(said.out)
    assert about["device"]["name"] == "h100" and about["gpus"] == 8 and about["config"] == "run.yml"
    assert about["utilization"]["mfu"] == pytest.approx(0.4)


def test_plan_looks_at_prepared_data(run, world):
    about = json.loads(run("plan", world / "run.yml", "--gpus", 2, "--gpu", "cpu", "--json").out)
    assert about["steps"] == json.loads((world / "run" / "plan.json").read_text())["steps"]
    assert about["device"]["name"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--gpus 256 --gpu a1000", "known are a100-40gb, a100-80gb, h100, h200, b200, mi300x and cpu"),
        ("--gpus 3 --gpu h100", "batch.sequences 1,024 cannot be shared out evenly over 3 data-parallel"),
        ("--gpus 0 --gpu h100", "--gpus"),
        ("--gpus 8 --gpu h100 --mfu 40", "as 0.4 for 40 %"),
        ("--gpus 8", "--gpu"),
        ("--gpus 8 --gpu h100 --set bacth.sequences=4", "did you mean"),
    ],
)
def test_mistakes(run, original, arguments, message):
    said = run("plan", "run.yml", *arguments.split())
    assert said.code == 2 and said.out == "" and message in said.err and "Traceback" not in said.err


@pytest.mark.parametrize("name", ["stablelm-3b-4e1t.yml", "stablelm-3b.yml"])
def test_the_original_in_either_spelling(run, root, name):
    said = run(
        "plan", root / "configs" / name, "--gpus", 256, "--gpu", "a100-40gb", "--tokens-per-second", 6028
    )
    assert said.code == 0, said.err
    assert "955,000 steps × 4,194,304 tokens" in said.out and "30.0 days" in said.out


def test_the_published_file_names_no_world_and_takes_the_planned(run, shared):
    path = shared / "seed" / "configs" / "stablelm-3b-4e1t.yml"
    for gpus, sequences in ((256, 1024), (64, 256)):
        about = json.loads(run("plan", path, "--gpus", gpus, "--gpu", "a100-40gb", "--json").out)
        assert about["step_tokens"] == sequences * 4096
    kept = run(
        "plan", path, "--gpus", 64, "--gpu", "a100-40gb", "--set", "batch.reference_world=256", "--json"
    )
    about = json.loads(kept.out)
    assert about["step_tokens"] == 1024 * 4096 and about["asked"]["layout"]["micro_batches"] == 4


def test_a_dry_run_goes_with_the_plan(run, original):
    small = ("--set", "model={preset: stablelm-1m}", "--set", "batch={sequences: 8, sequence_length: 128}")
    said = run("plan", "run.yml", "--gpus", 2, "--gpu", "a100-40gb", "--dry-run", *small)
    assert said.code == 0, said.err
    assert "Dry run of rank 0 of 2" in said.out and "as planned" in said.out
    said = run("plan", "run.yml", "--gpus", 256, "--gpu", "a100-40gb", "--dry-run", "--json")
    about = json.loads(said.out)["dry_run"]
    assert about["faults"] == [] and about["weights"] == [43_689_040, 43_689_040]


def test_plan_of_fine_tuning(run, inside):
    said = run("plan", "--finetune")
    assert said.code == 0 and "stablelm-3b-4e1t, 2,795,443,200 parameters" in said.out
    for words in (
        "8 GB",
        "40 GB",
        "full, bf16-pure",
        "LoRA 16",
        "QLoRA 16, 4 bits",
        "activations",
        "27 rows",
    ):
        assert words in said.out
    about = json.loads(run("plan", "stablelm-1m", "--finetune", "--rank", 4, "--memory", 2, "--json").out)
    assert about["sequence_length"] == 256 and about["sizes_gb"] == [2]
    assert [m["method"]["rank"] for m in about["methods"]] == [None, None, 4, 4, 4]
    values = {"model": "stablelm-1m", "data": {"paths": ["x.jsonl"]}, "batch": {"sequence_length": 64}}
    (inside / "tune.yml").write_text(yaml.safe_dump(values))
    about = json.loads(run("plan", "tune.yml", "--finetune", "--set", "recompute=none", "--json").out)
    assert (about["sequence_length"], about["recompute"]) == (64, "none")


def test_mistakes_about_fine_tuning(run, inside):
    for arguments, words in (
        (["nothing", "--finetune"], "neither a model nor a preset"),
        (["--finetune", "--gpus", "8"], "--gpus does not go with --finetune"),
        (["run.yml", "--rank", "8"], "--rank goes with --finetune"),
        (["--finetune", "--set", "a=1"], "--set changes a YAML run"),
        ([], "stablelm plan --finetune"),
    ):
        said = run("plan", *arguments)
        assert said.code == 2 and said.out == "" and words in said.err and "Traceback" not in said.err
