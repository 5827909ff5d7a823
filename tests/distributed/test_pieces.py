"""The parts that a mesh is made of, each alone: the cut loss, the norm over mixed meshes, the traffic."""

import torch
import torch.distributed as dist
from torch.nn import functional

from stablelm.model.head import Head
from stablelm.training.batches import Batch
from stablelm.training.building import build_model
from stablelm.training.parallel import Layout
from stablelm.training.parallel.gradients import gradient_norm
from stablelm.training.passes import backward
from tests.distributed.parity import Case, rows


def cut_loss(rank, chunk):
    """Loss with its z-term, gradients and logits of a head cut over all processes: how far from PyTorch's."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 12, dtype=torch.float64, requires_grad=True) for n in (33, 40))
    labels = torch.randint(40, (33,))
    labels[::4] = -100
    labels[:2] = torch.tensor([0, 39])  # the first and the last row of the vocabulary
    wanted = functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    each = functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    log_z = (hidden @ weight.T).logsumexp(-1) * (labels >= 0)
    wanted = wanted + 0.1 * log_z.square().sum()
    wanted.backward()
    world = dist.get_world_size()
    part = slice(rank * 40 // world, (rank + 1) * 40 // world)
    head = Head(12, 40 // world).double()
    head.weight.data.copy_(weight.detach()[part])
    head.chunk, head.group, head.z_loss = chunk, dist.group.WORLD, 0.1
    head.told = torch.empty(2, 33, dtype=torch.float64)
    mine = hidden.detach().clone().requires_grad_()
    loss = head(mine, labels)
    (2 * loss).backward()
    labels[:4] = (hidden @ weight.T)[:4].argmax(-1)  # some are the likeliest
    counted = labels >= 0
    whole = Head(12, 40).double()
    whole.weight.data.copy_(weight.detach())
    asked = labels[counted], counted.nonzero()[:, 0]
    pairs = (
        (head(mine, *asked), whole(mine, *asked)),
        (loss, wanted), (mine.grad, 2 * hidden.grad), (head.weight.grad, 2 * weight.grad[part]),
        (head(mine), hidden @ weight.T), (head.told, torch.stack([each, log_z])),
    )  # fmt: skip
    return [float((a - b).detach().abs().max()) for a, b in pairs]


def test_the_cut_loss_is_the_whole_loss(pool):
    for world, chunk in ((2, 7), (4, 512)):
        for errors in pool.run(world, cut_loss, chunk):
            assert max(errors) < 1e-12, errors


def norms(rank, case):
    config = case.config()
    layout = Layout.of(config, "cpu")
    model, _ = build_model(config, layout, torch.device("cpu"), torch.float64)
    first, end = layout.share(12)
    _, norm, _ = backward(model, Batch(rows(0)[first:end], None, 12, 0, 0), config, layout)
    whole = torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()])
    kinds = {type(placement).__name__ for p in model.parameters() for placement in p.grad.placements}
    assert float(norm) == float(gradient_norm(model.parameters()))
    return float(norm), float(whole.norm()), kinds


def test_the_norm_counts_every_element_once(pool):
    """A matrix cut twice along one dimension says of itself that it is not a shard."""
    for norm, whole, kinds in pool.run(4, norms, Case(shard=2, tensor=2)):
        assert "_StridedShard" in kinds
        assert abs(norm - whole) < 1e-12


def traffic(rank, case):
    """How often a step gathers weights, scatters and adds up gradients."""
    config = case.config()
    layout = Layout.of(config, "cpu")
    model, _ = build_model(config, layout, torch.device("cpu"), torch.float64)
    first, end = layout.share(12)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        backward(model, Batch(rows(0)[first:end], None, 12, 0, 0), config, layout)
    names = [event.name for event in profile.events() if event.name.startswith("c10d::")]
    return {
        kind: sum(kind in name for name in names) for kind in ("allgather", "reduce_scatter", "allreduce")
    }


def test_accumulation_communicates_only_what_its_stage_must(pool):
    """Two blocks and the root: three groups of weights; three passes."""
    found = {zero: pool.run(2, traffic, Case(shard=2, zero=zero, passes=3))[0] for zero in (1, 2, 3)}
    assert [found[zero]["reduce_scatter"] for zero in (1, 2, 3)] == [3, 9, 9]
    assert [found[zero]["allgather"] for zero in (1, 2)] == [3, 3]
    assert found[3]["allgather"] > 9
    replicas = pool.run(2, traffic, Case(replicate=2, zero=0, passes=3))[0]
    assert replicas["allgather"] == replicas["reduce_scatter"] == 0
