"""The network's sizes, causality, padding and cache contract, on small configurations."""

import pytest
import torch

from stablelm.config import preset
from stablelm.model import StableLM
from stablelm.model.rotary import Rotary


def small(**changes):
    sizes = dict(
        vocab_size=97, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    return preset("stablelm-1m", **{**sizes, **changes})


@pytest.fixture
def model():
    network = StableLM(small(), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # LayerNorm away from the identity, so that a lost bias shows
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def test_the_released_size_is_exact():
    with torch.device("meta"):
        network = StableLM(preset("stablelm-3b-4e1t"))
    state = network.state_dict()
    assert network.num_parameters() == 2_795_443_200 == preset("stablelm-3b-4e1t").num_parameters
    assert len(state) == 356
    assert sum(tensor.numel() * 2 for tensor in state.values()) == 5_590_886_400
    assert state["model.layers.31.mlp.down_proj.weight"].shape == (2560, 6912)
    assert state["model.layers.0.post_attention_layernorm.bias"].shape == (2560,)
    assert state["lm_head.weight"].shape == state["model.embed_tokens.weight"].shape == (50_304, 2560)
    assert not any(name.endswith("proj.bias") for name in state)


@pytest.mark.parametrize(
    "changes", [{}, {"num_hidden_layers": 1}, {"hidden_size": 120, "num_attention_heads": 5}]
)
def test_counted_parameters_equal_the_formula(changes):
    config = small(**changes)
    assert StableLM(config).num_parameters() == config.num_parameters


def test_a_later_token_changes_no_earlier_logit(model):
    ids = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 97
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_logit(model, side):
    rows = [torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 9, 6)]
    ids, mask = torch.ones(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    places = []
    for row, tokens in enumerate(rows):
        place = slice(9 - len(tokens), 9) if side == "left" else slice(0, len(tokens))
        ids[row, place], mask[row, place] = tokens, 1
        places.append(place)
    logits = model(ids, attention_mask=mask)
    assert logits.isfinite().all()
    for row, tokens in enumerate(rows):
        torch.testing.assert_close(logits[row, places[row]], model(tokens[None])[0], atol=2e-6, rtol=0)


def test_rotation_is_by_relative_position_on_the_first_dimensions_only():
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)
    products = []
    for shift in (0, 5, 300):
        rotate = Rotary(torch.tensor([shift + 3]), 4, 10_000.0), Rotary(torch.tensor([shift]), 4, 10_000.0)
        products.append((rotate[0](q) * rotate[1](k)).sum())
        assert torch.equal(rotate[0](q)[..., 4:], q[..., 4:])
    torch.testing.assert_close(torch.stack(products), products[0].expand(3), atol=1e-5, rtol=1e-5)


def test_rotary_pairs_are_halves_of_the_rotated_block():
    x = torch.zeros(1, 1, 1, 16)
    x[..., 1] = 1.0  # pairs with dimension 3 when four are rotated; its frequency is 10000^(-2/4)
    rotated = Rotary(torch.tensor([2]), 4, 10_000.0)(x).flatten()
    expected = torch.zeros(16)
    expected[1], expected[3] = torch.cos(torch.tensor(2 * 0.01)), torch.sin(torch.tensor(2 * 0.01))
    torch.testing.assert_close(rotated, expected)


def test_bf16_rotation_uses_float32_angles():
    x = torch.randn(1, 1, 2, 16, dtype=torch.bfloat16)
    far = Rotary(torch.tensor([4094, 4095]), 4, 10_000.0)  # in bf16 both positions would be 4096
    assert not torch.equal(far.cos[0], far.cos[1])
    angles = torch.tensor([[4094.0], [4095.0]]).double() * torch.tensor([1.0, 0.01]).double()
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()  # of exact angles, then rounded
    a, b = x[..., :2], x[..., 2:4]
    expected = torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 4:]], -1)
    assert far(x).dtype == torch.bfloat16 and torch.equal(far(x), expected)


def test_compute_dtype_changes_the_arithmetic_and_not_the_weights(model):
    ids = torch.randint(0, 97, (2, 10))
    exact = model(ids)
    model.compute_dtype = torch.bfloat16
    rough = model(ids)
    assert rough.dtype == torch.float32 and model.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1
    model(ids, labels=ids).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
