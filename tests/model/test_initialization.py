"""Initial weights: GPT-NeoX's standard deviations, drawn by name."""

import math

import torch

from stablelm.config import preset
from stablelm.model import StableLM
from stablelm.model.initialization import initial_value


def test_standard_deviations_are_neox_scaled_normal():
    config = preset("stablelm-1m", num_hidden_layers=8)
    for name, tensor in StableLM(config, seed=5).named_parameters():
        if "norm" in name:
            assert torch.equal(tensor, torch.full_like(tensor, 0.0 if name.endswith("bias") else 1.0))
            continue
        std = 0.02 / math.sqrt(16) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        tolerance = 5 * std / math.sqrt(2 * tensor.numel())
        assert abs(tensor.std().item() - std) < tolerance, name
        assert abs(tensor.mean().item()) < 5 * std / math.sqrt(tensor.numel()), name


def test_the_draw_depends_on_seed_and_name_only():
    config = preset("stablelm-1m")
    model, again, other = StableLM(config, seed=5), StableLM(config, seed=5), StableLM(config, seed=6)
    for (name, a), b, c in zip(model.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert "norm" in name or not torch.equal(a, c)
        assert torch.equal(a, initial_value(name, a.shape, config, 5))
    q, k = (model.state_dict()[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qk")
    assert not torch.equal(q, k)


def test_a_deeper_network_keeps_the_shared_draws():
    shallow, deep = (
        StableLM(preset("stablelm-1m", num_hidden_layers=n), seed=1).state_dict() for n in (1, 2)
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(shallow[name], deep[name])
    residual = "model.layers.0.self_attn.o_proj.weight"
    torch.testing.assert_close(shallow[residual] / math.sqrt(2), deep[residual])


def test_nothing_is_drawn_on_the_meta_device():
    with torch.device("meta"):
        assert all(p.is_meta for p in StableLM(preset("stablelm-1m")).parameters())
