"""Where the distance of a packed model from its original comes from, on the worst of models: a deep one that
has learnt nothing and enlarges what is rounded in its first blocks (`benchmarks/rounding_apart.py`)."""

import copy

import numpy as np
import pytest
import torch

from stablelm.config import ModelConfig
from stablelm.evaluation.fidelity import fidelity, hidden_of
from stablelm.inference.cpu_runner import CpuRunner
from stablelm.inference.quantization import FEW_ROWS, Recipe, projections, quantize
from stablelm.interchange.gguf_types import quantize as gguf_blocks
from stablelm.kernels.cpu import prefill
from stablelm.kernels.cpu.packing import quantize_activations
from stablelm.model import StableLM

IDS = torch.randint(0, 512, (1, 96), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def original():
    config = ModelConfig(
        vocab_size=512, hidden_size=128, num_hidden_layers=12, num_attention_heads=4, intermediate_size=352,
        max_position_embeddings=128, initializer_range=0.09,
    )  # fmt: skip
    return StableLM(config, seed=2).requires_grad_(False)


def distance(original, model):
    return fidelity(hidden_of(original, [IDS]), original.lm_head, model, [IDS]).kl


@pytest.fixture(scope="module")
def yardstick(original):
    """KL of llama.cpp's Q8_0: weights and what they are multiplied with in 8 bits, a scale for each 32."""

    def rounds(layer, given):
        (x,) = given
        levels, steps = quantize_activations(x.flatten(0, -2), 32)
        return ((levels * steps[..., None]).flatten(1)[:, : x.shape[-1]].view_as(x),)

    model = copy.deepcopy(original)
    for _, layer in projections(model):
        blocks = gguf_blocks(layer.weight.numpy(), "Q8_0").reshape(-1, 34)
        values = blocks[:, 2:].copy().view(np.int8) * blocks[:, :2].copy().view(np.float16).astype(np.float32)
        layer.weight.copy_(torch.from_numpy(values).view_as(layer.weight))
        layer.register_forward_pre_hook(rounds)
    return distance(original, model)


def packed(original, group):
    model = copy.deepcopy(original)
    quantize(model, Recipe.of(8, group))
    return model


def test_eight_bits_by_the_kernels_that_write_are_as_near_as_q8_0(original, yardstick):
    model = packed(original, 32)
    runner = CpuRunner(model)
    with torch.no_grad():
        p = original(IDS)[0].log_softmax(-1)
        logits = [runner.prefill(IDS[:, :FEW_ROWS], None, IDS.shape[1])[0][None]]
        for start in range(FEW_ROWS, IDS.shape[1], FEW_ROWS):
            logits.append(runner.read(IDS[:, start : start + FEW_ROWS])[0])
    q = torch.cat(logits).log_softmax(-1)
    p = p[FEW_ROWS - 1 :]
    found = float((p.exp() * (p - q)).sum(-1).mean())
    assert 0.5 * yardstick < found < 1.15 * yardstick


def test_a_prompt_read_by_groups_is_as_near_and_by_rows_much_farther(original, yardstick, monkeypatch):
    monkeypatch.setattr(prefill, "BY_GROUPS", (4, 8))
    near = {group: distance(original, packed(original, group)) for group in (32, 64)}
    assert 0.5 * yardstick < near[32] < 1.15 * yardstick
    assert near[32] < near[64] < 1.6 * yardstick
    monkeypatch.setattr(prefill, "BY_GROUPS", ())
    assert distance(original, packed(original, 64)) > 1.5 * near[64]


def test_the_distance_grows_with_depth_not_with_the_rounding(original):
    """One block's rounding alone: in the first it does far more harm than in the last."""

    def only(index):
        model, rounded = copy.deepcopy(original), packed(original, 64)
        model.model.layers[index] = rounded.model.layers[index]
        return distance(original, model)

    assert only(0) > 5 * only(-1)
