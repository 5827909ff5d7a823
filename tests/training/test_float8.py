"""Products in 8-bit floating point: emulated on a CPU, and refused by name where they cannot be."""

import importlib.util

import pytest
import torch

from stablelm.config import InputError, ModelConfig
from stablelm.model import StableLM
from stablelm.training import train
from stablelm.training.float8 import to_float8

NETWORK = ModelConfig(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=32,
)  # fmt: skip
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is for Linux")


def gradients(recipe):
    model = StableLM(NETWORK, seed=2)
    model.compute_dtype = torch.bfloat16
    if recipe:
        to_float8(model, recipe, emulate=True)
    ids = torch.randint(0, 128, (2, 33), generator=torch.Generator().manual_seed(0))
    loss = model(ids[:, :-1], labels=ids[:, 1:]) / 64
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@needs_torchao
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_losses_and_gradients_are_near_but_not_those_of_bf16(recipe):
    """e4m3 keeps 3 bits after the point, so a product of rounded numbers is some percent away."""
    loss, plain = gradients(None)
    other, rounded = gradients(recipe)
    assert other != loss and other == pytest.approx(loss, rel=1e-3)
    assert list(rounded) == list(plain)  # every weight keeps its name
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        along = torch.nn.functional.cosine_similarity(gradient.flatten(), plain[name].flatten(), 0)
        assert along > 0.97, name


@needs_torchao
@pytest.mark.parametrize(("changes", "words"), [
    ({"fp8": "rowwise", "model": {"intermediate_size": 40}}, "intermediate_size that 16 divides, not 40"),
    ({"fp8": "rowwise", "precision": "fp32"}, "goes with precision: bf16, not fp32"),
    ({"fp8": "tensorwise", "precision": "bf16"}, "needs a GPU with 8-bit matrix products"),
])  # fmt: skip
def test_what_cannot_be(make_config, changes, words):
    changes = {"precision": "bf16", **changes}
    with pytest.raises(InputError, match=words):
        train(make_config(**changes))
    with pytest.raises(InputError, match=r"fp8: .*'tensorwise' or 'rowwise'"):
        make_config(fp8="e4m3")


def test_without_torchao(make_config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"torchao is not installed. Run: pip install 'stablelm\[gpu\]'"):
        train(make_config(fp8="rowwise", precision="bf16"))
