"""Fine-tuning over processes: the losses, norms and held-out losses of one process, on any mesh."""

import numpy as np
import pytest
import torch

from stablelm.finetuning.preference_tuner import PreferenceTuner
from stablelm.finetuning.tuner import prepare, tuner_of
from tests.finetuning.conftest import Recorder, base, make  # noqa: F401 (fixtures)
from tests.finetuning.test_preference import judged, pairs


class Written(list):
    """In place of a file of metrics."""

    def write(self, record):
        self.append(record)


def steps(rank, config):
    """Losses and norms of all steps; after them the held-out loss, right answers and samples, in float64."""
    torch.set_num_threads(1)
    model, data = prepare(config)
    tuner = tuner_of(data, config)(config.run(model), Recorder(), dtype=torch.float64)
    if isinstance(tuner, PreferenceTuner):
        tuner._read_answers()
    records = [tuner.train_step() for _ in range(tuner.plan.steps)]
    tuner.metrics = Written()
    tuner._evaluate()
    (held,) = tuner.evaluations
    samples = [record["text"] for record in tuner.metrics if record["kind"] == "sample"]
    names = ("loss", "grad_norm", "first_sample", "last_sample", "rewards/margins", "logps/chosen", "kl")
    told = [[r.get(name, 0.0) for name in names] for r in records]
    numbers = ("loss", "tokens", "bits_per_byte", "accuracy", "answer_accuracy", "answers")
    return told, tuple(held.get(name, 0.0) for name in numbers), samples


@pytest.mark.parametrize(
    ("world", "parallel", "extra"),
    [
        (2, {"zero": 3}, {"neftune": 5.0}),
        (2, {"zero": 2}, {"adapter": {"rank": 4, "dropout": 0.2}}),
        (4, {"tensor": 2, "zero": 2, "sequence_parallel": True}, {"label_smoothing": 0.1}),
    ],
)
def test_answers_weigh_the_same_wherever_they_are_read(pool, make, world, parallel, extra):  # noqa: F811
    """Rows have different numbers of targets, the last step is a short one, held-out rows are few."""
    same = {"batch": {"sequences": 4, "micro_sequences": 1}, "data": {"held_out_share": 0.1}, "epochs": 1}
    same["evaluation"] = {"prompts": ["What colour is the sky?", "Coal?"], "sample_tokens": 6}
    wanted = steps(0, make(**same, **extra))
    found = pool.run(world, steps, make(**same, **extra, parallel=parallel))
    assert len({repr(each) for each in found}) == 1, "every process tells the same"
    assert np.abs(np.array(found[0][0]) - np.array(wanted[0])).max() < 1e-12
    assert found[0][1] == pytest.approx(wanted[1], abs=1e-12)
    assert found[0][2] == wanted[2] and len(wanted[2]) == 4, "what is written to the prompts"


@pytest.mark.parametrize(
    ("world", "parallel", "loss"),
    [
        (2, {"zero": 3}, "dpo"),
        (4, {"tensor": 2, "zero": 2, "sequence_parallel": True}, "kto"),
    ],
)
def test_pairs_weigh_the_same_wherever_they_are_read(pool, make, world, parallel, loss):  # noqa: F811
    """Rows hold different numbers of pairs; the last step leaves one process without a row."""
    same = {
        "records": judged(22) if loss == "kto" else pairs(22), "preference": {"loss": loss, "beta": 0.5},
        "batch": {"sequences": 4, "micro_sequences": 1, "sequence_length": 64},
        "data": {"held_out_share": 0.15}, "epochs": 1,
    }  # fmt: skip
    wanted = steps(0, make(**same))
    found = pool.run(world, steps, make(**same, parallel=parallel))
    assert len({repr(each) for each in found}) == 1, "every process tells the same"
    assert np.abs(np.array(found[0][0]) - np.array(wanted[0])).max() < 1e-12
    assert found[0][1] == pytest.approx(wanted[1], abs=1e-12)
    assert found[0][2] == wanted[2] and len(wanted[2]) == 2, "what is written to the prompts"
    assert len(wanted[0]) > 1 and abs(wanted[0][-1][4]) > 0
