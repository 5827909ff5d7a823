"""Some steps of a small network on some mesh, with what they gave: losses, norms, gradients, weights."""

import dataclasses

import torch
from torch.distributed.tensor import DTensor

from stablelm.config.optimization import OptimizerConfig
from stablelm.config.run import run_config
from stablelm.training.batches import Batch
from stablelm.training.building import build_model
from stablelm.training.optimizer import make_optimizer
from stablelm.training.parallel import Layout
from stablelm.training.parallel.apply import reshard
from stablelm.training.passes import backward, clip

SEQUENCES, LENGTH, VOCABULARY = 12, 32, 256
DTYPES = {"fp64": torch.float64, "fp32": None, "bf16": None}


@dataclasses.dataclass(frozen=True)
class Case:
    """A mesh and all that must change nothing."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    zero: int = 1
    passes: int = 1
    """Micro-batches of a full step."""
    sequence_parallel: bool = True
    recompute: str | int = "none"
    compile: bool = False
    precision: str = "fp64"
    steps: int = 3
    short: int | None = None
    """Rows of the last step, when it is a short one."""
    model: tuple = ()

    @property
    def world(self):
        return self.replicate * self.shard * self.tensor

    def config(self):
        data = self.replicate * self.shard
        model = {
            "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 160, "max_position_embeddings": 64, **dict(self.model),
        }  # fmt: skip
        return run_config({
            "model": model,
            "data": {"path": "nowhere", "epochs": {"none": 1}},
            "batch": {"sequences": SEQUENCES, "micro_sequences": -(-SEQUENCES // data // self.passes),
                      "sequence_length": LENGTH},
            "parallel": {"replicate": self.replicate, "shard": self.shard if self.zero else None,
                         "tensor": self.tensor, "zero": self.zero,
                         "sequence_parallel": self.sequence_parallel},
            "recompute": self.recompute, "compile": self.compile, "loss_chunk": 50,
            "precision": "bf16" if self.precision == "bf16" else "fp32",
        })  # fmt: skip


def rows(step, count=SEQUENCES):
    """Samples of a step [count, L + 1]; every row has another number of targets."""
    draw = torch.Generator().manual_seed(step)
    ids = torch.randint(VOCABULARY, (count, LENGTH + 1), generator=draw)
    for number, row in enumerate(ids):
        row[LENGTH + 1 - (number * 5 + step) % LENGTH :] = -100
    return ids


def train(rank, case):
    """Losses, norms, the first step's gradients, initial and last weights by name (on the first rank)."""
    torch.set_num_threads(1)
    config, device = case.config(), torch.device("cpu")
    layout = Layout.of(config, "cpu")
    model, _ = build_model(config, layout, device, DTYPES[case.precision])
    before = whole(dict(model.named_parameters()), rank)
    with torch.no_grad():  # biases and norms that are not 0 and 1, so that a lost one shows
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1)
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-3, eps=1e-8))
    losses, norms, gradients = [], [], {}
    for step in range(case.steps):
        count = case.short if case.short and step == case.steps - 1 else SEQUENCES
        samples = rows(step, count)
        first, end = layout.share(count)
        mine = samples[first:end] if end > first else torch.full_like(samples[:1], -1)
        loss, norm, targets = backward(model, Batch(mine, None, count, 0, 0), config, layout)
        assert targets == int((samples[:, 1:] >= 0).sum())
        clip(model, 1.0, norm, layout)
        if step == 0:
            gradients = whole({name: p.grad for name, p in model.named_parameters()}, rank)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        norms.append(float(norm))
    reshard(model)
    after = whole(dict(model.named_parameters()), rank)
    return losses, norms, gradients, before, after


def whole(tensors, rank):
    """Put together from all ranks; kept on the first."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank == 0:
            found[name] = full.detach().clone().numpy()
    return found
