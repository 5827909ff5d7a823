"""What of KL(original ‖ 8 bits) comes from where, on networks of random weights.

    .venv/bin/python benchmarks/rounding_apart.py [--layers 4 12 32] [--hidden 512] [--vocabulary 2048]

All against the same network in float32 arithmetic, its weights bfloat16. First each cause alone, in plain
PyTorch; then both together; llama.cpp's Q8_0 as a yardstick (weights and activations in blocks of 32, its
bytes); then by our kernels, reading at once by either way and writing 16 tokens at a time. Weights are drawn
so that logits have the 2.8B model's spread (0.02 · √2,560 whatever the width). Nothing is timed."""

import argparse
import copy
import math

import numpy as np
import torch
from measure import write_result
from torch import Tensor

from stablelm.config import ModelConfig
from stablelm.inference.cpu_runner import CpuRunner
from stablelm.inference.quantization import FEW_ROWS, Recipe, projections, quantize
from stablelm.interchange.gguf_types import quantize as gguf_blocks
from stablelm.kernels.cpu import prefill
from stablelm.kernels.cpu.packing import quantize_activations
from stablelm.kernels.cpu.rounding import round_groups
from stablelm.model import StableLM
from stablelm.planning import hardware

TOKENS = 128


def logs(model: StableLM, ids: Tensor) -> Tensor:
    """Log-probabilities [S, V]."""
    return model.lm_head(model.hidden_states(ids)).float().log_softmax(-1)[0]


def written(model: StableLM, ids: Tensor) -> Tensor:
    """The same from the last of the first 16 tokens on, by the kernels that write text."""
    runner = CpuRunner(model)
    found = [runner.prefill(ids[:, :FEW_ROWS], None, TOKENS)]
    found += [runner.read(piece)[0] for piece in ids[:, FEW_ROWS:].split(FEW_ROWS, 1)]
    return torch.cat(found).float().log_softmax(-1)


def as_groups(w: Tensor, group: int) -> Tensor:
    levels, scales = round_groups(w, 8, group)
    return levels * scales.repeat_interleave(group, 1)[:, : w.shape[1]]


def as_q8_0(w: Tensor) -> Tensor:
    blocks = gguf_blocks(w.numpy(), "Q8_0").reshape(-1, 34)
    values = blocks[:, 2:].copy().view(np.int8) * blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return torch.from_numpy(values).view_as(w)


def searched(w: Tensor, group: int) -> Tensor:
    """The scale of 40 at and below the largest magnitude that loses least, where ours never clips."""
    parts = w.view(len(w), -1, group)
    largest = parts.abs().amax(2, keepdim=True) / 127
    best, least = largest, torch.full_like(largest, math.inf)
    for step in range(40):
        scale = (largest * (1 - step / 800)).bfloat16().float()
        lost = ((parts / scale).round().clamp(-127, 127) * scale - parts).square().sum(2, keepdim=True)
        best, least = torch.where(lost < least, scale, best), torch.minimum(lost, least)
    return ((parts / best).round().clamp(-127, 127) * best).view_as(w)


def x_by_row(x: Tensor) -> Tensor:
    step = x.abs().amax(-1, keepdim=True) / 127
    return (x / step).round() * step


def x_by_groups(group: int):
    def rounded(x: Tensor) -> Tensor:
        levels, steps = quantize_activations(x.flatten(0, -2), group)
        return (levels * steps[..., None]).flatten(1)[:, : x.shape[-1]].view_as(x)

    return rounded


@torch.no_grad()
def apart(layers: int, hidden: int, vocabulary: int) -> dict[str, float]:
    config = ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        intermediate_size=hidden * 27 // 640 * 64, max_position_embeddings=TOKENS,
        initializer_range=0.02 * math.sqrt(2560 / hidden),
    )  # fmt: skip
    half = StableLM(config, seed=1).bfloat16()
    ids = torch.randint(0, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(5))
    exact = copy.deepcopy(half).float()
    p = logs(exact, ids)

    def kl(q: Tensor) -> float:
        mine = p[-len(q) :]
        return float((mine.exp() * (mine - q)).sum(-1).mean())

    def changed(weights=None, x=None) -> float:
        model = copy.deepcopy(exact)
        for _, layer in projections(model):
            if weights is not None:
                layer.weight.data = weights(layer.weight.data)
            if x is not None:
                layer.register_forward_pre_hook(lambda _, given: (x(given[0]),))
        return kl(logs(model, ids))

    def packed(group: int, dtype: torch.dtype) -> StableLM:
        model = copy.deepcopy(half).to(dtype)
        quantize(model, Recipe.of(8, group))
        return model

    found = {"bf16 arithmetic": kl(logs(half, ids))}
    for group in (64, 32):
        found[f"weights, groups of {group}"] = changed(lambda w, g=group: as_groups(w, g))
    found["weights, groups of 64, scale searched"] = changed(lambda w: searched(w, 64))
    found["weights, Q8_0"] = changed(as_q8_0)
    found["activations, a row"] = changed(x=x_by_row)
    for group in (64, 32):
        found[f"activations, groups of {group}"] = changed(x=x_by_groups(group))
    found["Q8_0, weights and activations"] = changed(as_q8_0, x_by_groups(32))
    for name, by_groups in (("by rows", ()), ("by groups", (4, 8))):
        prefill.BY_GROUPS = by_groups
        for group in (64, 32):
            found[f"prompt {name}, groups of {group}"] = kl(logs(packed(group, torch.float32), ids))
    found["prompt by groups, groups of 64, bf16 arithmetic"] = kl(logs(packed(64, torch.bfloat16), ids))
    for group in (64, 32):
        found[f"written, groups of {group}, bf16 cache"] = kl(written(packed(group, torch.bfloat16), ids))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="*", default=[4, 12, 32])
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=2048)
    options = parser.parse_args()
    result = {}
    for layers in options.layers:
        found = result[f"{layers} layers"] = apart(layers, options.hidden, options.vocabulary)
        print(layers, {name: f"{value:.2e}" for name, value in found.items()}, flush=True)
    result |= {"hidden": options.hidden, "vocabulary": options.vocabulary, "tokens": TOKENS}
    print(write_result("rounding_apart", result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
