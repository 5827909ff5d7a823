"""Recomputation keeps less and changes nothing; precisions keep what they say; garbage waits."""

import collections
import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stablelm.model import bfloat16_products
from stablelm.training import Trainer, train
from stablelm.training.garbage import PinnedGarbage
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder


def kept_bytes(config):
    """What one step's forward passes leave for the backward passes; the loss and norm it came to."""
    trainer, sizes = Trainer(config, Recorder()), {}
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}

    def pack(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            sizes[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        record = trainer.train_step()
    return sum(sizes.values()), record["loss"], record["grad_norm"]


def test_less_is_kept_and_nothing_changes(make_config):
    batch = {"sequences": 4, "micro_sequences": 4}
    found = {mode: kept_bytes(make_config(recompute=mode, batch=batch)) for mode in ("none", "full", 2)}
    assert found["full"][0] < found[2][0] < found["none"][0]
    assert found["full"][0] < 0.5 * found["none"][0]
    assert found["full"][1:] == found[2][1:] == found["none"][1:]


class Counter(TorchDispatchMode):
    """How often each operator is really computed: below the policy, which answers from what it kept."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        self.counts[operator.overloadpacket.__name__] += 1
        return operator(*arguments, **(keywords or {}))


def test_selective_repeats_the_cheap_alone(make_config):
    found, exact = {}, {}
    for mode in ("none", "selective", "full"):
        trainer = Trainer(make_config(recompute=mode), Recorder())
        with Counter() as counter:
            record = trainer.train_step()
        found[mode] = [
            counter.counts[name] for name in ("mm", "_scaled_dot_product_flash_attention_for_cpu", "silu")
        ]
        exact[mode] = (record["loss"], record["grad_norm"])
    assert exact["none"] == exact["selective"] == exact["full"]
    passes, blocks = 2, 2
    assert found["selective"][:2] == found["none"][:2]
    assert found["full"][0] - found["none"][0] >= 6 * passes * blocks  # the last product need not be repeated
    assert found["full"][1] == 2 * found["none"][1] == 2 * passes * blocks
    assert found["selective"][2] == 2 * found["none"][2] == 2 * passes * blocks


def test_selective_keeps_products_that_are_computed_in_float32(make_config, monkeypatch):
    """On CPUs without bf16 products."""
    monkeypatch.setattr(bfloat16_products, "WIDENED", True)
    found = {}
    for mode in ("none", "selective", "full"):
        trainer = Trainer(make_config(recompute=mode, precision="bf16"), Recorder())
        with Counter() as counter:
            record = trainer.train_step()
        found[mode] = record["loss"], record["grad_norm"], counter.counts["widened_linear"]
    assert found["none"] == found["selective"] and found["none"][:2] == found["full"][:2]
    assert found["full"][2] - found["none"][2] >= 6 * 2 * 2  # two passes, two blocks


@pytest.mark.parametrize(("precision", "kept"), [("bf16", torch.float32), ("bf16-pure", torch.bfloat16)])
def test_what_each_precision_keeps(make_config, precision, kept):
    trainer = Trainer(make_config(precision=precision), Recorder())
    trainer.train_step()
    held = {p.dtype for p in trainer.model.parameters()}
    held |= {state["exp_avg"].dtype for state in trainer.optimizer.state.values()}
    assert held == {kept}


def test_pure_bf16_learns_and_resumes(make_config):
    config = make_config("pure", precision="bf16-pure", logging={"every": 100})
    run = train(config, console=Recorder())
    losses = [r["loss"] for r in read_metrics(run) if "kind" not in r]
    assert losses[-1] < losses[0] - 0.5
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    for path in last.iterdir():
        path.unlink() if path.is_file() else [each.unlink() for each in path.iterdir()]
    train(config, console=Recorder(), resume=True)
    assert [r["loss"] for r in read_metrics(run) if "kind" not in r] == losses


@pytest.mark.parametrize("frozen", [False, True])
def test_garbage_is_collected_when_it_is_time(frozen):
    """What the caller has frozen stays so."""
    enabled, collected = gc.isenabled(), []
    gc.unfreeze()
    if frozen:
        gc.freeze()

    def note(phase, about):
        if phase == "start":
            collected.append(about["generation"])

    with PinnedGarbage(every=3) as garbage:
        gc.callbacks.append(note)
        try:
            assert not gc.isenabled()
            for number in range(1, 7):
                _ = [[] for _ in range(5000)]
                garbage.step(number)
        finally:
            gc.callbacks.remove(note)
    assert len(collected) == 2
    assert gc.isenabled() == enabled
    assert (gc.get_freeze_count() > 0) == frozen
    gc.freeze()  # as in tests/conftest.py
