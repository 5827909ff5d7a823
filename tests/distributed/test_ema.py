"""The moving average on a mesh: that of one process, and one that any other mesh goes on with."""

from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from stablelm.interchange.checkpoints import moving_average, verify
from stablelm.interchange.native import finished_checkpoints
from stablelm.training import Trainer
from tests.distributed.parity import whole
from tests.training.conftest import Recorder, dataset_path, make_config  # noqa: F401 (fixtures)

QUIET = {"every": 1000, "windows": 1, "copying": 0, "cloze": 0}


def steps(rank, config, count, resume=False):
    """Steps, a save; the average and a loop in float64 over the whole weights, both on the first rank."""
    torch.set_num_threads(1)
    trainer = Trainer(config, Recorder(), dtype=torch.float64)
    trainer._begin(resume, False)
    loaded = {name: value.copy() for name, value in whole(trainer.ema.tensors(), rank).items()}
    wanted = whole(dict(trainer.model.named_parameters()), rank)
    for _ in range(count):
        trainer.train_step()
        share = min(0.3, (1 + trainer.step) / (10 + trainer.step))
        now = whole(dict(trainer.model.named_parameters()), rank)
        wanted = {name: share * wanted[name] + (1 - share) * now[name] for name in now}
    held = trainer.ema.tensors()
    alike = all(
        isinstance(value, DTensor) and value.placements == weight.placements
        for value, weight in zip(held.values(), trainer.model.parameters(), strict=True)
    )
    found = whole(held, rank)
    with trainer.checkpoints:
        trainer._save()
    return found, wanted, alike, loaded, trainer.ema.updates


@pytest.mark.parametrize("parallel", [{"tensor": 2, "zero": 3}, {"replicate": 2}])
def test_four_processes_average_what_one_does_and_one_goes_on(pool, make_config, tmp_path, parallel):  # noqa: F811
    options = {"evaluation": QUIET, "ema": {"decay": 0.3}, "model": {"num_attention_heads": 4}}
    config = make_config("run", parallel=parallel, **options)
    found, wanted, alike, _, _ = pool.run(4, steps, config, 4)[0]
    assert alike and found.keys() == wanted.keys()
    alone = steps(0, make_config("alone", **options), 4)[0]
    for name, value in wanted.items():
        assert abs(found[name] - value).max() < 1e-12, name
        assert abs(found[name] - alone[name]).max() < 1e-11, name
    _, _, _, loaded, updates = steps(0, make_config("run", **options), 1, resume=True)
    assert updates == 5 and all((loaded[name] == value).all() for name, value in found.items())
    newest = finished_checkpoints(Path(config.out))[0]
    list(verify(newest))
    (line,) = moving_average(tmp_path / "smooth", newest)
    assert "at step 4 (4 updates, decay 0.3)" in line
