"""The runner of the CPU kernels beside the plain network, on every member of the family in small."""

import copy

import pytest
import torch

from stablelm.config import InputError, ModelConfig
from stablelm.inference import Decoding, Sampling, cpu_runner, generate_ids, generation, quantization, runner
from stablelm.inference.cpu_cache import CpuCache, bytes_per_token
from stablelm.inference.cpu_runner import CpuRunner, decoding, default_cache, runner_for, token_bytes, why_not
from stablelm.inference.quantization import Recipe, quantize
from stablelm.inference.runner import ModelRunner
from stablelm.inference.speculation import LookupRunner
from stablelm.kernels.cpu.packing import plain_product
from stablelm.model import StableLM

SMALL = dict(
    vocab_size=160, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
    max_position_embeddings=256,
)  # fmt: skip
MEMBERS = {
    "3b": {},
    "1.6b": dict(use_qkv_bias=True),
    "12b": dict(num_key_value_heads=2, use_parallel_residual=True, qk_layernorm=True, use_norm_bias=False),
}
KINDS = ("bf16", 8, 4)


def network(member="3b", kind=None, dtype=torch.float32, seed=3):
    """Random weights large enough that every part of the network matters."""
    model = StableLM(ModelConfig(**SMALL, **MEMBERS[member]), seed).requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.mul_(4)
        elif "norm" in name or "bias" in name:
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3)
    model = model.to(torch.bfloat16 if kind == "bf16" else dtype)
    if isinstance(kind, int):
        quantize(model, Recipe.of(kind, 32))
    return model


def text(*shape, seed=1):
    return torch.randint(2, 160, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def forced(reader, ids, prompt):
    """Logits of a runner given ids [B, S], after a prompt one token at a time: [B, S − prompt, V]."""
    found = [reader.prefill(ids[:, :prompt], None, ids.shape[1])]
    found += [reader.step(ids[:, place]) for place in range(prompt, ids.shape[1] - 1)]
    return torch.stack(found, 1)


@pytest.mark.parametrize("prompt", [5, 40])
@pytest.mark.parametrize("member", MEMBERS)
def test_in_bf16_it_is_as_near_to_float32_as_the_plain_network(member, prompt):
    exact = network(member)
    model = network(member, "bf16")
    exact.load_state_dict(model.state_dict())  # the same weights, in float32
    ids = text(3, 60)
    reference, plain = (forced(ModelRunner(m), ids, prompt) for m in (exact, model))
    ours = forced(CpuRunner(model), ids, prompt)
    rough = (plain - reference).abs()
    wrong = (ours - reference).abs()
    assert float(wrong.square().mean()) <= float(rough.square().mean())
    assert float(wrong.max()) <= 1.25 * float(rough.max())
    best = reference.topk(2).values
    sure = best[..., 0] - best[..., 1] > 2 * wrong.max()
    assert sure.float().mean() > 0.3
    assert torch.equal(ours.argmax(-1)[sure], reference.argmax(-1)[sure])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("member", MEMBERS)
def test_packed_it_is_the_plain_network_with_plain_products(member, bits, monkeypatch):
    model = network(member, bits)
    ids = text(2, 30)
    ours = forced(CpuRunner(model, "fp32"), ids, 4)
    monkeypatch.setattr(quantization, "few", plain_product)
    plain = forced(ModelRunner(model), ids, 4)
    wrong = (ours - plain).abs()  # a number halfway between two levels may be rounded either way
    assert float(wrong.square().mean().sqrt()) < 5e-3 * float(plain.square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_tokens_read_together_give_the_bits_of_one_by_one(kind):
    """Steps, several at once, and a whole prompt: cached equals uncached."""
    model = network("12b", kind)
    ids = text(2, 16)
    for cache in ("fp32", "bf16", "int8"):
        single = forced(CpuRunner(model, cache), torch.cat([ids, ids[:, :1]], 1), 1)
        reader = CpuRunner(model, cache)
        first = reader.prefill(ids[:, :3], None, 30)
        assert torch.equal(first, single[:, 2])
        assert torch.equal(reader.read(ids[:, 3:8]), single[:, 3:8])
        assert torch.equal(reader.read(ids[:, 8:]), single[:, 8:])
        for length in (1, 6, 16):
            assert torch.equal(
                CpuRunner(model, cache).prefill(ids[:, :length], None, 16), single[:, length - 1]
            )


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_alone_and_in_a_batch_of_seven(kind):
    model = network("3b", kind, torch.bfloat16)
    prompts = [text(length, seed=length).tolist() for length in (3, 40, 17, 1, 16, 25, 8)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    settings = dict(max_new_tokens=12, eos_ids=[])
    drawn = generate_ids(model, ids, mask, sampling=Sampling(temperature=1.0, seed=11), **settings)[:, width:]
    greedy = generate_ids(model, ids, mask, **settings)[:, width:]
    for row, prompt in enumerate(prompts):
        alone = torch.tensor([prompt])
        sampling = Sampling(temperature=1.0, seed=11 + row)
        new = generate_ids(model, alone, sampling=sampling, **settings)[0, len(prompt) :]
        assert torch.equal(drawn[row], new)
        assert torch.equal(greedy[row], generate_ids(model, alone, **settings)[0, len(prompt) :])


@torch.inference_mode()
def test_a_batch_larger_than_the_kernels_take_goes_in_parts():
    model = network("3b", 4)
    ids = text(37, 6)
    whole = forced(CpuRunner(model), ids, 3)
    for row in (0, 15, 16, 36):
        assert torch.equal(forced(CpuRunner(model), ids[row : row + 1], 3)[0], whole[row])
    reader = CpuRunner(model)
    reader.prefill(ids[:2, :1], None, 60)
    long = text(2, 40, seed=4)
    one = torch.stack([forced(CpuRunner(model), torch.cat([ids[r : r + 1, :1], long[r : r + 1]], 1), 1)[0]
                       for r in (0, 1)])  # fmt: skip
    assert torch.equal(reader.read(long)[:, :-1], one[:, 1:])


@pytest.mark.parametrize("cache", ["bf16", "int8"])
@torch.inference_mode()
def test_trimmed_and_reordered_rows_continue_from_where_they_were(cache):
    model = network("12b", 8)
    ids = text(2, 9)
    mask = torch.arange(9) >= torch.tensor([[2], [0]])
    reader = CpuRunner(model, cache)
    reader.prefill(ids, mask, 14)
    reader.step(torch.tensor([4, 5]))
    reader.trim(9)
    for rows in ([1, 1, 0], [2, 0], [0, 1]):  # grows, shrinks, stays
        reader.reorder(rows)
    logits = reader.step(torch.tensor([6, 7]))
    for row, (source, skip, token) in enumerate(((0, 2, 6), (1, 0, 7))):
        alone = torch.cat([ids[source, skip:], torch.tensor([token])])[None]
        assert torch.equal(logits[row], CpuRunner(model, cache).prefill(alone, None, 14)[0])


@torch.inference_mode()
def test_a_long_prompt_in_chunks_sees_all_of_itself():
    model = network("12b", "bf16")
    ids = text(1, 90)
    whole = CpuRunner(model).prefill(ids, None, 90)
    for cache, most in (("bf16", 0.02), ("fp32", 0.02), ("int8", 0.05)):
        pieces = CpuRunner(model, cache, chunk=40).prefill(ids, None, 90)
        assert float((pieces - whole).abs().max()) < most * float(whole.abs().max())


def test_lookup_reads_ahead_through_the_kernels():
    model = network("3b", 4)
    prompt = ([5, 9, 2, 33, 41] * 6)[:27]
    for sampling in (Sampling(temperature=0.0), Sampling(temperature=0.6, seed=2)):
        plain, ahead = (
            [
                int(i)
                for i in generation._new_ids(model, [prompt], 60, sampling, 160, [0], Decoding(lookup=lookup))
            ]
            for lookup in (False, True)
        )
        assert ahead == plain
    assert isinstance(LookupRunner(model).under, CpuRunner)


def test_an_int8_cache_holds_what_it_was_given():
    config = ModelConfig(**SMALL, **MEMBERS["12b"])
    cache = CpuCache(config, 2, 30, "int8", None)
    k, v = (torch.randn(2, 7, 24) * scale for scale in (1.0, 1e-3))
    cache.write(1, 1, k, v)
    for which, given in enumerate((k, v)):
        kept = cache.read(1, 1, which, 7, torch.float32)
        assert bool(((kept - given).abs() <= 0.501 * given.abs().amax(2, keepdim=True) / 127).all())
    assert cache.store.nbytes + cache.scales.nbytes == 2 * 32 * bytes_per_token(config, "int8")
    with pytest.raises(AssertionError, match="cache of 30 tokens asked to hold 31"):
        cache.write(0, 0, torch.zeros(2, 31, 24), torch.zeros(2, 31, 24))


def test_what_is_used_and_why():
    assert "neither packed nor bfloat16" in why_not(network())
    assert why_not(network("3b", "bf16")) is None and why_not(network("3b", 4)) is None
    assert "on cuda" in why_not(network("3b", 4), torch.device("cuda"))
    eager = network("3b", 4)
    eager.use_attention("eager")
    assert "eager" in why_not(eager)
    odd = network("3b", "bf16")
    odd.lm_head = torch.nn.Identity()
    assert "lm_head is a Identity" in why_not(odd)
    narrow = StableLM(ModelConfig(**{**SMALL, "intermediate_size": 200})).to(torch.bfloat16)
    assert "down_proj" in why_not(narrow) and isinstance(runner_for(narrow), ModelRunner)
    assert [default_cache(network("3b", kind, torch.bfloat16)) for kind in KINDS] == ["bf16", "bf16", "int8"]
    assert default_cache(network("3b", 8)) == "fp32"
    model = network("3b", 4)
    assert token_bytes(model) == 2 * 2 * 4 * (32 + 4) and token_bytes(model, "bf16") == 2 * 2 * 4 * 64
    assert decoding(model).startswith("Numba") and decoding(model).endswith("cache in int8")


def test_wrong_caches_are_named():
    with pytest.raises(InputError, match="cache = 'int4' does not exist; choose fp32, bf16, int8"):
        runner_for(network("3b", 4), "int4")
    with pytest.raises(InputError, match=r"read by the CPU kernels alone.*model.layers.0.self_attn.q_proj"):
        generate_ids(network(), text(1, 4), max_new_tokens=2, cache="int8")
    assert isinstance(runner_for(network(), "fp32"), ModelRunner)


def test_without_numba_the_plain_network_runs_and_says_so(monkeypatch):
    model = network("3b", 4)
    monkeypatch.setitem(__import__("sys").modules, "stablelm.kernels.cpu.products", None)
    assert isinstance(runner_for(model), ModelRunner)
    assert "PyTorch operators" in decoding(model) and "Numba cannot be used here" in decoding(model)
    assert generate_ids(model, text(1, 4), max_new_tokens=3, eos_ids=[]).shape == (1, 7)


def test_a_cache_that_does_not_fit_is_refused_before_anything_is_read(monkeypatch):
    model = network("3b", 4)
    needed = 2 * 13 * token_bytes(model)
    monkeypatch.setattr(runner, "free_memory", lambda device: needed)
    assert generate_ids(model, text(2, 10), max_new_tokens=4, eos_ids=[]).shape == (2, 14)
    monkeypatch.setattr(runner, "free_memory", lambda device: needed - 1)
    with pytest.raises(InputError, match="cache for 2 x 13 tokens"):
        generate_ids(model, text(2, 10), max_new_tokens=4)


def test_weights_changed_in_place_are_seen():
    """A runner reads weights where they lie, so a later text uses the weights of its time."""
    model = network("3b", "bf16")
    before = forced(CpuRunner(model), text(1, 6), 2)
    other = copy.deepcopy(model)
    other.model.layers[0].mlp.down_proj.weight.mul_(2)
    assert not torch.equal(forced(CpuRunner(other), text(1, 6), 2), before)
    model.load_state_dict(other.state_dict())
    assert torch.equal(forced(CpuRunner(model), text(1, 6), 2), forced(CpuRunner(other), text(1, 6), 2))
    assert cpu_runner.why_not(model) is None
