"""What is measured of each layer is what it says, and measuring it changes nothing."""

import copy
import math

import pytest
import torch

from stablelm.model import Documents
from stablelm.training import Trainer, health, train
from stablelm.training.health import MEASURES, largest_logit
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder

EXACT = ("step", "loss", "grad_norm", "first_sample", "last_sample")


def of(run, kind):
    return [record for record in read_metrics(run) if record.get("kind") == kind]


def plain_logits(q, k, allowed):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).double()
    scores = q.double() @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    return float(scores.masked_fill(~allowed, -math.inf).max())


@pytest.mark.parametrize("alive", [1, 100, 1 << 24])
def test_the_largest_logit_is_that_of_the_whole_matrix(monkeypatch, alive):
    """Rows are taken a few at a time; what lies ahead or in another document is never seen."""
    monkeypatch.setattr(health, "SCORES", alive)
    draw = torch.Generator().manual_seed(1)
    q = torch.randn(2, 4, 13, 8, generator=draw)
    k = torch.randn(2, 2, 13, 8, generator=draw)
    k[:, :, -1] *= 30  # only the last query may see the largest key
    q[:, :, -1] *= 0.01
    causal = torch.ones(13, 13, dtype=torch.bool).tril()
    documents = Documents(((4, 13), (6, 7, 13)))
    allowed = {None: causal, documents: documents.mask(q.device), "mask": causal & (torch.arange(13) > 1)}
    allowed["mask"] = (allowed["mask"] | torch.eye(13, dtype=torch.bool)).expand(2, 1, 13, 13)
    found = []
    for mask, entries in allowed.items():
        given = entries if mask == "mask" else mask
        found.append(float(largest_logit(q, k, given)))
        assert found[-1] == pytest.approx(plain_logits(q, k, entries), rel=1e-6)
    assert len(set(found)) > 1 and max(found) < plain_logits(q, k, torch.ones_like(causal)) / 2


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "data": {"document_boundaries": True}}])
def test_measuring_changes_no_loss(make_config, changes):
    plain = train(make_config("plain", **changes), console=Recorder())
    measured = train(make_config("measured", logging={"health": 2}, **changes), console=Recorder())
    steps = [[r for r in read_metrics(run) if "kind" not in r] for run in (plain, measured)]
    assert [[r[k] for k in EXACT] for r in steps[0]] == [[r[k] for k in EXACT] for r in steps[1]]
    found = of(measured, "health")
    assert [record["step"] for record in found] == [2, 4, 6, 8, 10] and not of(plain, "health")
    for record in found:
        assert all(len(record[name]) == 2 and min(record[name]) > 0 for name in MEASURES)
        assert record["activation_max"] == max(record["activation"])


def test_the_numbers_are_those_of_the_layers(make_config):
    """Beside the gradients and weights themselves, and the network's own states."""
    config = make_config(logging={"health": 1}, optimizer={"clip": 0.05, "weight_decay": 0.5})
    trainer, told = Trainer(config, Recorder()), []
    trainer._record = told.append
    trainer.train_step()
    before = copy.deepcopy(trainer.model)
    found = {}
    real = trainer.passes

    def passes(batch):
        value, norm = real(batch)
        for number, block in enumerate(trainer.model.model.layers):
            found[number] = torch.cat([p.grad.flatten() for p in block.parameters()]).square().mean().sqrt()
        found["embedding"] = trainer.model.model.embed_tokens.weight.grad.square().mean().sqrt()
        return value, norm

    trainer.passes = passes
    trainer.train_step()
    record = told[-1]
    assert record["step"] == 2
    samples = torch.from_numpy(trainer.loader.samples(4, 4))[:, :-1]
    states, logits = [], []
    for block in before.model.layers:
        attend = block.self_attn.attend

        def kept(q, k, v, mask, attend=attend):
            logits.append(plain_logits(q, k, torch.ones(32, 32, dtype=torch.bool).tril()))
            return attend(q, k, v, mask)

        block.self_attn.attend = kept
    with torch.no_grad():
        before.hidden_states(samples, collect=states)
    for number, (old, new) in enumerate(zip(before.model.layers, trainer.model.model.layers, strict=True)):
        assert record["gradient"][number] == pytest.approx(float(found[number]), rel=1e-5)
        assert record["activation"][number] == pytest.approx(
            float(states[number + 1].square().mean().sqrt()), rel=1e-5
        )
        assert record["attention_logit"][number] == pytest.approx(logits[number], rel=1e-5)
        weights = [torch.cat([p.detach().flatten() for p in block.parameters()]) for block in (old, new)]
        change = float((weights[1] - weights[0]).norm() / weights[0].norm())
        assert record["update"][number] == pytest.approx(change, rel=1e-3)
    assert record["gradient_embedding"] == pytest.approx(float(found["embedding"]), rel=1e-5)
    assert 0 < record["update_head"] < 1


def test_a_rejected_step_is_measured_as_far_as_it_went(make_config):
    trainer, told = Trainer(make_config(logging={"health": 1}), Recorder()), []
    trainer._record = told.append
    with torch.no_grad():
        trainer.model.model.layers[1].mlp.down_proj.weight[0, 0] = math.inf
    assert "reason" in trainer.train_step()
    assert "update" not in told[0]
    assert told[0]["activation"][0] is not None and told[0]["activation"][1] is None
    assert told[0]["attention_logit"][1] is not None


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_blocks_are_not_compiled_again(make_config, recompute):
    config = make_config(compile=True, recompute=recompute, logging={"health": 2})
    trainer, told = Trainer(config, Recorder()), []
    trainer._record = told.append
    trainer.train_step()
    with torch.compiler.set_stance("fail_on_recompile"):
        losses = [trainer.train_step()["loss"] for _ in range(3)]
    assert [record["step"] for record in told] == [2, 4]
    torch._dynamo.reset()
    plain = Trainer(make_config(compile=True, recompute=recompute), Recorder())
    assert [plain.train_step()["loss"] for _ in range(4)][1:] == losses
