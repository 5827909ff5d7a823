"""Triton's kernels in its interpreter, in float32, beside their twins in `model/`: run by `test_gpu.py`, in a
process with TRITON_INTERPRET=1, which Triton reads when a kernel is defined."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import ModelConfig
from stablelm.kernels.cpu.packing import dense, pack
from stablelm.kernels.cpu.rounding import round_groups
from stablelm.kernels.gpu import norm, rotary, swiglu
from stablelm.kernels.gpu.expansion import expand
from stablelm.model import StableLM
from stablelm.model.feedforward import swiglu as plain_swiglu
from stablelm.model.normalization import LayerNorm
from stablelm.model.rotary import Rotary

CLOSE = 1e-5
few = settings(max_examples=6)


def check(ours, theirs, inputs):
    """Outputs and all gradients for a random direction."""
    ours, theirs = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (ours, theirs))
    along = [torch.randn_like(x) for x in ours]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=CLOSE, atol=CLOSE)
    found = torch.autograd.grad(ours, inputs, along, retain_graph=True)
    for a, b in zip(found, torch.autograd.grad(theirs, inputs, along), strict=True):
        torch.testing.assert_close(a, b, rtol=CLOSE, atol=CLOSE)


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 1300), st.integers(0, 99))
def test_swiglu(shape, width, seed):
    torch.manual_seed(seed)
    gate, up = leaf(*shape, width), leaf(*shape, width)
    check(swiglu.swiglu(gate, up), plain_swiglu(gate, up), (gate, up))


def test_swiglu_of_tensors_that_are_not_contiguous():
    gate, up = leaf(6, 5), leaf(5, 6)
    check(swiglu.swiglu(gate.T, up), plain_swiglu(gate.T, up), (gate, up))


@few
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 6), st.sampled_from([(80, 20), (64, 16), (16, 16),
       (10, 2), (160, 40)]), st.booleans(), st.integers(0, 99))  # fmt: skip
def test_rotation(batch, length, heads, sizes, own, seed):
    torch.manual_seed(seed)
    width, rotated = sizes
    projected = leaf(batch, length, heads * width)
    x = projected.view(batch, length, heads, width).transpose(1, 2)
    turn = Rotary(torch.randint(0, 4096, (batch, length) if own else (length,)), rotated, 10_000.0)
    ours = rotary.rotate(x, turn.cos, turn.sin)
    assert ours.shape == x.shape
    check(ours, turn(x), (projected,))


def test_the_gradient_of_a_rotation_takes_any_layout():
    x = leaf(1, 2, 3, 8)
    turn = Rotary(torch.arange(3), 4, 10_000.0)
    along = torch.randn(1, 2, 8, 3).transpose(2, 3)
    found = torch.autograd.grad(rotary.rotate(x, turn.cos, turn.sin), x, along)[0]
    torch.testing.assert_close(found, torch.autograd.grad(turn(x), x, along)[0], rtol=CLOSE, atol=CLOSE)


@few
@given(st.integers(1, 600), st.integers(2, 130), st.booleans(), st.integers(0, 99))
def test_sum_and_norm(rows, width, bias, seed):
    torch.manual_seed(seed)
    rows = rows if width < 10 else rows % 20 + 1  # the interpreter takes a millisecond a row
    x, delta, layer = leaf(rows, width), leaf(rows, width), LayerNorm(width, 1e-5, bias)
    torch.nn.init.normal_(layer.weight)
    inputs = [x, delta, layer.weight]
    if bias:
        torch.nn.init.normal_(layer.bias)
        inputs.append(layer.bias)
    spread = (x + delta).detach().std(-1, correction=0).min()
    if spread < 0.05:  # 1/σ magnifies the rounding of the sum, here and there
        return
    ours = norm.add_norm(x, delta, layer.weight, layer.bias, layer.eps)
    theirs = layer.after(x, delta)
    along = [torch.randn_like(x) for _ in ours]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=CLOSE, atol=CLOSE / float(min(spread, torch.tensor(1.0))))
    found = torch.autograd.grad(ours, inputs, along)
    scale = max(1.0, rows**0.5) / float(min(spread, torch.tensor(1.0))) ** 2
    for a, b in zip(found, torch.autograd.grad(theirs, inputs, along), strict=True):
        torch.testing.assert_close(a, b, rtol=CLOSE, atol=CLOSE * scale)


def test_sum_and_norm_at_the_width_of_the_model():
    x, delta, layer = leaf(2, 3, 2560), leaf(2, 3, 2560), LayerNorm(2560, 1e-5)
    inputs = (x, delta, layer.weight, layer.bias)
    check(norm.add_norm(x, delta, layer.weight, layer.bias, 1e-5), layer.after(x, delta), inputs)


@few
@given(
    st.integers(1, 90),
    st.integers(1, 300),
    st.sampled_from([4, 8]),
    st.sampled_from([32, 64, 128]),
    st.data(),
)
def test_packed_matrices_made_dense(rows, columns, bits, group, data):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    packed = pack(*round_groups(weight, bits, group), bits, group)
    tiles, groups = (
        range(first, data.draw(st.integers(first + 1, count)))
        for count in (-(-rows // 16), packed.scale.shape[1])
        for first in [data.draw(st.integers(0, count - 1))]
    )
    some = dense(packed)[16 * tiles.start : 16 * tiles.stop]
    wanted = some[:, group * groups.start : group * groups.stop]
    assert torch.equal(expand(packed, tiles, groups, torch.float32), wanted)


@pytest.mark.parametrize("operator", ["swiglu", "rotate", "add_norm"])
def test_pytorch_may_treat_them_as_operators(operator):
    """Fake tensors, compiled graphs, autograd: PyTorch's own checks."""
    x, width = leaf(2, 3, 4, 8), leaf(8)
    turn = Rotary(torch.arange(4), 4, 10_000.0)
    function, inputs = {
        "swiglu": (swiglu.swiglu, (x, leaf(2, 3, 4, 8))),
        "rotate": (rotary.rotate, (x, turn.cos, turn.sin)),
        "add_norm": (norm._add_norm, (x, leaf(2, 3, 4, 8), width, None, 1e-5)),
    }[operator]
    torch.library.opcheck(function, inputs)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_network_learns_the_same_from_them(parallel):
    config = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, use_parallel_residual=parallel,
    )  # fmt: skip
    ids = torch.randint(0, 64, (2, 9))
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9])
    found = {}
    for name in ("pytorch", "triton"):
        model = StableLM(config, seed=3)
        assert model.use_kernels(name).name == name
        loss = model(ids[:, :-1], labels=ids[:, 1:], document_ids=documents[:, :-1])
        loss.backward()
        found[name] = [loss.detach(), *(p.grad for p in model.parameters())]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=CLOSE, atol=CLOSE)
