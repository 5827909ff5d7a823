"""The peak of a whole training step, counted storage by storage, beside the formula."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from stablelm.config import preset
from stablelm.config.optimization import OptimizerConfig
from stablelm.model import StableLM, bfloat16_products
from stablelm.planning import make_layout, memory_of
from stablelm.training.optimizer import make_optimizer

SMALL = preset(
    "stablelm-1m", hidden_size=256, num_attention_heads=4, num_key_value_heads=4, intermediate_size=688,
    vocab_size=2048, num_hidden_layers=6,
)  # fmt: skip


@pytest.fixture(autouse=True)
def pytorchs_products(monkeypatch):
    """The formula counts bf16 copies of the weights, which a CPU without bf16 products does not make: a tenth
    less than planned."""
    monkeypatch.setattr(bfloat16_products, "WIDENED", False)


aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default}


class Alive(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there ever were.

    Products of bf16 are made in float32, unseen: a CPU without them would take a hundred times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS and args[0].dtype == torch.bfloat16:
            result = function(*(x.float() for x in args), **(kwargs or {})).bfloat16()
        else:
            result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return result


def recomputed(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *inputs: checkpoint(forward, *inputs, use_reentrant=False)


@pytest.mark.parametrize(("rows", "length", "passes"), [(1, 64, 1), (2, 64, 2), (4, 128, 2), (8, 128, 1)])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("recompute", ["none", "full", 2])
def test_peak_of_a_step(recompute, precision, rows, length, passes):
    model = StableLM(SMALL)
    model.lm_head.chunk = 64
    if precision == "bf16":
        model.compute_dtype = torch.bfloat16
    for index, block in enumerate(model.model.layers):
        if recompute == "full" or (recompute == 2 and index % 2 == 0):
            block.forward = recomputed(block.forward)
    optimizer = make_optimizer(model, OptimizerConfig())
    ids = torch.randint(0, SMALL.vocab_size, (rows, length + 1))

    def step(ids: torch.Tensor) -> None:
        for _ in range(passes):
            (model(ids[:, :-1], labels=ids[:, 1:]) / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with Alive():
        step(ids[:1, :9])  # the moments exist from here on
    alive = Alive()
    for tensor in (*model.parameters(), *(v for state in optimizer.state.values() for v in state.values())):
        alive.see(tensor.detach())
    layout = make_layout(
        SMALL, 1, sequences=rows * passes, micro_sequences=rows, sequence_length=length, precision=precision,
        recompute=recompute, loss_chunk=64,
    )  # fmt: skip
    need = memory_of(SMALL, layout)
    assert alive.now == pytest.approx(need.weights + need.moments, rel=1e-4)  # and the step counts
    with alive:
        step(ids)
    assert 0.98 < need.total / alive.peak < 1.07
