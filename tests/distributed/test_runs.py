"""Whole runs over processes: the trainer, its evaluation, its refusals, and the command under torchrun."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from stablelm.config.errors import RunError
from stablelm.interchange import open_path
from stablelm.training import Trainer, train
from stablelm.training.metrics import read_metrics
from stablelm.training.rollback import beyond_help, go_back
from tests.training.conftest import Recorder, dataset_path, make_config  # noqa: F401 (fixtures)


def steps(rank, config):
    """Losses and norms of all steps, and the held-out losses after them, in float64."""
    torch.set_num_threads(1)
    trainer = Trainer(config, Recorder(), dtype=torch.float64)
    records = [trainer.train_step() for _ in range(trainer.plan.steps)]
    trainer._evaluate()
    told = [
        (r["loss"], r["grad_norm"], r["step_tokens"], r["first_sample"], r["last_sample"]) for r in records
    ]
    held_out = trainer.evaluations + trainer.suite
    return told, held_out, trainer.plan.micro_batches, len(getattr(trainer.console, "records", [])) == 0


@pytest.mark.parametrize(
    ("parallel", "world", "batch", "data"),
    [
        ({"zero": 3}, 2, {"sequences": 6, "micro_sequences": 2}, {"document_boundaries": True}),
        ({"tensor": 2, "zero": 2}, 4, {"sequences": 6, "micro_sequences": 1}, {}),
    ],
)
def test_the_trainer_reads_and_tells_the_same_on_a_mesh(
    pool, make_config, shared, parallel, world, batch, data  # noqa: F811
):  # fmt: skip
    """Losses and norms, and everything that is evaluated: held-out text, copying, cloze, a task."""
    data = {"epochs": {"tales": 1, "notes": 1}, **data}
    data_tasks = ["piqa"] if world == 4 else []
    tasks = {"tasks": data_tasks, "task_data": str(shared / "data" / "eval"), "limit": 2}
    evaluation = tasks if data_tasks else {}
    wanted = steps(0, make_config(batch=batch, data=data, evaluation=evaluation))
    found = pool.run(
        world, steps, make_config(batch=batch, data=data, evaluation=evaluation, parallel=parallel)
    )
    assert len({repr(each[:2]) for each in found}) == 1  # every process tells the same
    assert [told[2:] for told in found[0][0]] == [told[2:] for told in wanted[0]]
    assert wanted[0][-1][2] < wanted[0][0][2]  # the last step is a short one
    assert np.abs(np.array(found[0][0]) - np.array(wanted[0])).max() < 1e-12
    kinds = [record["kind"] for record in wanted[1]]
    assert kinds == ["evaluation"] * 2 + ["copying"] + ["cloze"] * 2 + ["task"] * len(data_tasks)
    for mine, theirs in zip(found[0][1], wanted[1], strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), key
    data_parallel = world // parallel.get("tensor", 1)
    assert found[0][2] == math.ceil(batch["sequences"] / data_parallel / batch["micro_sequences"])


def spoiled(rank, config):
    """One process has a weight that is not a number."""
    trainer = Trainer(config, Recorder())
    with torch.no_grad():
        weight = trainer.model.model.layers[0].mlp.down_proj.weight.to_local()
        if rank == 1:
            weight[0, 0] = float("nan")
        before = trainer.model.lm_head.weight.to_local().clone()
    assert trainer.train_step()["reason"] == "loss nan"
    with pytest.raises(RunError, match=r"step 1: the weights are not finite \(tensor .*no good checkpoint"):
        go_back(trainer, beyond_help(trainer))
    return torch.equal(before, trainer.model.lm_head.weight.to_local())


def test_all_processes_stop_at_a_weight_that_is_not_finite_on_one(pool, make_config):  # noqa: F811
    assert pool.run(2, spoiled, make_config()) == [True, True]


def refused(rank, config):
    try:
        Trainer(config, Recorder())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_a_mesh_that_does_not_fit_is_refused_by_all(pool, make_config):  # noqa: F811
    for changes, message in (
        ({"parallel": {"tensor": 2}, "model": {"vocab_size": 385}}, "does not divide model.vocab_size 385"),
        ({"batch": {"sequences": 5}}, "batch.sequences 5 cannot be shared out evenly over 2"),
        ({"parallel": {"shard": 4}}, "does not make 2 processes"),
        (
            {"parallel": {"tensor": 2}, "compile": True, "recompute": "selective"},
            "recompute: selective cannot look into compiled blocks",
        ),
    ):
        for told in pool.run(2, refused, make_config(**changes)):
            assert told is not None and told.startswith("InputError") and message in told


@pytest.mark.parametrize("parallel", [{"zero": 1}])
def test_torchrun_gives_the_losses_of_one_process(make_config, tmp_path, parallel):  # noqa: F811
    alone = train(make_config("alone"), console=Recorder())
    config = make_config("together", parallel=parallel)
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stablelm"]
    found = subprocess.run(
        [sys.executable, *command, "train", str(path)],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("done. Next") == 1  # the first process speaks for all
    mine, theirs = read_metrics(tmp_path / "together"), read_metrics(alone)
    assert [(r["step"], r.get("source")) for r in mine] == [(r["step"], r.get("source")) for r in theirs]
    both = [[r["loss"] for r in records if "loss" in r] for records in (mine, theirs)]
    assert both[0] == pytest.approx(both[1], abs=2e-5)
    models = [open_path(run)[0] for run in (tmp_path / "together", alone)]
    ids = torch.arange(20)[None]
    assert torch.allclose(*(model(ids) for model in models), atol=1e-2)
