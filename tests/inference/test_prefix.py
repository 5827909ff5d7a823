"""A prefix that is kept, saved and loaded: the same text with less to read; wrong ones refused."""

import json
import struct
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from stablelm.config import InputError
from stablelm.inference import PrefixCache, Sampling, generate, runner, stream
from stablelm.inference import generation as loop
from stablelm.inference.decoding import Decoding
from stablelm.inference.prefix import FORMAT, PrefixRunner, common_beginning, identity
from stablelm.inference.runner import ModelRunner
from stablelm.inference.speculation import LookupRunner
from stablelm.model import StableLM
from stablelm.model.fingerprint import digest
from tests.inference.networks import network as sharp

network = partial(sharp, num_key_value_heads=2)


@pytest.fixture(scope="module")
def model() -> StableLM:
    return network()


def drawn(length: int, seed: int = 1) -> list[int]:
    return torch.randint(1, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def held(model: StableLM, ids: list[int]) -> PrefixCache:
    cache = PrefixCache(model)
    cache.read(ids)
    assert cache.ids == ids
    return cache


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, ...]]:
    """[rows, tokens] of every pass."""
    found: list[tuple[int, ...]] = []
    hidden = ModelRunner._hidden
    monkeypatch.setattr(ModelRunner, "_hidden", lambda *g: found.append(tuple(g[1].shape)) or hidden(*g))
    return found


@torch.inference_mode()
@pytest.mark.parametrize("more", [1, 2, 30])
def test_bit_equal_to_reading_the_prompt_in_the_same_pieces(model: StableLM, more: int) -> None:
    start, rest = drawn(40), drawn(more, 2)
    plain = ModelRunner(model)
    plain.prefill(torch.tensor([start]), None, 90)
    expected = plain.extend(torch.tensor([rest]), None)
    worker = PrefixRunner(held(model, start))
    assert torch.equal(worker.prefill(torch.tensor([start + rest]), None, 90), expected)
    assert worker.skipped == 40
    for token in drawn(15, 3):
        one = torch.tensor([token])
        assert torch.equal(worker.step(one), plain.step(one))
    whole = ModelRunner(model).prefill(torch.tensor([start + rest]), None, 90)
    torch.testing.assert_close(expected, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


@torch.inference_mode()
def test_what_is_read_and_forgotten_afterwards_is_followed(model: StableLM) -> None:
    start, more = drawn(20), drawn(6, 4)
    cache = held(model, start)
    worker = PrefixRunner(cache)
    worker.prefill(torch.tensor([start + more]), None, 60)
    logits = worker.read(torch.tensor([[7, 8, 9]]))
    whole = model(torch.tensor([[*start, *more, 7, 8, 9]]))[0]
    torch.testing.assert_close(logits[0], whole[-3:], rtol=1e-3, atol=1e-3)
    assert cache.ids == [*start, *more, 7, 8, 9]
    worker.trim(22)
    assert cache.ids == [*start, *more[:2]]
    again = PrefixRunner(cache)
    found = again.prefill(torch.tensor([[*start, *more[:2], 5]]), None, 60)
    assert again.skipped == 22
    expected = model(torch.tensor([[*start, *more[:2], 5]]))[0, -1]
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_a_beginning_that_is_partly_alike_and_the_whole_prompt(model: StableLM, shapes) -> None:
    start = drawn(40)
    for prompt, skipped in (
        (start[:25] + drawn(5, 9), 25),
        (start[:17], 16),  # the last token is read for its logits
        (start, 39),
        (drawn(8, 4), 0),
        (start[:1], 0),
    ):
        cache = held(model, start)
        shapes.clear()
        worker = PrefixRunner(cache)
        logits = worker.prefill(torch.tensor([prompt]), None, len(prompt) + 3)
        assert worker.skipped == skipped and shapes == [(1, len(prompt) - skipped)]
        torch.testing.assert_close(logits[0], model(torch.tensor([prompt]))[0, -1], rtol=1e-3, atol=1e-3)
        assert cache.ids == prompt, "what it holds now"


@torch.inference_mode()
def test_padded_rows_share_it_and_leave_it(model: StableLM, shapes) -> None:
    start = drawn(20)
    rows = [start + drawn(length, 10 + length) for length in (1, 6, 3)]
    ids = torch.tensor([[0] * (26 - len(row)) + row for row in rows])
    mask = torch.arange(26) >= torch.tensor([[26 - len(row)] for row in rows])
    cache = held(model, start)
    state = {name: value.clone() for name, value in cache.state().items()}
    shapes.clear()
    worker = PrefixRunner(cache)
    logits = worker.prefill(ids, mask, 28)
    assert shapes == [(3, 6)]
    for row, found in zip(rows, logits, strict=True):
        torch.testing.assert_close(found, model(torch.tensor([row]))[0, -1], rtol=1e-3, atol=1e-3)
    after = worker.step(torch.tensor([7, 8, 9]))
    for row, token, found in zip(rows, (7, 8, 9), after, strict=True):
        torch.testing.assert_close(found, model(torch.tensor([[*row, token]]))[0, -1], rtol=1e-3, atol=1e-3)
    assert cache.ids == start and cache.state().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in cache.state().items())


SETTINGS = [
    dict(temperature=0.0),
    dict(temperature=1.2, seed=3, repetition_penalty=1.3),
    dict(temperature=1.2, seed=3, best_of=4),
    dict(beams=3),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_same_text_with_and_without(model, words, settings) -> None:
    start = "the river runs past a small town, and the old machine"
    prompts = [f"{start} waits for her letter", f"{start} runs", start, "a letter"]
    plain = [generate(model, words, prompt, max_new_tokens=24, **settings) for prompt in prompts]
    cache = held(model, words.encode(start))
    for prompt, text in zip(prompts, plain, strict=True):
        assert generate(model, words, prompt, max_new_tokens=24, prefix=cache, **settings) == text
    several = generate(model, words, prompts[:3], max_new_tokens=24, **settings)
    cache = held(model, words.encode(start))
    assert generate(model, words, prompts[:3], max_new_tokens=24, prefix=cache, **settings) == several


def test_a_conversation_reads_only_what_is_new(model, words, shapes) -> None:
    cache, text, plain = PrefixCache(model), "the old machine", "the old machine"
    for turn in range(3):
        shapes.clear()
        before = len(cache.ids)
        text += "".join(stream(model, words, text, max_new_tokens=9, temperature=0, prefix=cache))
        read = shapes[0][1]
        plain += generate(model, words, plain, max_new_tokens=9, temperature=0)
        assert text == plain
        if turn:
            assert read < 20 and before > 10
        text, plain = (each + " her letter" for each in (text, plain))


def test_an_answer_that_was_interrupted_is_held_as_far_as_it_came(model, words) -> None:
    cache = PrefixCache(model)
    pieces = stream(model, words, "the river", max_new_tokens=30, temperature=0, prefix=cache)
    for _ in range(4):
        next(pieces)
    pieces.close()
    assert len(words.encode("the river")) < len(cache.ids) < len(words.encode("the river")) + 30
    plain = generate(model, words, "the river runs", max_new_tokens=12, temperature=0)
    assert generate(model, words, "the river runs", max_new_tokens=12, temperature=0, prefix=cache) == plain


def test_saved_and_loaded(model, words, tmp_path, shapes) -> None:
    start = "the river runs past a small town, and the old machine"
    held(model, words.encode(start)).save(tmp_path / "p.safetensors")
    shapes.clear()
    cache = PrefixCache.load(tmp_path / "p.safetensors", model)
    prompt = f"{start} waits"
    text = generate(model, words, prompt, max_new_tokens=9, temperature=0, prefix=cache)
    assert shapes[0] == (1, len(words.encode(prompt)) - len(words.encode(start)))
    assert text == generate(model, words, prompt, max_new_tokens=9, temperature=0)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
    with pytest.raises(InputError, match="already exists"):
        cache.save(tmp_path / "p.safetensors")
    longer = PrefixCache.load(tmp_path / "p.safetensors", model)
    short = words.encode("the river runs")
    with torch.inference_mode():
        logits = PrefixRunner(longer).prefill(torch.tensor([short]), None, len(short))
        torch.testing.assert_close(logits[0], model(torch.tensor([short]))[0, -1], rtol=1e-3, atol=1e-3)


def test_another_models_is_refused(model, words, tmp_path) -> None:
    file = tmp_path / "p.safetensors"
    held(model, drawn(9)).save(file)
    other = network()
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[3, 4] += 1e-6
    half = network()
    half.compute_dtype = torch.bfloat16
    for wrong in (other, network(seed=6), network(num_hidden_layers=1), network(rope_theta=500.0), half):
        with pytest.raises(InputError, match="computed by another model .* make it again with --save-prefix"):
            PrefixCache.load(file, wrong)
    assert identity(model) == identity(network()) != identity(other)


def rewritten(source, target, notes=None, **changes) -> None:
    """A prefix file with other tensors; `content` is made right, unless given."""
    tensors = {**load_file(source), **changes}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    size = struct.unpack("<Q", source.read_bytes()[:8])[0]
    old = json.loads(source.read_bytes()[8 : 8 + size])["__metadata__"]
    save_file(tensors, target, {**old, "content": digest(tensors), **(notes or {})})


def test_broken_files_are_refused_by_name(model, tmp_path, monkeypatch) -> None:
    file, bad = tmp_path / "p.safetensors", tmp_path / "bad.safetensors"
    held(model, drawn(9)).save(file)
    rewritten(file, bad)
    assert PrefixCache.load(bad, model).ids == drawn(9)
    tensors = load_file(file)
    first = tensors["layers.0"]
    for changes, message in (
        (dict(notes={"format": "stablelm prefix 0"}), "not a prefix saved by this version"),
        ({"layers.0": None}, "holds other tensors"),
        ({"more": torch.zeros(1)}, "holds other tensors"),
        ({"layers.0": first.bfloat16()}, r"layers.0 is BF16 .*, the model computes F32"),
        ({"layers.1": first[:, :, :8].contiguous()}, r"layers.1 is F32 \[2, 2, 8, 32\]"),
        ({"ids": None}, "its ids are damaged"),
        ({"ids": torch.zeros(9)}, "its ids are damaged"),
        ({"ids": torch.zeros(0, dtype=torch.int64)}, "its ids are damaged"),
        ({"ids": torch.zeros(10**4, dtype=torch.int64)}, "its ids are damaged"),
        ({"ids": torch.full((9,), 512)}, "damaged: its content is not"),
        ({"ids": torch.full((9,), -1)}, "damaged: its content is not"),
    ):
        rewritten(file, bad, **changes)
        with pytest.raises(InputError, match=message) as caught:
            PrefixCache.load(bad, model)
        assert str(bad) in str(caught.value) and "--save-prefix" in str(caught.value)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    for content, message in (
        (bytes(data), "damaged: its content is not what was written"),
        (file.read_bytes()[:-5], "cannot be read as safetensors"),
        (b"", "cannot be read as safetensors"),
    ):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=message):
            PrefixCache.load(bad, model)
    with pytest.raises(InputError, match=r"nowhere: cannot be read as safetensors \(No such file"):
        PrefixCache.load(tmp_path / "nowhere", model)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        PrefixCache.load(tmp_path, model)
    monkeypatch.setattr(runner, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match="cache for 1 x 9 tokens needs"):
        PrefixCache.load(file, model)
    assert FORMAT.endswith("2")


def test_refusals(model, words) -> None:
    cache = PrefixCache(model)
    with pytest.raises(InputError, match="lookup reads ahead for one plain text; .* with a prefix"):
        generate(model, words, "the", prefix=cache, lookup=True)
    with pytest.raises(InputError, match="a window forgets what a prefix keeps"):
        generate(model, words, "the", prefix=cache, window=9)
    with pytest.raises(InputError, match="made for another model"):
        generate(network(), words, "the", prefix=cache)
    assert isinstance(Decoding(prefix=cache).runner(model), PrefixRunner)
    assert Decoding(lookup=True).runner(model) is None and loop.LookupRunner is LookupRunner


def test_what_rows_begin_with() -> None:
    assert common_beginning([[1, 2, 3], [1, 2, 4, 5]]) == [1, 2]
    assert common_beginning([[1, 2], [1, 2]]) == [1], "the last token of a row is read for its logits"
    assert common_beginning([[1, 2], [2, 2]]) == common_beginning([]) == []
    assert Sampling(seed=3).shifted(2).seed == 5 and Sampling().shifted(2).seed is None
