"""Rounding: never worse than the obvious, calibration helps, and a packed model is a model like others."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from stablelm.config import InputError, ModelConfig
from stablelm.evaluation.fidelity import fidelity, hidden_of
from stablelm.inference import Sampling, generate_ids, quantization
from stablelm.inference.cpu_runner import CpuRunner
from stablelm.inference.quantization import QuantizedLinear, Recipe, is_packed, quantize
from stablelm.interchange.gguf_types import quantize as gguf_blocks
from stablelm.kernels.cpu.packing import dense, pack, plain_product
from stablelm.kernels.cpu.prefill import as_rows
from stablelm.kernels.cpu.rounding import round_groups
from stablelm.model import StableLM

CONFIG = ModelConfig(
    vocab_size=256, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=264,
    max_position_embeddings=128,
)  # fmt: skip


def draw(table, rows, length, generator):
    """Text of a random Markov chain: [rows, length]."""
    ids = [torch.randint(0, len(table), (rows,), generator=generator)]
    for _ in range(length - 1):
        ids.append(torch.multinomial(table[ids[-1]], 1, generator=generator)[:, 0])
    return torch.stack(ids, 1)


@pytest.fixture(scope="module")
def trained():
    """A small model that has learnt something, calibration batches and test batches."""
    generator = torch.Generator().manual_seed(0)
    table = torch.softmax(torch.randn(256, 256, generator=generator) * 3, -1)
    model = StableLM(CONFIG, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(100):
        ids = draw(table, 16, 65, generator)
        (model(ids[:, :-1], labels=ids[:, 1:]) / 1024).backward()
        optimizer.step()
        optimizer.zero_grad()
    calibration = [draw(table, 8, 96, generator) for _ in range(3)]
    return model.requires_grad_(False), calibration, [draw(table, 8, 100, generator)]


def quality(trained, change, dtype=torch.float32):
    model, _, test = trained
    reference = copy.deepcopy(model).to(dtype)
    other = copy.deepcopy(reference)
    change(other)
    return fidelity(hidden_of(reference, test), reference.lm_head, other, test)


def as_q4_0(model):
    """llama.cpp's Q4_0 for the blocks, the head left alone (llama.cpp rounds it to 6 bits)."""
    for name, layer in quantization.projections(model):
        if name != "lm_head":
            w = layer.weight.float().numpy()
            padded = np.pad(w, ((0, 0), (0, -w.shape[1] % 32)))
            raw = gguf_blocks(padded, "Q4_0").reshape(-1, 18)
            scale = raw[:, :2].copy().view(np.float16).astype(np.float32)
            levels = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], 1).astype(np.float32) - 8
            values = (levels * scale).reshape(padded.shape)[:, : w.shape[1]]
            layer.weight.copy_(torch.from_numpy(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_change_nothing_that_matters(trained, dtype):
    for group in (32, 128):
        found = quality(trained, lambda m, g=group: quantize(m, Recipe.of(8, g)), dtype)
        assert found.kl <= 1e-3
        assert abs(found.loss - found.reference_loss) < 3e-3


def test_four_bits_are_nearer_than_q4_0_and_calibration_nearer_still(trained):
    theirs = quality(trained, as_q4_0).kl
    plain = quality(trained, lambda m: quantize(m, Recipe.of(4, 32))).kl
    calibrated = quality(trained, lambda m: quantize(m, Recipe.of(4, 32), trained[1])).kl
    assert 0 < calibrated < plain < theirs
    for group in (64, 128):
        alone = quality(trained, lambda m, g=group: quantize(m, Recipe.of(4, g))).kl
        assert quality(trained, lambda m, g=group: quantize(m, Recipe.of(4, g), trained[1])).kl < alone


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_searched_scale_loses_no_more_than_the_obvious_ones(group):
    w = torch.randn(30, 333, generator=torch.Generator().manual_seed(1)) ** 3
    levels, scales = round_groups(w, 4, group)
    assert torch.equal(scales, scales.bfloat16().float())
    low, high = -8, 7
    assert low <= int(levels.min()) <= int(levels.max()) <= high
    for start in range(0, 333, group):
        part, scale = w[:, start : start + group], scales[:, start // group, None]
        ours = (part - levels[:, start : start + group] * scale).square().sum(1)
        extreme = part.gather(1, part.abs().argmax(1, keepdim=True))
        for end in (low, high):
            plain = (extreme / end).bfloat16().float()
            lost = (part - (part / plain).round().clamp(low, high) * plain).square().sum(1)
            assert bool((ours <= lost * 1.0001).all())


def test_eight_bits_never_clip():
    w = torch.randn(30, 333, generator=torch.Generator().manual_seed(1)) ** 3
    levels, scales = round_groups(w, 8, 64)
    wide = scales.repeat_interleave(64, 1)[:, :333]
    assert bool(((w - levels * wide).abs() <= wide.abs() * 0.5001).all())
    assert int(levels.abs().max()) == 127


def test_importance_moves_the_error_to_columns_that_do_not_matter():
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    importance = torch.ones(64)
    importance[:16] = 1000
    errors = [
        (w - levels * scales)[:, :16].square().sum()
        for levels, scales in (round_groups(w, 4, 64), round_groups(w, 4, 64, importance))
    ]
    assert errors[1] < 0.9 * errors[0]


def test_zeros_stay_zeros_and_huge_weights_finite():
    for value in (0.0, 1e-38, 1e30):
        w = torch.full((3, 40), value)
        levels, scales = round_groups(w, 4, 32)
        assert torch.allclose(levels * scales.repeat_interleave(32, 1)[:, :40], w, rtol=0.01, atol=1e-30)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_for_prefill_are_the_packed_matrix(bits):
    w = torch.randn(45, 200, generator=torch.Generator().manual_seed(3))
    packed = pack(*round_groups(w, bits, 64), bits, 64)
    levels, scales = as_rows(packed)
    exact = dense(packed)
    assert levels.shape == (45, 256)
    assert not levels[:, 200:].any()
    assert bool(((levels[:, :200] * scales[:, None] - exact).abs() <= scales[:, None] * 0.501).all())
    x = torch.randn(40, 200)
    ours = quantization.many(packed, x)
    assert (ours - x @ exact.T).norm() < 0.015 * (x @ exact.T).norm()


def test_a_packed_model_generates_as_its_twin_does(trained, monkeypatch):
    model = copy.deepcopy(trained[0])
    quantize(model, Recipe.of(4, 32))
    prompt = trained[2][0][:2, :7]
    ours = generate_ids(model, prompt, max_new_tokens=6, eos_ids=[])
    for sampling in (None, Sampling(temperature=1.0, seed=3)):
        alone = generate_ids(model, prompt[:1], max_new_tokens=6, eos_ids=[], sampling=sampling)
        both = generate_ids(model, prompt, max_new_tokens=6, eos_ids=[], sampling=sampling)
        assert torch.equal(both[0], alone[0])
    monkeypatch.setattr(quantization, "few", plain_product)
    assert torch.equal(ours, generate_ids(model, prompt, max_new_tokens=6, eos_ids=[]))


def test_without_numba_dense_weights_are_used_and_said(trained, monkeypatch):
    layer = QuantizedLinear(pack(*round_groups(torch.randn(40, 64), 8, 32), 8, 32), torch.ones(40))
    x = torch.randn(2, 3, 64)
    fast = layer(x), layer(x.repeat(9, 1, 1))
    for name in ("products", "prefill", "vectors"):
        monkeypatch.setitem(__import__("sys").modules, f"stablelm.kernels.cpu.{name}", None)
    for quick, slow in zip(fast, (layer(x), layer(x.repeat(9, 1, 1))), strict=True):
        assert (quick - slow).norm() < 0.015 * slow.norm()
        assert not torch.equal(quick, slow)
    assert "PyTorch: weights are made dense" in quantization.kernels_in_use(torch.device("cpu"))


def test_a_loss_with_labels_is_that_of_the_logits(trained):
    model = copy.deepcopy(trained[0])
    quantize(model, Recipe.of(8, 32))
    ids = trained[2][0][:, :40]
    labels = ids.roll(-1, 1).clone()
    labels[:, -1] = -100
    logits = model(ids)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert torch.allclose(model(ids, labels=labels), wanted, rtol=1e-3)


def test_fidelity_of_a_model_to_itself_and_by_hand(trained):
    same = quality(trained, lambda m: None)
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.top1 == 1
    found = quality(trained, as_q4_0)
    model, _, test = trained
    other = copy.deepcopy(model)
    as_q4_0(other)
    p, q = (m(test[0]).log_softmax(-1) for m in (model, other))
    each = (p.exp() * (p - q)).sum(-1)
    assert found.kl == pytest.approx(float(each.mean()), rel=1e-3)
    assert found.kl_largest == pytest.approx(float(each.max()), rel=1e-3)
    loss = torch.nn.functional.cross_entropy(other(test[0])[:, :-1].flatten(0, 1), test[0][:, 1:].flatten())
    assert found.loss == pytest.approx(float(loss), rel=1e-4)


def test_what_cannot_be_quantised_is_named(trained):
    for bits, group, words in ((3, 64, "bits = 3"), (4, 16, "group = 16"), (True, 64, "bits = True")):
        with pytest.raises(InputError, match=words):
            Recipe.of(bits, group)
    model = copy.deepcopy(trained[0])
    with pytest.raises(InputError, match="calibration wants ids"):
        quantize(model, Recipe.of(4), [torch.tensor([[1, 256]])])
    model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight holds NaN"):
        quantize(model, Recipe.of(4))
    packed = copy.deepcopy(trained[0])
    quantize(packed, Recipe.of(4))
    assert is_packed(packed)
    assert packed.to(torch.float64).lm_head.weight.dtype == torch.uint8
    with pytest.raises(InputError, match="already"):
        quantize(packed, Recipe.of(4))


def test_a_recipe_is_read_as_it_was_written():
    recipe = dataclasses.replace(Recipe.of(4, 128), calibrated=True)
    assert Recipe.read(recipe.as_dict(), "x") == recipe
    for change, words in (
        ({"quant_method": "gptq"}, "of 'gptq' cannot be read"),
        ({"version": 2}, "version = 2"),
        ({"bits": 5}, "bits = 5"),
        ({"head_bits": 2}, "head_bits = 2"),
        ({"zeros": True}, "zeros is not known"),
    ):
        with pytest.raises(InputError, match=words):
            Recipe.read(recipe.as_dict() | change, "x")


@torch.inference_mode()
def test_an_int8_cache_changes_the_perplexity_by_less_than_a_thousandth(trained):
    """Of a 4-bit model, every key and value read back from the cache, beside the cache in float32."""
    model = copy.deepcopy(trained[0])
    quantize(model, Recipe.of(4, 32))
    ids, losses = trained[2][0], {}
    for kind in ("fp32", "bf16", "int8"):
        reader = CpuRunner(model, kind)
        first = reader.prefill(ids[:, :1], None, ids.shape[1])
        logits = torch.cat([first[:, None], reader.read(ids[:, 1:-1])], 1)
        losses[kind] = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    assert losses["fp32"] < 4.5  # of log 256 = 5.5: it has learnt something
    assert 0 < abs(losses["int8"] - losses["fp32"]) < 1e-3
    assert abs(losses["bf16"] - losses["fp32"]) < 1e-3
