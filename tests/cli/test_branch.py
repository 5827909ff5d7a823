"""`stablelm train --set branch.checkpoint=…`: a run cooled down in another directory, from the shell."""

import pytest

from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import read_json
from stablelm.training.metrics import read_metrics


@pytest.fixture
def branch(run, world, tmp_path):
    """`branch(checkpoint, steps, …)` → what the command did, in tmp_path/cooled."""

    def command(checkpoint, steps, *more):
        point = ("--set", f"branch.checkpoint={checkpoint}", "--set", f"branch.cooldown_steps={steps}")
        return run("train", world / "run.yml", *point, "--out", tmp_path / "cooled", *more)

    return command


def test_a_branch_from_the_shell(run, branch, world, tmp_path):
    first, out = finished_checkpoints(world / "run")[0], tmp_path / "cooled"
    assert first.name == "step-000004"
    said = branch(first, 2, "--set", "schedule.cooldown_floor=0.1")
    assert said.code == 0, said.err
    assert f"branched off {first} after step 4" in "".join((said.out + said.err).replace("\n", " "))
    rates = [r["lr"] for r in read_metrics(out) if "kind" not in r]
    before = [r["lr"] for r in read_metrics(world / "run") if "kind" not in r]
    assert rates == pytest.approx([before[4], (before[4] + 0.1 * 5e-3) / 2])
    assert [path.name for path in finished_checkpoints(out)] == ["step-000006"]
    assert "already holds a run" in branch(first, 2).err
    again = branch(first, 2, "--set", "schedule.cooldown_floor=0.1", "--resume")
    assert again.code == 0 and "all 6 steps are done already" in again.out + again.err
    for command in (("report", out), ("checkpoint", "verify", out), ("inspect", out)):
        assert run(*command).code == 0
    assert run("export", out, tmp_path / "model").code == 0
    assert read_json(out / "run.json")["branch"] == {"checkpoint": str(first), "cooldown_steps": 2}


def test_what_is_no_place_to_branch_off(run, branch, world, tmp_path):
    older, newest = finished_checkpoints(world / "run")
    assert run("checkpoint", "average", tmp_path / "mean", older, newest).code == 0
    for path, message in (
        (world / "model", "is no finished checkpoint of a run"),
        (world / "run", "That run has step-000004, step-000006"),
        (tmp_path / "mean", "has weights alone, no optimizer's moments"),
        (newest, "only 0 steps of data are left after step 6"),
    ):
        said = branch(path, 1)
        assert said.code == 2 and message in " ".join(said.err.split()), said.err
        assert "Traceback" not in said.err
        assert not finished_checkpoints(tmp_path / "cooled")
    said = run("train", world / "run.yml", "--set", f"branch.checkpoint={older}")
    assert said.code == 2 and "branch.cooldown_steps" in said.err
    assert branch(older, 0).code == 2
    assert "branch.cooldown: unknown key" in branch(older, 1, "--set", "branch.cooldown=3").err


def test_the_plan_of_a_branch_is_of_its_cooldown(run, world):
    point = ("--set", "branch.checkpoint=elsewhere", "--set", "branch.cooldown_steps=1234")
    said = run("plan", world / "run.yml", "--gpus", 4, "--gpu", "h100", *point)
    assert said.code == 0 and "1,234" in said.out, said.err
