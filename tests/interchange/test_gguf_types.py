"""Quantised blocks: the bytes of two other implementations, and the values they mean."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from stablelm.interchange.gguf_types import LARGEST, encode, quantize, stored_bytes

F = np.float32


def samples() -> dict[str, np.ndarray]:
    random = np.random.default_rng(4)
    normal = random.standard_normal((6, 512)).astype(F)
    sparse = np.where(random.random(normal.shape) < 0.7, F(0), normal)
    sparse[2], sparse[3, :256], sparse[4, 64:96] = 0, F(1e-16), -0.0
    ties = (random.integers(-8, 9, normal.shape) / 8).astype(F)
    return {
        "normal": normal * F(0.02),
        "heavy tails": random.standard_t(2, normal.shape).astype(F),
        "zeros and blocks of zeros": sparse,
        "ties": ties,
        "bf16": torch.from_numpy(normal).bfloat16().float().numpy(),
        "large": normal * F(9e3),
        "small": normal * F(1e-7),
        "one sign": -np.abs(normal),
    }


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", samples())
def test_the_bytes_are_those_of_the_gguf_package(kind, name):
    values = samples()[name]
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(values, GGMLQuantizationType[kind])
    assert np.array_equal(quantize(values, kind), expected.reshape(-1))


def q6_k_plainly(block: np.ndarray) -> bytes:
    """One block of 256 values, a value at a time, as `quantize_row_q6_K_ref` of ggml-quants.c does it."""

    def level(value: F) -> int:
        return max(-32, min(31, int(np.rint(value))))

    levels, scales = [0] * 256, []
    for start in range(0, 256, 16):
        x = block[start : start + 16]
        peak = x[np.abs(x).argmax()]
        if abs(peak) < 1e-15:
            scales.append(F(0))
            continue
        best = scale = None
        for tenths in (0, *range(-9, 0), *range(1, 10)):
            inverse = -(F(32) + F(0.1) * F(tenths)) / peak
            first, second = F(0), F(0)
            for value in x:
                weight, number = value * value, F(level(inverse * value))
                first = first + weight * value * number
                second = second + weight * number * number
            if best is None or (second > 0 and first * first > best * second):
                scale = first / second if second else F(0)
                best = scale * first
                levels[start : start + 16] = [level(inverse * value) + 32 for value in x]
        scales.append(scale)
    peak = max(scales, key=abs)
    if abs(peak) < 1e-15:
        return bytes(210)
    inverse = F(-128) / peak
    scale = np.float16(F(1) / inverse)
    parts = [min(127, int(np.rint(inverse * s))) for s in scales]
    for number, value in enumerate(block):
        step = F(scale) * F(parts[number // 16])
        if step:
            levels[number] = level(value / step) + 32
    low, high = bytearray(128), bytearray(64)
    for half in (0, 1):
        for i in range(32):
            q = [levels[128 * half + 32 * quarter + i] for quarter in range(4)]
            low[64 * half + i] = q[0] & 15 | (q[2] & 15) << 4
            low[64 * half + 32 + i] = q[1] & 15 | (q[3] & 15) << 4
            high[32 * half + i] = q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6
    return bytes(low) + bytes(high) + np.array(parts, np.int8).tobytes() + scale.tobytes()


@pytest.mark.parametrize("name", samples())
def test_6_bits_are_those_of_the_plain_loop(name):
    values = samples()[name].reshape(-1, 256)[:7]
    with np.errstate(all="ignore"):
        expected = b"".join(map(q6_k_plainly, values))
    assert quantize(values, "Q6_K").tobytes() == expected


@pytest.mark.parametrize(("kind", "levels"), [("Q8_0", 127), ("Q4_0", 8), ("Q6_K", 32)])
def test_values_are_kept_to_within_a_step(kind, levels):
    values = samples()["normal"]
    again = gguf.quants.dequantize(
        quantize(values, kind).reshape(len(values), -1), GGMLQuantizationType[kind]
    )
    width = 16 if kind == "Q6_K" else 32
    blocks = values.reshape(-1, width)
    step = np.abs(blocks).max(1, keepdims=True) / levels
    error = np.abs(again.reshape(-1, width) - blocks)  # half a step, and the rounding of its float16
    assert (error <= step * {"Q8_0": 0.57, "Q4_0": 1.01, "Q6_K": 1.5}[kind]).all()
    assert error.max() > 0


@pytest.mark.parametrize(("kind", "dtype"), [("F32", torch.float32), ("F16", torch.float16)])
def test_plain_types(kind, dtype):
    values = torch.from_numpy(samples()["normal"])
    assert encode(values, kind).tobytes() == values.to(dtype).numpy().tobytes()
    assert encode(values.double(), kind).tobytes() == values.to(dtype).numpy().tobytes()
    view = values.T  # not contiguous
    assert encode(view, kind).tobytes() == view.contiguous().to(dtype).numpy().tobytes()


def test_bf16_rounds_to_even_as_the_gguf_package_does():
    values = torch.from_numpy(np.concatenate(list(samples().values())))
    expected = gguf.quants.quantize(values.numpy(), GGMLQuantizationType.BF16)
    assert encode(values, "BF16").tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_value_of_a_type_is_kept_and_no_more(kind):
    for factor, kept in ((1.0, True), (1.01, False)):
        values = torch.zeros(256, dtype=torch.float64)
        values[7] = LARGEST[kind] * factor
        with np.errstate(all="ignore"):
            stored = encode(values, kind)
            again = gguf.quants.dequantize(stored.reshape(1, -1), GGMLQuantizationType[kind])
        assert bool(np.isfinite(again).all()) is kept


def test_sizes():
    assert [stored_bytes((3, 512), kind) for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q6_K")] == [
        6144, 3072, 3072, 1632, 864, 1260,
    ]  # fmt: skip
