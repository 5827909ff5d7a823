"""Attention kernels against each other, documents against separate passes, decoding in chunks of any size."""

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.inference.cache import KVCache
from stablelm.model import Documents, StableLM, backends
from stablelm.model.backends import choose, eager, flash, sdpa

FAMILY = [
    {},
    {"num_key_value_heads": 2, "qk_layernorm": True, "use_parallel_residual": True, "use_norm_bias": False},
]


@pytest.fixture(params=FAMILY)
def model(request):
    sizes = dict(
        vocab_size=90, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    network = StableLM(preset("stablelm-1m", **sizes, **request.param), seed=9)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return network


def tokens(*shape):
    return torch.randint(0, 90, shape, generator=torch.Generator().manual_seed(sum(shape)))


def documents(*rows):
    """Document numbers from lengths: documents((3, 2), (5,)) → [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]."""
    return torch.stack([torch.repeat_interleave(torch.arange(len(r)), torch.tensor(r)) for r in rows])


@pytest.mark.parametrize("kind", ["causal", "padded", "documents"])
@torch.no_grad()
def test_every_kernel_gives_the_same(model, kind):
    ids = tokens(2, 24)
    more = {}
    if kind == "padded":
        more["attention_mask"] = (torch.arange(24) >= torch.tensor([[9], [0]])).long()
    if kind == "documents":
        more["document_ids"] = documents((5, 1, 18), (24,))
    results = {}
    for name in ("eager", "sdpa", "flash_attention_2"):
        assert model.use_attention(name).name == (
            "eager" if name == "eager" else "sdpa"
        )  # no GPU: PyTorch's own
        results[name] = model(ids, **more)
    torch.testing.assert_close(results["sdpa"], results["eager"], atol=2e-6, rtol=0)
    assert torch.equal(results["sdpa"], results["flash_attention_2"])


@pytest.mark.parametrize("lengths", [(24,), (1, 23), (23, 1), (7, 7, 10), (1,) * 24])
@torch.no_grad()
def test_documents_do_not_see_each_other_and_begin_at_position_zero(model, lengths):
    ids = tokens(1, 24)
    together = model(ids.expand(2, -1), document_ids=documents(lengths, (12, 12)))
    alone = torch.cat([model(piece) for piece in ids.split(list(lengths), dim=1)], dim=1)
    torch.testing.assert_close(together[:1], alone, atol=2e-6, rtol=0)


def test_gradients_with_documents_equal_those_of_the_mask(model):
    ids, ends = tokens(2, 16), documents((4, 12), (9, 7))
    gradients = []
    for name in ("sdpa", "eager"):
        model.use_attention(name)
        model.zero_grad()
        model(ids, labels=ids, document_ids=ends).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-5, rtol=1e-4)


def test_documents_go_with_no_padding_and_no_cache(model):
    ids = tokens(1, 8)
    with pytest.raises(InputError, match="document_ids go with neither"):
        model(ids, attention_mask=torch.ones(1, 8), document_ids=documents((8,)))


def test_document_masks_by_hand():
    found = Documents.of(torch.tensor([[3, 3, 7, 7, 7], [1, 1, 1, 1, 2]]))
    assert found.ends == ((2, 5), (4, 5))
    assert found.positions(torch.device("cpu")).tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    assert found.mask(torch.device("cpu"))[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [(30,), (1,) * 30, (7, 1, 1, 21), (13, 17), (29, 1)])
@torch.no_grad()
def test_decoding_in_chunks_of_any_size(model, name, chunks):
    ids, mask = tokens(2, 30), (torch.arange(30) >= torch.tensor([[6], [0]])).long()
    model.use_attention(name)
    for padding in (None, mask):
        cache = KVCache(model.config, 2, 30, model.dtype, "cpu", model.attention.function)
        done, pieces = 0, []
        for size in chunks:
            done += size
            part = None if padding is None else padding[:, :done]
            pieces.append(model(ids[:, done - size : done], attention_mask=part, cache=cache))
        real = mask.bool() if padding is not None else torch.ones(2, 30, dtype=torch.bool)
        whole = model(ids, attention_mask=padding)
        torch.testing.assert_close(torch.cat(pieces, dim=1)[real], whole[real], atol=3e-6, rtol=0)


@torch.no_grad()
def test_the_full_context_of_the_code_model():
    config = preset(
        "stable-code-3b",
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
    )
    model, ids = StableLM(config, seed=1), tokens(1, 16_384) % 64
    assert config.max_position_embeddings == 16_384
    cache = KVCache(config, 1, 16_384, model.dtype, "cpu")
    model.hidden_states(ids[:, :-1], cache=cache)
    last = model(ids[:, -1:], cache=cache)
    torch.testing.assert_close(last[:, 0], model.lm_head(model.hidden_states(ids)[:, -1]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_hidden_states_of_every_layer(model):
    ids, collected = tokens(1, 9), []
    last = model.hidden_states(ids, collect=collected)
    assert len(collected) == model.config.num_hidden_layers + 1
    assert torch.equal(collected[0], model.model.embed_tokens(ids))
    assert torch.equal(model.model.norm(collected[-1]), last)


def test_the_choice_says_why(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose(None, cpu, torch.float32).reason.startswith("the default")
    assert "the CPU" in choose("flash_attention_2", cpu, torch.bfloat16).reason
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in choose("flash_attention_2", cuda, torch.bfloat16).reason
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    assert choose("flash_attention_2", cuda, torch.bfloat16).function is flash
    assert choose("flash_attention_2", cuda, torch.float32).function is sdpa
    assert choose("eager", cuda, torch.float32).function is eager
    with pytest.raises(InputError, match="did you mean 'flash_attention_"):
        choose("flash_attention", cpu, torch.float32)


def test_flash_attention_3_where_it_can_be(monkeypatch):
    """The obstacles in order, with a stand-in for GPU and package; then PyTorch is told, and sdpa runs it."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    asked = []
    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(backends.attention, "activate_flash_attention_impl", asked.append)
    assert "for CUDA, the model is on cpu" in choose("flash_attention_3", cpu, torch.bfloat16).reason
    assert "16 bits" in choose("flash_attention_3", cuda, torch.float32).reason
    assert "flash_attn_interface is not" in choose("flash_attention_3", cuda, torch.bfloat16).reason
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    assert "capability 9" in choose("flash_attention_3", cuda, torch.bfloat16).reason
    assert choose(None, cuda, torch.bfloat16).reason.startswith("the default") and not asked
    capability[0] = (9, 0)
    assert choose("sdpa", cuda, torch.bfloat16).reason.startswith("asked for") and not asked
    for name in (None, "flash_attention_3"):
        chosen = choose(name, cuda, torch.bfloat16)
        assert chosen.function is sdpa and "FlashAttention-3 is installed" in chosen.reason
    assert asked == ["FA3", "FA3"]

    def refuse(name):
        raise RuntimeError("no forward kernels")

    monkeypatch.setattr(backends.attention, "activate_flash_attention_impl", refuse)
    assert "did not load (no forward kernels)" in choose("flash_attention_3", cuda, torch.bfloat16).reason
    assert choose(None, cuda, torch.bfloat16).reason.startswith("the default")


def test_the_package_gets_its_own_layout(monkeypatch):
    """The dispatch to `flash_attn`, with a stand-in that keeps its contract: [B, S, H, D], causal, lower
    right."""

    class Package:
        @staticmethod
        def flash_attn_func(q, k, v, causal):
            assert causal
            return eager(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None).transpose(1, 2)

    monkeypatch.setattr(backends.importlib, "import_module", lambda name: Package)
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 9, 8)
    torch.testing.assert_close(flash(q, k, k, None), sdpa(q, k, k, None), atol=1e-6, rtol=0)
    mask = torch.ones(2, 1, 3, 9, dtype=torch.bool).tril(5)
    assert torch.equal(flash(q, k, k, mask), sdpa(q, k, k, mask))
