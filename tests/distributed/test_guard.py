"""A number that is none, on one of four processes: all reject the same step, and nothing is poisoned."""

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from stablelm.training import Trainer, passes
from tests.training.conftest import Recorder, dataset_path, make_config  # noqa: F401 (fixtures)

BAD = 3


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spoil_activations(trainer, victim):
    """In the forward pass, so that it reaches the others through the reduction."""

    def hook(module, inputs, output):
        if victim and trainer.step == BAD - 1:
            output = output * float("nan")
        return output

    trainer.model.model.layers[0].mlp.register_forward_hook(hook)


def spoil_gradient(trainer, victim):
    """In this process's shard alone, after the reduction, where no other can see it."""
    measure = passes.gradient_norm

    def spoiled(parameters):
        parameters = list(parameters)
        if victim and trainer.step == BAD - 1:
            held = next(p for p in parameters if local(p.grad).numel())
            local(held.grad).view(-1)[0] = float("inf")
        return measure(parameters)

    passes.gradient_norm = spoiled


def steps(rank, config, spoil):
    torch.set_num_threads(1)
    measure = passes.gradient_norm
    try:
        trainer = Trainer(config, Recorder(), dtype=torch.float64)
        spoil(trainer, rank == 2 or trainer.ranks.world == 1)
        records, kept = [], []
        for _ in range(5):
            records.append(trainer.train_step())
            state = [local(v).clone() for s in trainer.optimizer.state.values() for v in s.values()]
            kept.append(state + [local(p).detach().clone() for p in trainer.model.parameters()])
    finally:
        passes.gradient_norm = measure
    same = all(torch.equal(a, b) for a, b in zip(kept[BAD - 2], kept[BAD - 1], strict=True))
    finite = all(bool(value.isfinite().all()) for held in kept for value in held)
    told = [(r["step"], r["loss"], r["grad_norm"], r.get("reason")) for r in records]
    return told, same, finite, trainer.guard.state()


@pytest.mark.parametrize(
    ("spoil", "parallel", "reason"),
    [
        (spoil_activations, {"zero": 3}, "loss nan"),
        (spoil_activations, {"tensor": 2}, "loss nan"),
        (spoil_gradient, {"replicate": 2}, "gradient norm inf"),
        (spoil_gradient, {"tensor": 2, "zero": 2}, "gradient norm inf"),
    ],
)
def test_a_bad_number_on_one_of_four_is_rejected_by_all(pool, make_config, spoil, parallel, reason):  # noqa: F811
    config = make_config(parallel=parallel)
    found = pool.run(4, steps, config, spoil)
    assert len({repr((told, state)) for told, _, _, state in found}) == 1
    assert all(same and finite for _, same, finite, _ in found)
    assert [record[3] for record in found[0][0]] == [None, None, reason, None, None]
    alone = steps(0, make_config("alone"), spoil_activations)[0]
    made = [n for n in range(5) if n != BAD - 1]
    numbers = [np.array([told[n][:3] for n in made], dtype=float) for told in (found[0][0], alone)]
    assert np.abs(numbers[0] - numbers[1]).max() < 1e-12
