"""Whole runs: begun on one mesh, killed there, continued on others; one writer for all processes.

More meshes and moments are in `tests/long/test_meshes.py`."""

import time
from pathlib import Path

import pytest

from stablelm.config.run import run_config
from stablelm.interchange import open_path
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import directory_lock
from stablelm.training import Trainer, train
from stablelm.training.console import SilentConsole
from stablelm.training.metrics import read_metrics
from stablelm.training.running import train_by
from tests.distributed.sharded import die, processes, values
from tests.training.conftest import dataset_path, make_config  # noqa: F401 (fixtures)

MESHES = {
    "(1,1)": (1, {}), "(4,1)": (4, {}), "(2,2)": (4, {"tensor": 2}), "HSDP": (4, {"replicate": 2}),
    "(2,2) stage 3": (4, {"tensor": 2, "zero": 3}),
}  # fmt: skip


def train_on(rank, config, kill_at=None, victim=None):
    class Killed(Trainer):
        def train_step(self):
            if rank == victim and self.step == kill_at:
                time.sleep(0.3)  # the save of step 6 is at work, or done
                die()
            return super().train_step()

    train_by(Killed, config, resume=True, console=SilentConsole())


def results(run):
    """Step, loss, gradient norm and learning rate of every step; bits per byte of every evaluation."""
    keys = ("step", "loss", "grad_norm", "lr", "bits_per_byte", "first_sample", "last_sample")
    return [tuple(record.get(key) for key in keys) for record in read_metrics(Path(run))]


@pytest.fixture(scope="module")
def configure(request, dataset_path, tmp_path_factory):  # noqa: F811
    def make(out, **parallel):
        return make_config.__wrapped__(dataset_path, tmp_path_factory.mktemp(out))(
            out=out, model={"num_attention_heads": 4}, parallel=parallel, checkpoint={"every": 3, "keep": 2},
            data={"phases": [{"until_step": 5}, {"sequences": 8, "sequence_length": 16, "lr": 2e-3}]},
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def whole(configure):
    return results(train(configure("whole"), console=SilentConsole()))


@pytest.mark.parametrize(("first", "then", "victim"), [
    ("(2,2)", "(1,1)", 1), ("HSDP", "(2,2) stage 3", 3),
])  # fmt: skip
def test_a_run_killed_on_one_mesh_goes_on_on_another(configure, whole, first, then, victim):
    world, parallel = MESHES[first]
    config = configure("run", **parallel)
    outcome = processes(world, train_on, config, 7, victim or 0)
    for rank, (_, error) in enumerate(outcome):
        assert (error is None) == (rank == (victim or 0))
        if error is not None:
            assert error[0] == "RunError", error[2]
            assert "a process of this run is gone" in error[1]
    saved = [path.name for path in finished_checkpoints(Path(config.out))]
    assert saved in (["step-000003"], ["step-000003", "step-000006"])
    world, parallel = MESHES[then]
    again = config.model_copy(update={"parallel": type(config.parallel)(**parallel)})
    values(processes(world, train_on, again))
    found = results(config.out)
    assert [(r[0], *r[5:]) for r in found] == [(r[0], *r[5:]) for r in whole]
    for record, expected in zip(found, whole, strict=True):
        for a, b in zip(record[1:5], expected[1:5], strict=True):
            assert a == b if a is None or b is None else abs(a - b) <= 1e-5
    assert open_path(config.out)[0].num_parameters() > 0
    assert not list((Path(config.out) / "checkpoints").glob("*.tmp*"))


def hooked(moment, trainer):
    """Kills this process in step 7: in a block's forward pass, in its backward pass, or where the others wait
    for its part of a sum over all processes."""

    def kill(*_):
        if trainer.step == 6:
            die()

    block = trainer.model.model.layers[1]
    if moment == "forward":
        block.mlp.register_forward_pre_hook(kill)
    elif moment == "backward":
        block.mlp.register_full_backward_pre_hook(kill)
    else:
        import stablelm.training.passes as passes

        reduce = passes.summed
        passes.summed = lambda *arguments: kill() or reduce(*arguments)


def train_and_die(rank, config, moment):
    class Hooked(Trainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            if rank == 1:
                hooked(moment, self)

    train_by(Hooked, config, resume=True, console=SilentConsole())


@pytest.mark.parametrize("moment", ["reduce"])
def test_a_process_killed_within_a_step_stops_the_others_and_loses_nothing(configure, whole, moment):
    config = configure("run", **MESHES["(2,2) stage 3"][1])
    for rank, (_, error) in enumerate(processes(4, train_and_die, config, moment)):
        assert (error is None) == (rank == 1)
        if error is not None:
            assert error[0] == "RunError" and "a process of this run is gone" in error[1], error[2]
    assert finished_checkpoints(Path(config.out))[0].name == "step-000003"
    again = config.model_copy(update={"parallel": type(config.parallel)()})
    values(processes(1, train_on, again))
    found = results(config.out)
    assert [(r[0], *r[5:]) for r in found] == [(r[0], *r[5:]) for r in whole]
    for record, expected in zip(found, whole, strict=True):
        for a, b in zip(record[1:5], expected[1:5], strict=True):
            assert a == b if a is None or b is None else abs(a - b) <= 1e-5


def test_a_locked_run_is_refused_on_every_rank(configure):
    config = configure("run")
    with directory_lock(config.out):
        for _, error in processes(2, train_on, config):
            assert error[0] == "InputError", error[2]
            assert "in use by process" in error[1]
    assert not finished_checkpoints(Path(config.out))


@pytest.mark.parametrize(("first", "then"), [("(1,1)", "HSDP")])
def test_a_branch_point_may_be_on_any_mesh(configure, first, then):
    """A branch killed before its first save, and begun again, equals that of one process throughout."""
    cooled = []
    for parent, mesh in (("(1,1)", "(1,1)"), (first, then)):
        config = configure("parent", **MESHES[parent][1])
        config = config.model_copy(update={"checkpoint": type(config.checkpoint)(every=6)})
        values(processes(MESHES[parent][0], train_on, config))
        point = {"checkpoint": f"{config.out}/checkpoints/step-000006", "cooldown_steps": 3}
        branch = run_config(configure("branch", **MESHES[mesh][1]).model_dump() | {"branch": point})
        if mesh != "(1,1)":
            assert any(error for _, error in processes(MESHES[mesh][0], train_on, branch, 7, 1))
        values(processes(MESHES[mesh][0], train_on, branch))
        cooled.append(results(branch.out))
    assert [record[0] for record in cooled[0] if record[2]] == [7, 8, 9]
    for ours, theirs in zip(*cooled, strict=True):
        assert (ours[0], *ours[5:]) == (theirs[0], *theirs[5:]) and ours[3] == theirs[3]
        for a, b in zip(ours[1:5], theirs[1:5], strict=True):
            assert a == b if a is None or b is None else abs(a - b) <= 1e-5
