"""Attention over a cache beside PyTorch's, over random shapes, in each of its kinds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.kernels.cpu.attention import attend

KINDS = {"fp32": 4, "bf16": 2, "int8": 1}


class Held:
    """Keys and values of some texts, as the kernel keeps them and as plain tensors."""

    def __init__(self, texts, shared, size, tokens, kind):
        self.kind, self.size = KINDS[kind], size
        padded, tokens = -(-size // 16) * 16, -(-tokens // 16) * 16
        self.store = np.zeros((2, texts, shared, tokens, padded * self.kind), np.uint8)
        self.scales = np.zeros((2, texts, shared, tokens), np.float32)

    def dense(self, which, text, count):
        """[K, count, D]."""
        raw = torch.from_numpy(self.store[which, text, :, :count])
        if self.kind == 4:
            return raw.view(torch.float32)[..., : self.size]
        if self.kind == 2:
            return raw.view(torch.bfloat16)[..., : self.size].float()
        scale = torch.from_numpy(self.scales[which, text, :, :count])
        return raw.view(torch.int8)[..., : self.size] * scale[..., None]

    def run(self, starts, q, k, v, cos, sin, first=0, norms=None):
        rows, heads, _ = q.shape
        padded = self.store.shape[4] // self.kind
        room = np.zeros((rows, heads, 2 * padded + 16), np.float32)
        out = np.zeros((rows, heads * self.size), np.float32)
        none = np.zeros((0, 0), np.float32)
        q_norm, k_norm = norms if norms else (none, none)
        given_ = [x.clone().numpy() for x in (q, k, v)]
        attend(
            np.array(starts), first, rows // len(starts), *given_, cos.numpy(), sin.numpy(), q_norm, k_norm,
            1e-5, self.store, self.scales, self.kind, room, out,
        )  # fmt: skip
        return torch.from_numpy(out).view(rows, heads, self.size)


def rotated(x, cos, sin):
    """x [N, H, D], cos [N, R]."""
    half = cos.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None], sin[:, None]
    return torch.cat([first * c - second * s, second * c + first * s, rest], -1)


def plain(q, k, v):
    """One query [H, D] over k, v [K, T, D]."""
    k, v = (x.repeat_interleave(len(q) // len(x), 0).double() for x in (k, v))
    weights = ((k @ q.double()[:, :, None])[..., 0] / q.shape[1] ** 0.5).softmax(-1)
    return (weights[:, None] @ v)[:, 0].float()


def drawn(draw, *shape):
    return torch.randn(*shape, generator=draw)


def turn(draw, rows, half):
    angle = drawn(draw, rows, half)
    return angle.cos(), angle.sin()


@settings(max_examples=30)
@given(
    kind=st.sampled_from(sorted(KINDS)), size=st.sampled_from([8, 24, 64, 80, 128, 160]),
    shared=st.integers(1, 3), each=st.integers(1, 3),
    before=st.lists(st.integers(0, 70), min_size=1, max_size=3), count=st.integers(1, 5),
    scale=st.sampled_from([0.3, 1.0, 6.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_new_tokens_are_kept_and_see_what_they_may(kind, size, shared, each, before, count, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    texts, half = len(before), size // 8
    held = Held(texts, shared, size, max(before) + count, kind)
    for number, length in enumerate(before):  # what was there: one text and one token at a time
        for token in range(length):
            q, k, v = drawn(draw, 1, shared * each, size), *(drawn(draw, 1, shared, size) for _ in range(2))
            held.run([token], q, k * scale, v, *turn(draw, 1, half), first=number)
    rows = texts * count
    q, k, v = drawn(draw, rows, shared * each, size), *(drawn(draw, rows, shared, size) for _ in range(2))
    cos, sin = turn(draw, rows, half)
    got = held.run(before, q, k * scale, v, cos, sin)
    wide, keys = rotated(q, cos, sin), rotated(k * scale, cos, sin)
    error = {"fp32": 1e-6, "bf16": 2**-8, "int8": 0.502 / 127}[kind]
    for number, length in enumerate(before):
        for step in range(count):
            row, seen = number * count + step, length + step + 1
            for which, new in ((0, keys), (1, v)):  # what was appended is what was given, rounded
                wrong = (held.dense(which, number, seen)[:, -1] - new[row]).abs()
                assert bool((wrong <= error * new[row].abs().amax(-1, keepdim=True) + 1e-6).all())
            wanted = plain(wide[row], held.dense(0, number, seen), held.dense(1, number, seen))
            torch.testing.assert_close(got[row], wanted, rtol=1e-4, atol=2e-5)


def test_a_query_does_not_depend_on_what_is_beside_it():
    draw = torch.Generator().manual_seed(5)
    q, k, v = drawn(draw, 3 * 40, 4, 80), *(drawn(draw, 3 * 40, 2, 80) for _ in range(2))
    cos, sin = turn(draw, 120, 10)
    together = Held(3, 2, 80, 40, "int8")
    whole = together.run([0, 0, 0], q, k, v, cos, sin)
    alone = Held(2, 2, 80, 64, "int8")
    at = slice(40, 80)
    for token in range(40):
        one = slice(40 + token, 41 + token)
        got = alone.run([token], q[one], k[one], v[one], cos[one], sin[one], first=1)
        assert torch.equal(got[0], whole[40 + token])
    assert np.array_equal(alone.store[:, 1, :, :40], together.store[:, 1, :, :40])
    again = Held(1, 2, 80, 40, "int8").run([0], q[at], k[at], v[at], cos[at], sin[at])
    assert torch.equal(again, whole[at])


def test_a_norm_for_each_head_comes_before_the_rotation():
    draw = torch.Generator().manual_seed(6)
    q, k, v = drawn(draw, 5, 4, 32) * 3, drawn(draw, 5, 2, 32) + 1, drawn(draw, 5, 2, 32)
    cos, sin = turn(draw, 5, 4)
    norms = drawn(draw, 4, 32), drawn(draw, 2, 32)
    got = Held(1, 2, 32, 5, "fp32").run([0], q, k, v, cos, sin, norms=[n.numpy() for n in norms])
    q, k = (
        torch.nn.functional.layer_norm(x, (32,), eps=1e-5) * n for x, n in zip((q, k), norms, strict=True)
    )
    wanted = Held(1, 2, 32, 5, "fp32").run([0], q, k, v, cos, sin)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_extreme_scores_and_what_is_not_finite(kind):
    draw = torch.Generator().manual_seed(7)
    q, k, v = drawn(draw, 20, 1, 16) * 1e4, drawn(draw, 20, 1, 16) * 1e4, drawn(draw, 20, 1, 16)
    flat = torch.ones(20, 2), torch.zeros(20, 2)
    held = Held(1, 1, 16, 32, kind)
    got = held.run([0], q, k, v, *flat)
    for row in range(20):
        wanted = plain(q[row], held.dense(0, 0, row + 1), held.dense(1, 0, row + 1))
        torch.testing.assert_close(got[row], wanted, rtol=1e-3, atol=1e-4)
    k[0, 0, 3] = float("nan")
    assert not Held(1, 1, 16, 32, kind).run([0], q, k, v, *flat).isfinite().any()
    zeros = torch.zeros(20, 1, 16)
    assert torch.equal(Held(1, 1, 16, 32, kind).run([0], q, zeros, zeros, *flat), zeros)
