"""What happens between two products, beside PyTorch's operators; and prefill's 8-bit rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.kernels.cpu.packing import dense, pack, quantize_activations
from stablelm.kernels.cpu.prefill import as_rows, product_by_rows
from stablelm.kernels.cpu.products import room
from stablelm.kernels.cpu.rows import normalize, ready, swiglu

EPS = np.array([1e-5], np.float32)
GROUPS = st.sampled_from([32, 64, 128])


def buffer(values):
    """Rows as the kernels keep them: padded with zeros to 128 columns."""
    return torch.nn.functional.pad(values, (0, -values.shape[1] % 128)).contiguous().numpy()


def given_of(given_, bits, group, width):
    """What `ready` wrote, as the numbers that it means."""
    whole, steps, less, wide = (torch.from_numpy(part) for part in given_)
    if bits == 16:
        return wide[:, :width].reshape(len(wide), -1, 2, 16).transpose(2, 3).reshape(len(wide), -1)
    groups = -(-width // group)
    levels = whole[:, : groups * group].view(len(whole), groups, group).float()
    assert torch.equal(less[:, :groups].float(), -(1 << bits - 1) * levels.sum(2))
    return (levels * steps[:, :groups, None]).flatten(1)[:, :width]


def same_levels(got, x, group):
    """As the twin rounds x; a number halfway between two levels may go to either, it is rare."""
    whole, steps = quantize_activations(x, group)
    wanted = (whole * steps.unsqueeze(2)).flatten(1)[:, : x.shape[1]]
    step = steps.repeat_interleave(group, 1)[:, : x.shape[1]]
    wrong = (got - wanted).abs() > 1e-6 * wanted.abs()
    return bool(((got - wanted).abs() <= 1.001 * step).all()) and int(wrong.sum()) <= 1 + wrong.numel() // 500


@settings(max_examples=30)
@given(bits=st.sampled_from([4, 8, 16]), group=GROUPS, width=st.integers(1, 400), seed=st.integers(0, 99))
def test_a_row_is_made_ready_as_the_twin_rounds_it(bits, group, width, seed):
    group, width = (32, -(-width // 32) * 32) if bits == 16 else (group, width)
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 5 - 2)
    place = room(3, width)
    for row in range(3):
        ready(buffer(x), row, width, bits, group, place)
    got = given_of(place, bits, group, width)
    assert torch.equal(got, x) if bits == 16 else same_levels(got, x, group)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 5), width=st.integers(1, 20).map(lambda n: 16 * n), both=st.booleans(),
    shift=st.sampled_from([0.0, 50.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_norm_is_pytorchs(rows, width, both, shift, seed):
    draw = torch.Generator().manual_seed(seed)
    x, more, also = (torch.randn(rows, width, generator=draw) + shift for _ in range(3))
    weights = torch.randn(2, width, generator=draw)
    stream, out, place = buffer(x), buffer(torch.zeros(rows, width)), room(rows, width)
    normalize(rows, stream, buffer(more), buffer(also), both, weights.numpy(), EPS, out, 8, 32, place)
    total = x + more + also if both else x + more
    torch.testing.assert_close(torch.from_numpy(stream)[:, :width], total, rtol=1e-6, atol=1e-5)
    wanted = torch.nn.functional.layer_norm(total.double(), (width,), *weights.double(), 1e-5).float()
    got = torch.from_numpy(out)[:, :width]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=3e-4 if shift else 2e-5)
    assert same_levels(given_of(place, 8, 32, width), got, 32)


@settings(max_examples=30)
@given(rows=st.integers(1, 4), width=st.integers(1, 300), scale=st.sampled_from([0.1, 3.0, 40.0]))
def test_swiglu_is_pytorchs(rows, width, scale):
    draw = torch.Generator().manual_seed(width)
    gate, up = (torch.randn(rows, width, generator=draw) * scale for _ in range(2))
    out, place = buffer(gate), room(rows, width)
    swiglu(rows, out, buffer(up), width, 8, 64, place)
    wanted = torch.nn.functional.silu(gate.double()) * up.double()
    got = torch.from_numpy(out)[:, :width]
    torch.testing.assert_close(got, wanted.float(), rtol=1e-6, atol=1e-30)
    assert same_levels(given_of(place, 8, 64, width), got, 64)


def test_the_exponential_keeps_to_its_promise():
    """Through silu: exp(−g) = g / silu(g) − 1 is too coarse near 0, so sigmoid is compared instead."""
    g = torch.linspace(-86, 86, 4001)[None]
    out = buffer(g)
    swiglu(1, out, buffer(torch.ones_like(g)), 4001, 8, 32, room(1, 4001))
    wanted = (g.double() * torch.sigmoid(g.double()))[0]
    wrong = (torch.from_numpy(out)[0, :4001].double() - wanted).abs() / wanted.abs().clamp(min=1e-300)
    assert float(wrong.max()) < 5e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(value):
    x = torch.randn(1, 64)
    x[0, 40] = value
    place = room(1, 64)
    ready(buffer(x), 0, 64, 4, 32, place)
    assert np.isfinite(place[1][0, 0]) and np.isnan(place[1][0, 1])
    gate = buffer(x)
    swiglu(1, gate, buffer(torch.ones(1, 64)), 64, 8, 32, place)
    assert value < 0 or not np.isfinite(gate[0, 40])
    out = buffer(torch.zeros(1, 64))
    normalize(1, buffer(x), out, out, False, torch.ones(2, 64).numpy(), EPS, out.copy(), 8, 32, place)
    assert np.isnan(place[1][0, :2]).all()


@settings(max_examples=30)
@given(
    bits=st.sampled_from([4, 8]), group=GROUPS, rows=st.integers(1, 100), columns=st.integers(1, 300),
    batch=st.integers(17, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_prefill_by_rows_is_a_product_of_eight_bit_rows(bits, group, rows, columns, batch, seed):
    draw = torch.Generator().manual_seed(seed)
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    levels = torch.randint(low, high + 1, (rows, columns), generator=draw)
    packed = pack(levels, torch.randn(rows, -(-columns // group), generator=draw), bits, group)
    whole, steps = as_rows(packed)
    assert whole.shape == (rows, packed.padded) and not whole[:, columns:].any()
    wrong = (whole[:, :columns] * steps[:, None] - dense(packed)).abs()
    assert bool((wrong <= 0.5001 * steps[:, None]).all())
    x = torch.randn(batch, columns, generator=draw)
    step = x.abs().amax(1, keepdim=True) / 127
    wanted = ((x / step).round().double() @ whole[:, :columns].double().T) * step * steps
    got = product_by_rows(packed, x)
    torch.testing.assert_close(got, wanted.float(), rtol=1e-5, atol=1e-6 * columns)
    half = x.bfloat16()
    assert torch.equal(product_by_rows(packed, half), product_by_rows(packed, half.float()).bfloat16())


def test_prefill_by_rows_keeps_what_is_not_finite_in_its_row():
    packed = pack(torch.randint(-8, 8, (40, 64)), torch.rand(40, 2) + 0.1, 4, 32)
    x = torch.randn(20, 64)
    alone = product_by_rows(packed, x)
    x[3, 9] = float("nan")
    out = product_by_rows(packed, x)
    assert not out[3].isfinite().any()
    keep = torch.arange(20) != 3
    assert torch.equal(out[keep], alone[keep])
