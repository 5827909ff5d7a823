"""Fine-tuning over processes: the losses, norms and held-out losses of one process, on any mesh."""

import numpy as np
import pytest
import torch

from stablelm.finetuning.tuner import Tuner, prepare
from tests.finetuning.conftest import Recorder, base, make  # noqa: F401 (fixtures)


def steps(rank, config):
    """Losses and norms of all steps, and the held-out loss after them, in float64."""
    torch.set_num_threads(1)
    model, data = prepare(config)
    tuner = Tuner(data, config, config.run(model), Recorder(), dtype=torch.float64)
    records = [tuner.train_step() for _ in range(tuner.plan.steps)]
    tuner._evaluate()
    (held,) = tuner.evaluations
    told = [(r["loss"], r["grad_norm"], r["first_sample"], r["last_sample"]) for r in records]
    return told, (held["loss"], held["tokens"], held["bits_per_byte"])


@pytest.mark.parametrize(
    ("world", "parallel", "extra"),
    [
        (2, {"zero": 3}, {"neftune": 5.0}),
        (4, {"tensor": 2, "zero": 2, "sequence_parallel": True}, {"label_smoothing": 0.1}),
    ],
)
def test_answers_weigh_the_same_wherever_they_are_read(pool, make, world, parallel, extra):  # noqa: F811
    """Rows have different numbers of targets, the last step is a short one, held-out rows are few."""
    same = {"batch": {"sequences": 4, "micro_sequences": 1}, "data": {"held_out_share": 0.1}, "epochs": 1}
    wanted = steps(0, make(**same, **extra))
    found = pool.run(world, steps, make(**same, **extra, parallel=parallel))
    assert len({repr(each) for each in found}) == 1, "every process tells the same"
    assert np.abs(np.array(found[0][0]) - np.array(wanted[0])).max() < 1e-12
    assert found[0][1] == pytest.approx(wanted[1], abs=1e-12)
