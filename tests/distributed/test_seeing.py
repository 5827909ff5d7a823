"""What a step says of sources and layers is the same on any mesh, also with a short step, a process without
rows and a z-loss."""

import dataclasses
import functools
import types

import pytest
import torch

from stablelm.training.batches import Batch
from stablelm.training.building import build_model
from stablelm.training.health import MEASURES, Health
from stablelm.training.measures import Measures
from stablelm.training.optimizer import make_optimizer
from stablelm.training.parallel import Layout
from stablelm.training.passes import backward, clip
from tests.distributed.parity import SEQUENCES, Case, rows

CASES = {
    "(4,1) ZeRO 3, recomputed": Case(shard=4, zero=3, recompute="full"),
    "(2,2) ZeRO 1, three passes": Case(shard=2, tensor=2, passes=3),
    "(2,2) ZeRO 2, whole sequences": Case(shard=2, tensor=2, zero=2, sequence_parallel=False),
    "HSDP 2x2": Case(replicate=2, shard=2, zero=3),
    "(1,2) compiled": Case(tensor=2, compile=True),
    "(4,1), a process without rows": Case(shard=4, zero=2, short=2),
}
DATA = types.SimpleNamespace(
    summary=lambda: {"sources": {n: {"train": {"bytes": 7 + i, "tokens": 2}} for i, n in enumerate("abc")}}
)


def see(rank, case):
    """Two steps: what is recorded of them, and losses and norms."""
    torch.set_num_threads(1)
    config = case.config().model_copy(update={"z_loss": 0.01})
    layout = Layout.of(config, "cpu")
    model, _ = build_model(config, layout, torch.device("cpu"), torch.float64)
    optimizer = make_optimizer(model, config.optimizer)
    measures, health, told = Measures(DATA, "abc", config.z_loss), Health(2, model, layout), []
    for step in (1, 2):
        count = case.short or SEQUENCES
        samples = rows(step, count)
        first, end = layout.share(count)
        sources = torch.arange(count) % (2 if case.short else 3)
        mine = samples[first:end] if end > first else torch.full_like(samples[:1], -1)
        whose = sources[first:end] if end > first else sources[:1]
        with health.listening(step):
            batch = Batch(mine, None, count, 0, 0, sources=whose)
            loss, norm, targets = backward(model, batch, config, layout, measures)
        clip(model, 1.0, norm, layout)
        optimizer.step()
        health.updated(optimizer)
        optimizer.zero_grad()
        told.append({"loss": loss, "norm": float(norm), **measures.record(loss, targets)})
    return told, health.record(2)


@functools.cache
def alone(case):
    return see(0, case)


@pytest.mark.parametrize("name", CASES)
def test_a_mesh_sees_what_one_process_sees(pool, name):
    case = CASES[name]
    plain = dataclasses.replace(
        case, replicate=1, shard=1, tensor=1, zero=1, passes=1, recompute="none", compile=False
    )
    steps, layers = alone(plain)
    read = "ab" if case.short else "abc"
    assert {key for key in steps[0] if key.startswith("loss/")} == {f"loss/{name}" for name in read}
    assert steps[0]["z_loss"] > 0.1 and steps[0]["bits_per_byte"] > 0
    for found, seen in pool.run(case.world, see, case):
        for mine, wanted in zip(found, steps, strict=True):
            assert mine == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        for measure in MEASURES:
            assert seen[measure] == pytest.approx(layers[measure], rel=1e-5), measure
        for key in ("gradient_embedding", "gradient_head", "update_embedding", "update_head"):
            assert seen[key] == pytest.approx(layers[key], rel=1e-5), key
