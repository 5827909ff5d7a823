"""A run branches off another into a cooldown, and is that run, continued, with other learning rates."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stablelm.config import InputError
from stablelm.config.recipe import DataRecipe
from stablelm.data.preparation import prepare
from stablelm.interchange import open_path
from stablelm.interchange.native import finished_checkpoints as checkpoints
from stablelm.planning.schedule import Origin, Schedule
from stablelm.storage import MANIFEST, read_json, write_manifest
from stablelm.training import Trainer, train
from stablelm.training.metrics import METRICS, read_metrics
from tests.training.conftest import Recorder

KEPT = ("step", "loss", "lr", "grad_norm", "first_sample", "last_sample", "tokens")


class Crash(Exception):
    pass


def crash():
    raise Crash


def results(run):
    return [{key: r[key] for key in KEPT} for r in read_metrics(run) if "kind" not in r]


def weights(run):
    return open_path(run)[0].state_dict()


def moments(checkpoint):
    files = (checkpoint / "optimizer").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def contents(run):
    files = (path for path in Path(run).rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def at(run, step):
    return str(Path(run) / "checkpoints" / f"step-{step:06d}")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the parent of these tests is, once the first has made it."""
    return tmp_path_factory.mktemp("made") / "parent"


@pytest.fixture
def parent(made, make_config, tmp_path):
    """Ten steps, saved after 3, 6, 9 and 10."""
    if not made.exists():
        train(make_config(str(made), checkpoint={"every": 3, "keep": 9}), console=Recorder())
    return Path(shutil.copytree(made, tmp_path / "parent"))


@pytest.fixture
def branch(make_config, parent):
    """The configuration of a branch off the parent's step 6."""

    def make(out="branch", step=6, cooldown=3, **changes):
        return make_config(
            out, branch={"checkpoint": at(parent, step), "cooldown_steps": cooldown}, **changes
        )

    return make


def test_a_branch_is_its_parent_with_a_cooldown(parent, branch, make_config):
    """The same samples in the same order; the first update still has the parent's rate, the last ends it."""
    before, console = contents(parent), Recorder()
    run = train(branch(), console=console)
    assert contents(parent) == before, "the parent is only read"
    theirs, ours = results(parent), results(run)
    rate = theirs[6]["lr"]
    assert [r["step"] for r in ours] == [7, 8, 9]
    assert [r["lr"] for r in ours] == [rate, rate * (1 - 1 / 3), rate * (1 - 2 / 3)]
    assert ours[0] == theirs[6], "the update after the branch point is the parent's, to the bit"
    assert ours[1]["loss"] == theirs[7]["loss"], "made by the same weights"
    for key in ("first_sample", "last_sample", "tokens"):
        assert [r[key] for r in ours] == [r[key] for r in theirs[6:9]]
    assert ours[2]["loss"] != theirs[8]["loss"]
    plan, state = read_json(run / "plan.json"), read_json(checkpoints(run)[-1] / "state.json")
    assert (plan["steps"], plan["schedule_steps"], plan["cooldown_steps"], plan["samples"]) == (9, 9, 3, 36)
    assert plan["rates"][-2:] == [[6, rate], [9, 0]]
    assert plan["rates"][:2] == read_json(parent / "plan.json")["rates"][:2]
    assert (state["step"], state["samples"], state["steps"]) == (9, 36, 9)
    known = {k: state["branch"][k] for k in ("checkpoint", "step", "samples", "steps")}
    assert known == {"checkpoint": at(parent, 6), "step": 6, "samples": 24, "steps": 10}
    assert state["branch"]["config"] == read_json(Path(at(parent, 6)) / "state.json")["config"]
    assert any(f"branched off {at(parent, 6)} after step 6" in message for message in console.messages)
    from stablelm.training.report import run_page

    run_page(run).write(run / "report.html")
    assert at(parent, 6) in (run / "report.html").read_text()


@pytest.mark.parametrize("step", [7, 8, 9])
@pytest.mark.parametrize("gone", [False, True])
def test_a_crash_at_any_step_changes_nothing(parent, branch, step, gone, tmp_path):
    saves = {"every": 2, "keep": 9}
    whole = train(branch("whole", checkpoint=saves), console=Recorder())
    config = branch(checkpoint=saves)
    with pytest.raises(Crash):
        train(config, console=Recorder({step: crash}))
    if gone and step == 9:  # saved after 8: it stands alone
        shutil.rmtree(parent)
    console = Recorder()
    run = train(config, resume=True, console=console)
    assert console.done == (8 if step == 9 else 6)
    assert results(run) == results(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(whole).values(), strict=True))
    ours, theirs = (moments(checkpoints(r)[-1]) for r in (run, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_branch_of_a_branch(parent, branch, make_config):
    """Cools from the rate that the first one's cooldown had reached."""
    first = train(branch("first", step=3, cooldown=6), console=Recorder())
    second = {"branch": {"checkpoint": at(first, 6), "cooldown_steps": 2}}
    run = train(make_config("second", **second), console=Recorder())
    rate = results(first)[3]["lr"]
    assert rate == pytest.approx(results(parent)[3]["lr"] / 2)
    assert [r["lr"] for r in results(run)] == [rate, rate / 2]
    state = read_json(checkpoints(run)[-1] / "state.json")
    assert state["branch"]["branch"]["checkpoint"] == at(parent, 3)
    plan = read_json(run / "plan.json")
    assert [step for step, _ in plan["rates"]] == [0, 2, 3, 6, 8]


def test_the_parent_s_steps_plan_its_rates_and_do_not_end_the_branch(make_config):
    """`steps` of a branch may be what the parent was planned for; the data decide how long it may be."""
    saves = {"every": 2, "keep": 9}
    parent = train(make_config("parent", steps=8, checkpoint=saves), console=Recorder())
    point = {"checkpoint": at(parent, 6), "cooldown_steps": 4}
    runs = [
        train(make_config(name, branch=point, **given), console=Recorder())
        for name, given in (("said", {"steps": 8}), ("left out", {}))
    ]
    assert results(runs[0]) == results(runs[1])
    assert [r["step"] for r in results(runs[0])] == [7, 8, 9, 10]
    assert results(runs[0])[0]["lr"] == results(parent)[6]["lr"]
    with pytest.raises(Crash):
        train(make_config("cut", branch=point, checkpoint=saves), console=Recorder({9: crash}))
    run = train(make_config("cut", branch=point, checkpoint=saves), resume=True, console=Recorder())
    assert results(run) == results(runs[0])


def test_a_branch_in_gpt_neox_s_order(make_config, dataset_path):
    neox = {
        "paths": [str(dataset_path / name / "train") for name in ("tales", "notes")], "weights": [3, 1],
        "train_iters": 6, "tokenizer": str(dataset_path),
    }  # fmt: skip
    data = {"path": "", "epochs": {}, "windows": {}, "order": "neox", "neox": neox}
    parent = train(make_config("parent", data=data), console=Recorder())
    point = {"checkpoint": at(parent, 3), "cooldown_steps": 2}
    run = train(make_config("branch", data=data, branch=point), console=Recorder())
    assert results(run)[0] == results(parent)[3]
    assert [r["first_sample"] for r in results(run)] == [12, 16]


def test_a_checkpoint_from_before_branches(parent, branch):
    """Its configuration has no such key."""
    path = Path(at(parent, 6))
    state = read_json(path / "state.json")
    del state["config"]["branch"]
    (path / "state.json").write_text(json.dumps(state))
    (path / MANIFEST).unlink()
    write_manifest(path, {"format": "stablelm-checkpoint", "version": 1, "step": 6})
    assert results(train(branch(), console=Recorder()))[0] == results(parent)[6]


def test_the_cooldown_is_the_branch_s_own(parent, branch):
    cooled = {"cooldown_shape": "1-sqrt", "cooldown_floor": 0.1}
    run = train(branch(cooldown=4, schedule={"warmup": 0.2, **cooled}), console=Recorder())
    high, low = results(parent)[6]["lr"], 0.1 * 5e-3
    expected = [low + (high - low) * (1 - (t / 4) ** 0.5) for t in range(4)]
    assert [r["lr"] for r in results(run)] == pytest.approx(expected)


def test_the_data_ahead_may_change(parent, branch):
    """A cooldown on another mixture, also where the parent's data have ended."""
    table = {"tales": 2, "notes": 1}
    data = {"epochs": {}, "phases": [{"epochs": table, "until_step": 6}, {"epochs": {"notes": 1}}]}
    run = train(branch("other", data=data), console=Recorder())
    assert [r["first_sample"] for r in results(run)] == [24, 28, 32]
    assert results(run)[0]["loss"] != results(parent)[6]["loss"]
    data["phases"][0].pop("until_step")
    further = train(branch("further", step=10, cooldown=2, data=data), console=Recorder())
    assert [r["first_sample"] for r in results(further)] == [40, 44]
    assert results(further)[0]["lr"] == pytest.approx(0.04 * 5e-3), "the end of the parent's cosine"


def test_what_was_there_before_is_not_of_the_branch(parent, branch):
    config = branch()
    Path(config.out).mkdir()
    (Path(config.out) / METRICS).write_text('{"step": 1, "loss": 9.0}\n')
    assert [r["step"] for r in results(train(config, console=Recorder()))] == [7, 8, 9]


def refused(config, message, **how):
    with pytest.raises(InputError, match=message):
        train(config, console=Recorder(), **how)
    assert not (Path(config.out) / METRICS).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"layer_norm_eps": 1e-6}}, r"step-000006: was trained with model.layer_norm_eps = 1e-05"),
        (
            {"model": {"hidden_size": 64}},
            r"model.hidden_size = 32, this run says 64. A branch has its parent",
        ),
        ({"optimizer": {"lr": 1e-3}}, r"optimizer.lr = 0.005, this run says 0.001"),
        ({"optimizer": {"betas": [0.9, 0.99]}, "seed": 7}, r"optimizer.betas.1 = 0.95.*different: seed"),
        ({"batch": {"sequences": 5}}, r"batch.sequences = 4, this run says 5"),
        (
            {"schedule": {"cooldown_steps": 2}},
            r"schedule.cooldown_steps = None.*but for branch.cooldown_steps",
        ),
        ({"steps": 9}, r"steps = 10, this run says 9"),
        (
            {"data": {"epochs": {"tales": 1, "notes": 2}}},
            r"data.epochs.notes = 1.0, this run says 2.0.*branch off an earlier",
        ),
        ({"data": {"windows": {"tales": 11, "notes": 16}}}, r"data.windows.tales = 12, this run says 11"),
    ],
)
def test_another_configuration_is_refused_by_its_key(branch, changes, message):
    refused(branch(**changes), message)
    refused(branch(**changes), message, resume=True, force_data=True)


def test_another_dataset_is_refused(branch, dataset_path, tmp_path):
    """The same sources and windows, one document more."""
    (tmp_path / "tales").mkdir()
    shutil.copytree(dataset_path.parent / "notes", tmp_path / "notes")
    for path in (dataset_path.parent / "tales").iterdir():
        (tmp_path / "tales" / path.name).write_text(path.read_text() + " The end.")
    recipe = DataRecipe(
        out=str(tmp_path / "prepared"),
        tokenizer=str(dataset_path.parent / "tokenizer"),
        sources=[{"name": name, "paths": [str(tmp_path / name)]} for name in ("tales", "notes")],
        held_out=0.2,
    )
    other = branch(data={"path": str(prepare(recipe))})
    refused(other, r"another dataset or mixture than .*prepared \(their fingerprints differ\). A branch has")
    assert not Path(other.out).exists()


def test_no_checkpoint_is_refused(parent, branch, make_config, tmp_path):
    def named(path):
        return make_config("branch", branch={"checkpoint": str(path), "cooldown_steps": 2})

    names = "That run has step-000003, step-000006, step-000009, step-000010: RUN/checkpoints/step-N"
    refused(named(parent), rf"{parent} is no finished checkpoint of a run. {names}")
    refused(named(at(parent, 4)), f"step-000004 is no finished checkpoint of a run. {names}")
    refused(named(tmp_path / "none"), "none is no finished checkpoint of a run. Name one: RUN/checkpoints/")
    (Path(at(parent, 9)) / "manifest.json").unlink()
    refused(named(at(parent, 9)), "step-000009 is no finished checkpoint")


@pytest.mark.parametrize("part", ["model", "optimizer", "state.json"])
def test_a_damaged_checkpoint_is_refused_by_name(parent, branch, part):
    path = Path(at(parent, 6)) / part
    path = next(path.glob("*")) if path.is_dir() else path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(branch(), rf"{path.name}.*sha256.* Branch off another: .*step-000003")


def test_a_cooldown_longer_than_the_data_says_how_many_steps_are_left(parent, branch):
    refused(branch(cooldown=5), "branch.cooldown_steps 5: only 4 steps of data are left after step 6")
    refused(branch(step=10), "branch.cooldown_steps 3: only 0 steps of data are left after step 10")
    refused(branch(cooldown=4, data={"skip": [[30, 33]]}), "only 3 steps of data are left")
    assert len(results(train(branch(cooldown=4), console=Recorder()))) == 4


def test_a_last_step_that_was_not_full_has_nothing_after_it(make_config):
    data = {"windows": {"tales": 12, "notes": 15}}
    run = train(make_config("parent", data=data, checkpoint={"keep": 9}), console=Recorder())
    longer = {
        **data,
        "epochs": {},
        "phases": [{"epochs": {"tales": 2, "notes": 1}}, {"epochs": {"notes": 1}}],
    }
    config = make_config("b", data=longer, branch={"checkpoint": at(run, 10), "cooldown_steps": 2})
    refused(config, "step-000010 is the end of its data, 39 samples")


def test_a_directory_that_holds_another_run_is_refused(parent, branch, make_config):
    with pytest.raises(InputError, match="already holds a run"):
        train(branch("parent"), console=Recorder())
    with pytest.raises(
        InputError, match=r"step-000010: is of a run that is no branch. Give the branch an --out"
    ):
        train(branch("parent"), resume=True, console=Recorder())
    run = branch(checkpoint={"every": 1})
    with pytest.raises(Crash):
        train(run, console=Recorder({9: crash}))
    with pytest.raises(InputError, match=r"was trained with branch = .*, this run says None"):
        train(make_config("branch"), resume=True, console=Recorder())
    with pytest.raises(InputError, match=r"branch.cooldown_steps = 3, this run says 4"):
        train(branch(cooldown=4), resume=True, console=Recorder())
    with pytest.raises(
        InputError, match=r"branch.checkpoint = '.*step-000006', this run says '.*step-000003'"
    ):
        train(branch(step=3), resume=True, console=Recorder())


def test_the_rate_before_a_branch_is_the_parent_s(make_config):
    config = make_config()
    parent = Schedule(config.schedule, 5e-3, 1000)
    ours = Schedule(config.schedule, 5e-3, 700, Origin(600, parent))
    assert [ours.rate(t) for t in range(601)] == [parent.rate(t) for t in range(601)]
    assert ours.rate(650) == pytest.approx(parent.rate(600) / 2)
    assert ours.rate(700) == 0
    within = Schedule(config.schedule, 5e-3, 150, Origin(100, parent))
    assert within.rate(100) == 5e-3 / 2, "half-way up the warm-up"
    assert [step for step, _ in within.turning_points()] == [0, 100, 150]


def test_what_the_weights_descend_from_is_handed_on(make_config, monkeypatch):
    """A branch is the run continued: the ancestors of its initial weights, not that run itself, and `init` is
    not read again."""
    base = train(make_config("base", card={"name": "Base", "licence": "mit"}), console=Recorder())
    init = {"init": str(base), "checkpoint": {"every": 3, "keep": 9}}
    parent = train(make_config("parent", **init), console=Recorder())
    shutil.rmtree(base)
    config = make_config("branch", branch={"checkpoint": at(parent, 6), "cooldown_steps": 2}, **init)
    run = train(config, console=Recorder())
    about = [read_json(checkpoints(r)[-1] / "about.json")["ancestors"] for r in (parent, run)]
    assert about[0] == about[1] and about[0][0]["name"] == "Base"
    assert Trainer(config).ancestors[0].licence == "mit", "also from its own checkpoints"
