"""A small model on any mesh, and processes to run it in, which may be killed.

Processes come from the fork server of `pool.py`, so four of them start in a moment and every case has fresh
ones."""

import functools
import hashlib
import logging
import os
import signal
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from stablelm.config import preset
from stablelm.config.optimization import OptimizerConfig
from stablelm.model import StableLM
from stablelm.tokenizer.training import train_tokenizer
from stablelm.training.optimizer import make_optimizer
from tests.distributed.pool import forking

CONFIG = preset(
    "stablelm-1m", num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=4,
    intermediate_size=52, vocab_size=96, max_position_embeddings=64,
)  # fmt: skip
"""52 = 4 × 13: shards of odd sizes."""
MESHES = {"(1,1)": (1, 1, 1), "(4,1)": (1, 4, 1), "(1,4)": (1, 1, 4), "(2,2)": (1, 2, 2), "HSDP": (2, 2, 1)}
BATCH, LENGTH = 8, 16
_BLOCK = {
    **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
    "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel(),
}  # fmt: skip


@functools.cache
def tokenizer():
    """A tokenizer's files, by name."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(["the cat and the other cat"], 285, Path(folder) / "tokenizer")
        return {"tokenizer.json": (Path(folder) / "tokenizer" / "tokenizer.json").read_bytes()}


class Setup:
    """Model and AdamW on a mesh; initial weights and batches are the same on all."""

    def __init__(self, mesh=(1, 1, 1), dtype=torch.float64, seed=1):
        self.model, self.data, self.parts, self.step = StableLM(CONFIG, seed).to(dtype), 0, 1, 0
        if dist.is_initialized():
            dims = init_device_mesh("cpu", mesh, mesh_dim_names=("dp_replicate", "dp_shard", "tp"))
            if mesh[2] > 1:
                embed = RowwiseParallel(input_layouts=Replicate())
                parallelize_module(self.model, dims["tp"], {"model.embed_tokens": embed})
                for block in self.model.model.layers:
                    parallelize_module(block, dims["tp"], _BLOCK)
            dp = dims["dp_replicate", "dp_shard"] if mesh[0] > 1 else dims["dp_shard"]
            for module in (*self.model.model.layers, self.model):
                fully_shard(module, mesh=dp)
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
            self.parts = mesh[0] * mesh[1]
            self.data = dims.get_rank() // mesh[2]
        self.optimizer = make_optimizer(self.model, OptimizerConfig(lr=3e-3))

    def train(self, steps):
        """Mean loss before each of `steps` updates."""
        losses = []
        for _ in range(steps):
            draw = torch.Generator().manual_seed(self.step)
            batch = torch.randint(CONFIG.vocab_size, (BATCH, LENGTH + 1), generator=draw)
            mine = batch.chunk(self.parts)[self.data]
            loss = self.model(mine[:, :-1], labels=mine[:, 1:]) / (BATCH * LENGTH)
            loss.backward()
            total = loss.detach().clone()
            if dist.is_initialized():
                dist.all_reduce(total)
                total /= dist.get_world_size() // self.parts
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            losses.append(float(total))
        return losses

    @torch.no_grad()
    def greedy(self, count=8):
        """Token ids that follow 1, 2, 3."""
        ids = torch.tensor([[1, 2, 3]])
        for _ in range(count):
            ids = torch.cat([ids, self.model(ids)[:, -1:].argmax(-1)], 1)
        return ids[0].tolist()

    def state(self):
        return {"step": self.step, "samples": 0, "steps": 9, "config": {"checkpoint": {}},
                "data_fingerprint": "0", "evaluations": []}  # fmt: skip

    def digest(self):
        """Of all weights, put together from all ranks."""
        return digest(self.model)

    @torch.no_grad()
    def spoil(self):
        """Other weights, that nothing may be left of after loading."""
        for parameter in self.model.parameters():
            parameter.fill_(7.0)


def digest(model):
    """Hash of a model's weights, wherever they are."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        found.update(name.encode() + whole.detach().numpy().tobytes())
    return found.hexdigest()


def _work(job, rank, world, rendezvous, pipe, arguments):
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        if world > 1:
            dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
        pipe.send((job(rank, *arguments), None))
    except BaseException as error:
        pipe.send((None, (type(error).__name__, str(error), traceback.format_exc())))
    finally:
        pipe.close()
        os._exit(0)  # a thread that waits for the dead must not hold up the living


def processes(world, job, *arguments, timeout=180):
    """`job(rank, *arguments)` on each rank → (what it returned, (error, its text, traceback)); (None, None)
    for one that was killed. Fails when one hangs."""
    context = forking()
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(world)]
        children = [
            context.Process(target=_work, args=(job, r, world, Path(folder) / "meet", ends[r][1], arguments))
            for r in range(world)
        ]
        try:
            for child, (_, sending) in zip(children, ends, strict=True):
                child.start()
                sending.close()
            results = []
            for rank, (receiving, _) in enumerate(ends):
                assert receiving.poll(timeout), f"rank {rank} hangs"
                try:
                    results.append(receiving.recv())
                except EOFError:
                    results.append((None, None))
            return results
        finally:
            for child in children:
                child.kill()
                child.join()


def values(results):
    """What all ranks returned; fails with the traceback of the first that did not."""
    for _, error in results:
        assert error is None, error[2]
    return [value for value, _ in results]


def die():
    """As `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)
