"""The matrix products beside their plain twin, over random shapes; and on lesser instruction sets."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.kernels.cpu import vectors
from stablelm.kernels.cpu.packing import DENSE, dense, pack, plain_product, shapes, unpack
from stablelm.kernels.cpu.products import product


def example(bits, group, rows, columns, seed=0):
    """A random packed matrix, with the extreme levels in it, and what it was made from."""
    draw = torch.Generator().manual_seed(seed)
    if bits == DENSE:
        rows, columns = max(rows, 16), -(-columns // 32) * 32
        return torch.randn(rows, columns, generator=draw).bfloat16(), None, None
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    levels = torch.randint(low, high + 1, (rows, columns), generator=draw)
    levels[0, 0], levels[-1, -1] = low, high
    scale = torch.rand(rows, -(-columns // group), generator=draw) + 0.01
    return pack(levels, scale, bits, group), levels, scale


def close(ours, theirs):
    return bool(((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-30).all())


@settings(max_examples=60)
@given(
    bits=st.sampled_from([4, 8, DENSE]),
    group=st.sampled_from([32, 64, 128]),
    rows=st.integers(1, 150),
    columns=st.integers(1, 400),
    batch=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_a_product_is_its_twins(bits, group, rows, columns, batch, seed):
    packed, _, _ = example(bits, group, rows, columns, seed)
    rows, columns = packed.shape if bits == DENSE else (rows, columns)
    x = torch.randn(batch, columns, generator=torch.Generator().manual_seed(seed))
    ours = product(packed, x)
    assert ours.shape == (batch, rows)
    assert close(ours, plain_product(packed, x))


@given(
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 128]),
    rows=st.integers(1, 80),
    columns=st.integers(1, 300),
)
def test_packing_loses_nothing(bits, group, rows, columns):
    packed, levels, scale = example(bits, group, rows, columns)
    assert (tuple(packed.weight.shape), tuple(packed.scale.shape)) == shapes(rows, columns, bits, group)
    back, steps = unpack(packed)
    assert torch.equal(back.long(), levels)
    assert torch.equal(steps, scale.bfloat16().float())
    wide = steps.repeat_interleave(group, 1)[:, :columns]
    assert torch.equal(dense(packed), levels * wide)


def test_the_largest_sums_do_not_overflow():
    columns = 2560
    for bits, low in ((4, -8), (8, -127)):
        packed = pack(torch.full((40, columns), low), torch.ones(40, 20), bits, 128)
        x = torch.full((3, columns), -5.0)
        assert torch.allclose(product(packed, x), torch.tensor(-5.0 * low * columns), rtol=1e-5)


def test_zeros_and_tiny_and_huge_values():
    packed, _, _ = example(4, 32, 64, 96)
    x = torch.zeros(3, 96)
    assert torch.equal(product(packed, x), torch.zeros(3, 64))
    for size in (1e-25, 1e25):
        x = torch.randn(2, 96) * size
        assert close(product(packed, x), plain_product(packed, x))


@pytest.mark.parametrize("bits", [4, 8, DENSE])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_stays_in_its_row(bits, value):
    packed, _, _ = example(bits, 64, 64, 192)
    x = torch.randn(3, 192)
    alone = product(packed, x)
    x[1, 5] = value
    out = product(packed, x)
    assert not out[1].isfinite().any()
    assert torch.equal(out[[0, 2]], alone[[0, 2]])


@pytest.mark.parametrize("bits", [4, 8, DENSE])
def test_a_row_does_not_depend_on_its_neighbours(bits):
    packed, _, _ = example(bits, 64, 96, 320)
    x = torch.randn(35, 320)
    together = product(packed, x)
    for count in (1, 2, 3, 5, 7, 8, 11, 16, 17, 32):
        assert torch.equal(product(packed, x[:count]), together[:count])


SCRIPT = """
import torch
from tests.kernels.cpu.test_products import close, example, product, plain_product, vectors
for bits in (4, 8):
    for rows, columns, group, batch in ((48, 96, 32, 1), (37, 200, 64, 15)):
        packed, _, _ = example(bits, group, rows, columns)
        x = torch.randn(batch, columns)
        assert close(product(packed, x), plain_product(packed, x)), (bits, rows)
print(vectors.INSTRUCTIONS)
"""


def run(name, cache, root, more=""):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + more],
        cwd=root,
        env={
            **os.environ,
            "STABLELM_CPU_KERNELS": name,
            "NUMBA_CACHE_DIR": str(cache),
            "PYTHONPATH": str(root),
        },
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", [name for name in vectors.ABLE[1:] if name != "portable"])
def test_lesser_instruction_sets_compute_the_same(name, tmp_path, root):
    done = run(name, tmp_path, root)
    assert done.stdout == f"{name}\n", done.stderr


def test_an_instruction_set_that_is_not_there_is_refused(tmp_path, root):
    done = run("avx1024", tmp_path, root)
    assert "InputError: STABLELM_CPU_KERNELS=avx1024: this CPU can run" in done.stderr
