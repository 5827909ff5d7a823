"""Adapters over processes: the losses and norms of one process, what they save, on any mesh."""

import shutil

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.finetuning import finetune
from stablelm.interchange import open_path
from stablelm.interchange.native import finished_checkpoints
from tests.distributed.test_tuning import steps
from tests.finetuning.conftest import Recorder, base, make  # noqa: F401 (fixtures)

SAME = {"batch": {"sequences": 4, "micro_sequences": 1}, "data": {"held_out_share": 0.1}, "epochs": 1}


@pytest.mark.parametrize(
    ("world", "parallel", "extra"),
    [
        (2, {"zero": 3}, {"adapter": {"rank": 4, "method": "dora"}, "recompute": "full"}),
        (2, {"zero": 0}, {"adapter": {"rank": 3, "targets": ["q_proj", "lm_head"]}}),
        (4, {"zero": 2, "replicate": 2}, {"adapter": {"rank": 4, "method": "rslora"}}),
    ],
)
def test_an_adapter_is_trained_alike_on_any_mesh(pool, make, world, parallel, extra):  # noqa: F811
    wanted = steps(0, make(**SAME, **extra))
    found = pool.run(world, steps, make(**SAME, **extra, parallel=parallel))
    assert len({repr(each) for each in found}) == 1, "every process tells the same"
    assert np.abs(np.array(found[0][0]) - np.array(wanted[0])).max() < 1e-12
    assert found[0][1] == pytest.approx(wanted[1], abs=1e-12)


def whole_run(rank, config, resume):
    try:
        return str(finetune(config, resume=resume, console=Recorder()))
    except InputError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_many_processes_save_one_opens_and_continues(pool, make, precision):  # noqa: F811
    """Two processes begin, one goes on from a checkpoint of theirs; beside it one process alone. Frozen
    weights in bf16 and an adapter in float32 are sharded together."""
    same = {**SAME, "precision": precision, "adapter": {"rank": 4, "method": "dora"}}
    one = finetune(make(out="one", **same), console=Recorder())
    run = pool.run(
        2, whole_run, make(out="two", **same, parallel={"zero": 3}, checkpoint={"every": 2}), False
    )
    assert set(run) == {str(one.parent / "two")}
    shutil.rmtree(finished_checkpoints(one.parent / "two")[-1])
    console = Recorder()
    finetune(make(out="two", **same), resume=True, console=console)
    assert len(console.records) >= 1 and "resumed" in "".join(console.messages)
    models = [dict(open_path(path)[0].named_parameters()) for path in (one, one.parent / "two")]
    worst = max(float((models[0][name] - models[1][name]).detach().abs().max()) for name in models[0])
    assert worst < (1e-5 if precision == "fp32" else 3e-3)
