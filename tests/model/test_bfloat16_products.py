"""bf16 products by way of float32: PyTorch's numbers to rounding, with less kept, and only where allowed."""

import copy

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from stablelm import ModelConfig, StableLM
from stablelm.config import InputError
from stablelm.config.adapter import AdapterConfig
from stablelm.model import adapters
from stablelm.model import bfloat16_products as products
from stablelm.model.backends import Documents, sdpa
from stablelm.model.head import chunked_loss
from stablelm.model.predictions import predictions

HALF = torch.bfloat16
ROUNDING = 2.0**-8  # of one number to bfloat16, and some to spare
CONFIG = ModelConfig(
    vocab_size=97, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4
)
IDS = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=[True, False], ids=["widened", "pytorch"])
def widened(request, monkeypatch):
    """Products here, in pieces of 16 rows, or PyTorch's: both mean the same."""
    monkeypatch.setattr(products, "WIDENED", request.param)
    monkeypatch.setattr(products, "PIECE", 16)
    return request.param


@pytest.fixture
def switch(monkeypatch):
    monkeypatch.setattr(products, "PIECE", 16)
    return lambda on: monkeypatch.setattr(products, "WIDENED", on)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(found, exact, sizes):
    """One rounding to bfloat16 of what float32 sums make of terms of these sizes."""
    bound = ROUNDING * exact.abs() + 1e-5 * sizes
    if found.dtype == torch.float32:
        bound = 1e-5 * sizes
    assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("kept", [HALF, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(9, 33), (2, 37, 40), (3, 1), (70, 7)])
@pytest.mark.parametrize("rows", [1, 203])
def test_product_and_gradients_are_those_of_float64(widened, kept, biased, shape, rows):
    x = random(*shape).to(HALF).requires_grad_()
    weight = random(rows, shape[-1], seed=1).to(kept).requires_grad_()
    bias = random(rows, seed=2).to(kept).requires_grad_() if biased else None
    upstream = random(*shape[:-1], rows, seed=3).to(HALF)
    y = products.linear(x, weight, bias)
    y.backward(upstream)
    assert (y.dtype, y.shape, x.grad.dtype, weight.grad.dtype) == (HALF, upstream.shape, HALF, kept)

    a, w, g = x.detach().double(), weight.detach().to(HALF).double(), upstream.double()
    b = 0 if bias is None else bias.detach().to(HALF).double()
    if widened or bias is None:
        near(y.detach(), a @ w.T + b, a.abs() @ w.abs().T + abs(b))
    near(x.grad, g @ w, g.abs() @ w.abs())
    g, a = g.flatten(0, -2), a.flatten(0, -2)
    if widened or kept == HALF:  # PyTorch's is rounded to bfloat16 first
        near(weight.grad, g.T @ a, g.abs().T @ a.abs())
    if bias is not None and (widened or kept == HALF):
        near(bias.grad, g.sum(0), g.abs().sum(0))


def test_any_strides(widened):
    weight, upstream = random(50, 24, seed=1).to(HALF), random(50, 11).to(HALF)
    for x in (
        random(24, 11).to(HALF).T,
        random(11, 48).to(HALF)[:, ::2],
        random(1, 24).to(HALF).expand(11, 24),
    ):
        x = x.detach().requires_grad_()
        for w in (weight, weight.T.contiguous().T, torch.cat([weight, weight], 1)[:, ::2]):
            y = products.linear(x, w)
            for g in (upstream.T, torch.ones((), dtype=HALF).expand(11, 50)):
                (d_x,) = torch.autograd.grad(y, x, g, retain_graph=True)
                near(d_x, g.double() @ w.double(), g.double().abs() @ w.double().abs())
            near(
                y.detach(), x.detach().double() @ w.double().T, x.detach().double().abs() @ w.double().abs().T
            )


def test_nothing_of_no_rows(widened):
    x = torch.empty(0, 24, dtype=HALF, requires_grad=True)
    weight = random(50, 24).to(HALF).requires_grad_()
    products.linear(x, weight).sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.any()


@pytest.mark.parametrize(
    ("learnt", "kept"), [("x", {"weight"}), ("weight", {"x"}), ("x weight", {"x", "weight"})]
)
def test_what_is_kept_for_the_backward_pass(switch, learnt, kept):
    switch(True)
    factors = {"x": random(20, 24).to(HALF), "weight": random(50, 24, seed=1)}
    for name in learnt.split():
        factors[name].requires_grad_()
    places, held = {tensor.data_ptr(): name for name, tensor in factors.items()}, set()

    def pack(tensor):
        held.add(places[tensor.data_ptr()])  # a KeyError for anything else
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = products.linear(factors["x"], factors["weight"])
    assert held == kept
    y.backward(torch.ones_like(y))
    assert {name for name, tensor in factors.items() if tensor.grad is not None} == set(learnt.split())


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        out = operator(*arguments, **(keywords or {}))
        if isinstance(out, torch.Tensor) and not operator.is_view and "empty" not in operator.__name__:
            self.bytes = max(self.bytes, out.numel() * out.itemsize)
        return out


@pytest.mark.parametrize("kept", [HALF, torch.float32])
def test_a_weight_is_nowhere_whole(switch, kept):
    switch(True)
    x, y, weight = random(8, 512).to(HALF), random(8, 512).to(HALF), random(512, 512).to(kept)
    with Largest() as largest:
        products._times(x, weight, None, torch.empty(8, 512, dtype=HALF))
        products.back(y, weight, torch.empty(8, 512, dtype=HALF))
    assert 0 < largest.bytes <= 16 * 512 * 4


def test_only_where_it_is_meant(switch):
    switch(True)
    x, weight = random(20, 24).to(HALF), random(50, 24).to(HALF)
    assert products.widens(x, weight) and products.widens(x, torch.nn.Parameter(weight))
    assert not products.widens(x.float(), weight) and not products.widens(x.to("meta"), weight.to("meta"))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x), mode.from_tensor(weight)
        assert not products.widens(*fake) and products.linear(*fake).shape == (20, 50)
    few = x[: products.FEW - 1]
    assert torch.equal(products.linear(few, weight), functional.linear(few, weight))
    switch(False)
    assert not products.widens(x, weight)
    assert torch.equal(products.linear(x, weight), functional.linear(x, weight))


def test_not_in_a_compiled_graph(switch):
    switch(True)
    graphs = []

    def backend(graph, _):
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    torch.compile(products.linear, backend=backend, fullgraph=True)(random(20, 24).to(HALF), random(50, 24))
    assert "linear" in graphs[0] and "widened" not in graphs[0]


def test_the_variable_decides(monkeypatch):
    for wish, wanted in (("1", True), ("0", False)):
        monkeypatch.setenv(products.VARIABLE, wish)
        assert products._wanted() is wanted
    monkeypatch.setenv(products.VARIABLE, "yes")
    with pytest.raises(InputError, match="STABLELM_WIDEN_BF16=yes"):
        products._wanted()
    monkeypatch.delenv(products.VARIABLE)
    for able in (True, False):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda able=able: able, raising=False
        )
        assert products._wanted() is not able


def off(found, exact):
    """How far, by the whole tensors' lengths."""
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


def test_attention_is_nearer_than_in_bfloat16(switch):
    upstream = random(2, 4, 40, 16, seed=3).to(HALF)
    for mask in (None, Documents(((9, 40), (25, 40)))):

        def all_of(on, dtype, mask=mask):
            switch(on)
            parts = [
                random(2, heads, 40, 16, seed=heads).to(HALF).to(dtype).requires_grad_() for heads in (4, 2)
            ]
            q, k, v = parts[0], parts[1], parts[1] * 2
            out = sdpa(q, k, v, mask)
            assert out.dtype == dtype
            return out.detach(), *torch.autograd.grad(out, parts, upstream.to(dtype))

        exact = all_of(False, torch.float64)
        here, there = off(all_of(True, HALF), exact), off(all_of(False, HALF), exact)
        pairs = list(zip(here, there, strict=True))
        assert all(a <= b and a < ROUNDING for a, b in pairs) and sum(here) < sum(there), pairs


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_losses_of_the_head(switch, smoothing):
    labels = torch.randint(97, (41,), generator=torch.Generator().manual_seed(7))

    def all_of(on, dtype):
        switch(on)
        hidden = random(41, 64).to(HALF).to(dtype).requires_grad_()
        weight = (random(97, 64, seed=1) / 4).to(HALF).to(dtype).requires_grad_()
        loss = chunked_loss(hidden, weight, labels, 16, smoothing)
        told = predictions(hidden, weight, labels)[0]
        return (
            loss.detach()[None], told.detach(), *torch.autograd.grad(loss, (hidden, weight)),
            *torch.autograd.grad(told.square().sum(), (hidden, weight)),
        )  # fmt: skip

    exact = all_of(False, torch.float64)
    here, there = off(all_of(True, HALF), exact), off(all_of(False, HALF), exact)
    pairs = list(zip(here, there, strict=True))
    assert all(a <= max(1.2 * b, 1e-4) and a < 2 * ROUNDING for a, b in pairs), pairs


def network(seed=4):
    model = StableLM(CONFIG, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # as large as trained ones, so that all counts
            parameter.mul_(6 if "proj.weight" in name else 1)
    return model.to(HALF)


def test_the_network_is_as_near_to_float32_as_pytorchs(switch):
    half = network()
    exact = copy.deepcopy(half).double()
    labels = IDS.roll(-1, 1)

    def all_of(model, on):
        switch(on)
        model.zero_grad()
        logits, loss = model(IDS).detach(), model(IDS, labels=labels)
        loss.backward()
        return logits, loss.detach()[None], *(p.grad for p in model.parameters())

    wanted = all_of(exact, False)
    reference, found = (tuple(x.clone() for x in all_of(half, on)) for on in (False, True))
    error, own = (found[0] - reference[0]).abs().max(), (reference[0] - wanted[0]).abs().max()
    assert 0 < error <= own
    top = reference[0].topk(2)
    clear = top.values[..., 0] - top.values[..., 1] > 2 * error
    assert clear.float().mean() > 0.2
    assert torch.equal(found[0].argmax(-1)[clear], top.indices[..., 0][clear])
    here, there = off(found, wanted), off(reference, wanted)
    assert here[1] < 1e-3
    assert sum(here[2:]) <= 1.1 * sum(there[2:])


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_step_of_an_adapter(switch, monkeypatch, method):
    half = network()
    adapters.attach(half, AdapterConfig(rank=4, method=method))
    learnt = {name: p for name, p in half.named_parameters() if p.requires_grad}
    for number, parameter in enumerate(learnt.values()):
        parameter.data = parameter.data.float() + (random(*parameter.shape, seed=number) / 20).to(HALF)
    exact = copy.deepcopy(half).double()

    def gradients(model, on):
        switch(on)
        model.zero_grad()
        model(IDS, labels=IDS.roll(-1, 1)).backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    wanted = gradients(exact, False)
    here, there = off(gradients(half, True), wanted), off(gradients(half, False), wanted)
    assert sum(here) <= 1.1 * sum(there) and sum(here) < 0.05 * len(here)

    calls = []
    keep = products.linear
    monkeypatch.setattr(adapters, "linear", lambda x, weight: calls.append(keep(x, weight)) or calls[-1])
    gradients(half, True)
    names = {type(y.grad_fn).__name__ for y in calls}
    assert len(calls) == 2 * 7 * 3 and len(names) == 1 and "widened" in names.pop()
