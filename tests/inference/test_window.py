"""A window with sinks: plain generation while it suffices, then attention over what is kept."""

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.inference import Decoding, Sampling, generate_ids, runner
from stablelm.inference.runner import ModelRunner
from stablelm.inference.window import Window, WindowRunner
from stablelm.model import StableLM
from stablelm.model.rotary import Rotary


def network(name: str = "stablelm-1m", **changes) -> StableLM:
    sizes = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=96)
    sizes |= dict(bos_token_id=0, eos_token_id=0)
    config = preset(name, vocab_size=128, max_position_embeddings=48, **{**sizes, **changes})
    model = StableLM(config, seed=7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)  # attention that prefers some tokens, so that positions matter
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def model() -> StableLM:
    return network()


def drawn(length: int, seed: int = 1) -> list[int]:
    return torch.randint(1, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def recomputed(model: StableLM, ids: list[int], window: Window) -> torch.Tensor:
    """Logits [N, V] without a cache: each token attends to keys of the first `sinks` and the latest tokens,
    which are given the positions 0, 1, … in that order, as the paper says; token by token, layer by layer."""
    config = model.config
    x = model.model.embed_tokens(torch.tensor([ids]))
    for block in model.model.layers:
        attention, normed = block.self_attn, block.input_layernorm(x)
        q, k, v = (
            attention._heads(project(normed))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if attention.normalizes:
            q, k = attention.q_layernorm(q), attention.k_layernorm(k)
        rows = []
        for at in range(len(ids)):
            kept = [j for j in range(at + 1) if j < window.sinks or j > at - window.latest]
            places = Rotary(torch.arange(len(kept)), config.rotary_dim, config.rope_theta)
            place = Rotary(torch.tensor([len(kept) - 1]), config.rotary_dim, config.rope_theta)
            keys, values = (
                each[:, :, kept].repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v)
            )
            scores = place(q[:, :, at : at + 1]) @ places(keys).transpose(2, 3) * attention.head_dim**-0.5
            rows.append(scores.softmax(-1) @ values)
        attended = attention.o_proj(torch.cat(rows, dim=2).transpose(1, 2).flatten(2))
        if block.parallel:
            x = x + attended + block.mlp(normed)
        else:
            x = x + attended
            x = x + block.mlp(block.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x))[0]


@torch.inference_mode()
def stepped(model: StableLM, ids: list[int], window: Window, prompt: int, chunk: int = 1024) -> torch.Tensor:
    """Logits after the prompt and after each later token."""
    worker = WindowRunner(model, window, chunk)
    found = [worker.prefill(torch.tensor([ids[:prompt]]), None, len(ids))]
    found += [worker.step(torch.tensor([token])) for token in ids[prompt:]]
    return torch.cat(found)


@torch.inference_mode()
@pytest.mark.parametrize("room", [40, 44])
def test_it_is_plain_generation_while_nothing_is_dropped(model: StableLM, room: int) -> None:
    ids, plain, worker = torch.tensor([drawn(20)]), ModelRunner(model), WindowRunner(model, Window(room))
    assert torch.equal(worker.prefill(ids, None, 44), plain.prefill(ids, None, 44)), "to the last bit"
    for token in drawn(24, 2):
        one = torch.tensor([token])
        assert torch.equal(worker.step(one), plain.step(one))


CASES = [(12, 4, 5), (12, 4, 16), (12, 4, 17), (9, 1, 60), (8, 0, 3), (1, 3, 30), (3, 2, 100)]


@pytest.mark.parametrize(("latest", "sinks", "prompt"), CASES)
@torch.inference_mode()
def test_it_equals_attention_over_sinks_and_window_recomputed(model, latest, sinks, prompt) -> None:
    """To three times the context of 48, with moves of the window every few tokens."""
    ids, window = drawn(146), Window(latest, sinks)
    expected = recomputed(model, ids, window)
    whole = model(torch.tensor([ids]))[0]
    assert (expected[-1] - whole[-1]).abs().max() > 0.05 * whole.abs().max(), "dropping changes something"
    found = stepped(model, ids, window, prompt)
    torch.testing.assert_close(found, expected[prompt - 1 :], rtol=0, atol=1e-4 * float(whole.abs().max()))
    pieces = stepped(model, ids, window, prompt, chunk=7)
    torch.testing.assert_close(pieces, found, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("name", ["stablelm-2-1_6b", "stablelm-2-12b"])
def test_the_family_too(name) -> None:
    """Biases, shared heads, per-head norms, parallel residual."""
    model, ids, window = network(name, num_key_value_heads=2), drawn(70), Window(10, 3)
    expected = recomputed(model, ids, window)
    found = stepped(model, ids, window, 31)
    torch.testing.assert_close(found, expected[30:], rtol=0, atol=1e-4 * float(expected.abs().max()))


@torch.inference_mode()
def test_reading_several_and_going_back_before_anything_is_dropped(model: StableLM) -> None:
    ids, window = drawn(26), Window(8, 2)
    worker = WindowRunner(model, window)
    worker.prefill(torch.tensor([ids[:3]]), None, 60)
    worker.step(torch.tensor([99]))
    worker.trim(3)
    expected = recomputed(model, ids, window)
    found = worker.read(torch.tensor([ids[3:]]))[0]
    torch.testing.assert_close(found, expected[3:], rtol=0, atol=1e-4 * float(expected.abs().max()))
    with pytest.raises(AssertionError):
        worker.trim(3)


@torch.inference_mode()
def test_rows_that_were_reordered_go_on(model: StableLM) -> None:
    """As beams do: before the first drop, and after some."""
    ids, window = drawn(30), Window(8, 2)
    worker = WindowRunner(model, window)
    worker.prefill(torch.tensor([ids[:7]]), None, 60)
    worker.reorder([0, 0])
    rows = [[*ids[:7]], [*ids[:7]]]
    for number in range(24):
        one = [number + 3, 2 * number + 5]
        found = worker.step(torch.tensor(one))
        for row, token in zip(rows, one, strict=True):
            row.append(token)
        if number % 5 == 4:
            worker.reorder([1, 0])
            rows.reverse()
            found = found.flip(0)
        for row, logits in zip(rows, found, strict=True):
            expected = recomputed(model, row, window)[-1]
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@torch.inference_mode()
def test_bfloat16_stays_near_float32_after_many_moves() -> None:
    model, ids, window = network(), drawn(144), Window(16, 4)
    expected = recomputed(model, ids, window)
    once = recomputed(model.bfloat16(), ids, window).float()
    found = stepped(model, ids, window, 1)
    assert (found - expected).norm() < 1.5 * (once - expected).norm(), "as near as bfloat16 recomputed"


@torch.inference_mode()
def test_memory_is_bounded_and_computed_before_the_start(model: StableLM, monkeypatch) -> None:
    window = Window(16, 4)
    worker = WindowRunner(model, window)
    worker.prefill(torch.tensor([drawn(3)]), None, 10**9)
    held = sum(layer._buffer.nbytes for layer in worker._cache.layers)
    assert held == 24 * model.config.kv_bytes_per_token(4)
    for token in drawn(100):
        worker.step(torch.tensor([token]))
        assert worker._cache.length <= 24
    assert sum(layer._buffer.nbytes for layer in worker._cache.layers) == held
    monkeypatch.setattr(runner, "free_memory", lambda device: held - 1)
    with pytest.raises(InputError, match="cache for 1 x 24 tokens"):
        worker.prefill(torch.tensor([drawn(3)]), None, 10**9)


def test_generation_goes_on_to_three_times_the_context(model: StableLM) -> None:
    ids = torch.tensor([drawn(30)])
    with pytest.raises(InputError, match="the model's context is 48"):
        generate_ids(model, ids, max_new_tokens=114)
    greedy = dict(max_new_tokens=114, eos_ids=[])
    out = generate_ids(model, ids, way=Decoding(window=Window(20)), **greedy)[0].tolist()
    assert len(out) == 144
    logits = recomputed(model, out, Window(20))
    for at in range(29, 143):
        assert logits[at, out[at + 1]] > logits[at].max() - 1e-3
    hot = Sampling(seed=3, repetition_penalty=1.2)
    way = Decoding(window=Window(20))
    drawn_twice = [generate_ids(model, ids, way=way, sampling=hot, **greedy) for _ in range(2)]
    assert torch.equal(*drawn_twice)
    short = generate_ids(model, ids[:, :4], max_new_tokens=10, eos_ids=[])
    wide = Decoding(window=Window(40))
    assert torch.equal(generate_ids(model, ids[:, :4], max_new_tokens=10, way=wide, eos_ids=[]), short)


def test_windows_that_cannot_be(model: StableLM) -> None:
    for latest, sinks, message in (
        (0, 4, "window must be a whole number of at least 1, not 0"),
        (True, 4, "window must be"),
        (4, -1, "sinks must be a whole number of at least 0, not -1"),
    ):
        with pytest.raises(InputError, match=message):
            Window(latest, sinks)
    with pytest.raises(InputError, match=r"45 tokens and 4 sinks are 49; .* context is 48.* at most 44"):
        generate_ids(model, torch.tensor([[1]]), way=Decoding(window=Window(45)))


def test_rows_of_different_lengths_are_taken_one_by_one(model: StableLM) -> None:
    way, hot = Decoding(window=Window(8)), Sampling(seed=5)
    ids, mask = torch.tensor([drawn(20), [0] * 9 + drawn(11, 2)]), torch.ones(2, 20, dtype=torch.int64)
    mask[1, :9] = 0
    both = generate_ids(model, ids, mask, max_new_tokens=60, way=way, sampling=hot, eos_ids=[])
    for row, start in ((0, 0), (1, 9)):
        own = generate_ids(
            model, ids[row : row + 1, start:], max_new_tokens=60, way=way, sampling=hot.shifted(row),
            eos_ids=[],
        )  # fmt: skip
        assert torch.equal(both[row, start:], own[0])
