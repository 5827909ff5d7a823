"""Generation: the same text cached or not, alone or in a batch, whole or streamed; and every refusal."""

import pydoc_data.topics
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from stablelm.config import InputError, preset
from stablelm.inference import Sampling, generate, generate_ids, stream
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer, train_tokenizer
from tests.inference.networks import network as sharp

PROMPTS = [
    "The if statement",
    "",
    "A class definition defines a class object; see the section on them. " * 2,
    "x",
]
WARM = dict(temperature=0.9, top_k=60, top_p=0.95, min_p=0.001, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [*list(pydoc_data.topics.topics.values())[:30], "🦕🦕 naïve"]
    return train_tokenizer(texts, 900)


network = partial(sharp, 1024)


@pytest.fixture(scope="module")
def model() -> StableLM:
    return network()


class Script(nn.Module):
    """In place of a head: a row's likeliest id is the one its script says, then the one above it."""

    def __init__(self, rows: Sequence[Sequence[int]], size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.rows, self.size = rows, size
        self.asked: list[tuple[int, ...]] = []

    def forward(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], self.size)
        for row, ids in enumerate(self.rows):
            wanted = ids[len(self.asked) % len(ids)]
            logits[row, wanted], logits[row, wanted + 1] = 90.0, 50.0  # drawn 1 time in 10¹⁷
        assert torch.is_inference_mode_enabled(), "no graph of gradients is built"
        self.asked.append(tuple(hidden.shape))
        return logits


def scripted(*rows: Sequence[int]) -> StableLM:
    model = network()
    model.lm_head = Script(rows, 1024)
    return model


@torch.inference_mode()
def greedy_without_cache(model: StableLM, ids: list[int], count: int, size: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1, :size].argmax()))
    return ids[-count:]


def test_greedy_is_the_arg_max_of_the_whole_text_each_time(model: StableLM, tokenizer: Tokenizer) -> None:
    for prompt in PROMPTS[:3]:
        ids = tokenizer.encode(prompt) or [0]
        expected = greedy_without_cache(model, ids, 40, tokenizer.size)
        assert 0 not in expected
        out = generate_ids(model, torch.tensor([ids]), max_new_tokens=40, real_ids=tokenizer.size)
        assert out.tolist() == [ids + expected]
        text = generate(model, tokenizer, prompt, max_new_tokens=40, temperature=0)
        assert text == tokenizer.decode(expected, skip_special_tokens=True)


def test_greedy_of_a_batch_is_greedy_of_each_alone(model: StableLM, tokenizer: Tokenizer) -> None:
    alone = [generate(model, tokenizer, prompt, max_new_tokens=30, temperature=0) for prompt in PROMPTS]
    assert len(set(alone)) == 4
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=30, temperature=0) == alone
    penalised = dict(max_new_tokens=30, temperature=0, repetition_penalty=1.5)
    alone = [generate(model, tokenizer, prompt, **penalised) for prompt in PROMPTS]
    assert generate(model, tokenizer, PROMPTS, **penalised) == alone


def test_a_sampled_row_does_not_depend_on_its_neighbours(model: StableLM, tokenizer: Tokenizer) -> None:
    alone = [
        generate(model, tokenizer, p, max_new_tokens=30, seed=70 + row, **WARM)
        for row, p in enumerate(PROMPTS)
    ]
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=30, seed=70, **WARM) == alone
    assert (
        generate(model, tokenizer, [PROMPTS[0], "quite another"], max_new_tokens=30, seed=70, **WARM)[0]
        == alone[0]
    )


def test_seeds_repeat_and_differ(model: StableLM, tokenizer: Tokenizer) -> None:
    texts = [generate(model, tokenizer, "The", max_new_tokens=20, seed=seed) for seed in (1, 1, 2, -3, 2**80)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4
    assert generate(model, tokenizer, "The", max_new_tokens=20) != generate(
        model, tokenizer, "The", max_new_tokens=20
    )
    same = generate(model, tokenizer, ["The"] * 3, max_new_tokens=20, seed=1)
    assert len(set(same)) == 3, "each row draws for itself"
    longer = generate(model, tokenizer, "The", max_new_tokens=33, seed=1)
    assert longer.startswith(texts[0]), "a draw depends on its position only"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_is_the_text_in_pieces(model: StableLM, tokenizer: Tokenizer, prompt: str) -> None:
    pieces = list(stream(model, tokenizer, prompt, max_new_tokens=25, seed=4, **WARM))
    assert "".join(pieces) == generate(model, tokenizer, prompt, max_new_tokens=25, seed=4, **WARM)
    assert all(pieces)


def test_a_stream_tells_every_id_it_draws(tokenizer: Tokenizer) -> None:
    ids = [5, 6, *tokenizer.encode("é")[:1], 7, tokenizer.eos_id, 9]
    heard: list[int] = []
    text = "".join(stream(scripted(ids), tokenizer, "p", max_new_tokens=6, on_token=heard.append))
    assert heard == ids[:5], "the end token too, and nothing after it"
    assert text == tokenizer.decode(ids[:4])
    heard.clear()
    stop = tokenizer.decode([6])
    assert list(stream(scripted(ids), tokenizer, "p", max_new_tokens=6, stop=stop, on_token=heard.append))
    assert heard == ids[:2], "the tokens of the stop text were drawn as well"


def test_pieces_come_token_by_token_from_the_last_position_only(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three")
    model = scripted(ids)
    prompt = "a prompt of several tokens"
    passes: list[int] = []
    plain = model.hidden_states
    model.hidden_states = lambda ids, *rest: passes.append(ids.shape[1]) or plain(ids, *rest)
    pieces = stream(model, tokenizer, prompt, max_new_tokens=len(ids))
    assert not passes, "nothing is computed before the first piece is wanted"
    for number, token in enumerate(ids):
        assert next(pieces) == tokenizer.decode([token])
        assert len(passes) == number + 1
    assert list(pieces) == []
    assert passes == [len(tokenizer.encode(prompt)), *[1] * (len(ids) - 1)]
    assert model.lm_head.asked == [(1, 128)] * len(ids)


def test_characters_split_over_tokens_come_whole(tokenizer: Tokenizer) -> None:
    backend_ids = [tokenizer.token_to_id(symbol) for symbol in "ðŁ¦ķ"]  # the four bytes of 🦕
    assert None not in backend_ids
    x = tokenizer.encode("x")
    pieces = list(stream(scripted([*x, *backend_ids, *x]), tokenizer, "p", max_new_tokens=6))
    assert pieces == ["x", "🦕", "x"]
    cut = list(stream(scripted([*x, *backend_ids]), tokenizer, "p", max_new_tokens=3))
    assert "".join(cut) == tokenizer.decode([*x, *backend_ids[:2]]) == "x\ufffd"


@pytest.mark.parametrize("stop", ["two", ["never", "two"], "e tw", "o t", " two", ["two three", "two"]])
def test_stops_are_matched_on_text_across_tokens(tokenizer: Tokenizer, stop) -> None:
    text = "one two three four"
    letters = [tokenizer.token_to_id(c.replace(" ", "Ġ")) for c in text]
    for ids in (letters, tokenizer.encode(text)):
        model = scripted(ids)
        options = dict(max_new_tokens=len(ids), stop=stop)
        found = next(s for s in ([stop] if isinstance(stop, str) else reversed(stop)) if s in text)
        expected = text[: text.index(found)]
        assert generate(model, tokenizer, "p", **options) == expected
        asked = len(model.lm_head.asked)
        assert asked < len(ids), "nothing is computed after the stop"
        assert "".join(stream(scripted(ids), tokenizer, "p", **options)) == expected


def test_text_held_back_for_a_stop_is_given_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a END")
    assert generate(scripted(ids), tokenizer, "p", max_new_tokens=len(ids), stop="END of text") == "a END"
    ended = [*tokenizer.encode("a EN"), 0]
    assert generate(scripted(ended), tokenizer, "p", max_new_tokens=30, stop="END") == "a EN"


def test_end_of_text_ends_a_row_and_not_the_others(tokenizer: Tokenizer) -> None:
    word, end = tokenizer.encode(" word")[0], tokenizer.eos_id
    model = scripted([word, end, word], [word, word, word, end], [end])
    texts = generate(model, tokenizer, ["a", "b c d", "e"], max_new_tokens=50, seed=1)
    piece = tokenizer.decode([word])
    assert texts == [piece, piece * 3, ""]
    assert len(model.lm_head.asked) == 4, "generation stops when every row has ended"


def test_ids_that_the_tokenizer_does_not_have_are_never_chosen(tokenizer: Tokenizer) -> None:
    model = network(seed=9)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.size :] *= 40  # the padding rows would win nearly always
    ids = torch.tensor([tokenizer.encode("The if statement")])
    with torch.inference_mode():
        assert int(model(ids)[0, -1].argmax()) >= tokenizer.size
    for sampling in (Sampling(temperature=0), Sampling(temperature=3.0, seed=1), Sampling(top_k=5, seed=2)):
        out = generate_ids(model, ids, max_new_tokens=60, sampling=sampling, real_ids=tokenizer.size)
        assert int(out.max()) < tokenizer.size
    assert int(generate_ids(model, ids, max_new_tokens=20).max()) >= tokenizer.size, "only masked when told"
    assert generate(model, tokenizer, "The", max_new_tokens=20, temperature=2.0, seed=1) != ""


def test_a_strong_penalty_forbids_repetition_of_prompt_and_text(
    model: StableLM, tokenizer: Tokenizer
) -> None:
    prompts = [tokenizer.encode(prompt) or [0] for prompt in PROMPTS]
    sampling = Sampling(temperature=0, repetition_penalty=1e6)
    for ids in prompts:
        out = generate_ids(model, torch.tensor([ids]), max_new_tokens=60, sampling=sampling, eos_ids=[])[
            0
        ].tolist()
        new = out[len(ids) :]
        positive = [number for number in new if number in ids]
        assert len(set(new)) == len(new)
        assert not positive


def test_the_prompt_counts_as_seen_and_its_padding_does_not() -> None:
    model = scripted([5, 5, 5], [0, 0, 8])
    ids, mask = torch.tensor([[4, 5], [0, 8]]), torch.tensor([[1, 1], [0, 1]])
    once = Sampling(temperature=0, repetition_penalty=2.0)  # 50 / 2 loses to 40, and 40 / 2 to 50 / 2
    out = generate_ids(model, ids, mask, max_new_tokens=3, sampling=once, eos_ids=[])
    assert out[:, 2:].tolist() == [[6, 5, 5], [0, 1, 9]]


def test_an_empty_prompt_starts_from_the_separator(model: StableLM, tokenizer: Tokenizer) -> None:
    options = dict(max_new_tokens=15, temperature=0)
    assert generate(model, tokenizer, "", **options) == generate(model, tokenizer, "<|endoftext|>", **options)
    assert generate(model, tokenizer, [], **options) == []


def test_the_whole_context_can_be_used_and_no_more(model: StableLM, tokenizer: Tokenizer) -> None:
    prompt = "x" * 250
    length = len(tokenizer.encode(prompt))
    context = model.config.max_position_embeddings
    room = context - length
    assert 0 < room < 250
    out = generate_ids(model, torch.tensor([tokenizer.encode(prompt)]), max_new_tokens=room, eos_ids=[])
    assert out.shape == (1, context)
    with pytest.raises(InputError) as caught:
        stream(model, tokenizer, prompt, max_new_tokens=room + 1)
    for number in (length, room + 1, context + 1, context, room):
        assert f" {number:,}" in str(caught.value)
    with pytest.raises(InputError, match=r"prompt 1 has .* context is 256\. Shorten the prompt\.$"):
        generate(model, tokenizer, ["short", prompt * 3], max_new_tokens=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens must be a whole number of at least 1, not 0"),
        (dict(max_new_tokens=2.5), "max_new_tokens"),
        (dict(max_new_tokens=True), "max_new_tokens"),
        (dict(temperature=-1), "temperature"),
        (dict(top_p=1.5), "top_p"),
        (dict(top_k=-5), "top_k"),
        (dict(min_p=2), "min_p"),
        (dict(repetition_penalty=0), "repetition_penalty"),
        (dict(stop=["ok", ""]), "stop"),
        (dict(seed="x"), "seed"),
    ],
    ids=str,
)
def test_mistakes_are_refused_before_the_first_piece(model, tokenizer, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stream(model, tokenizer, "x", **options)
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, ["x"], **options)


def test_a_stream_is_one_text(model: StableLM, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="one string"):
        stream(model, tokenizer, ["a", "b"])


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    small = StableLM(preset("stablelm-1m", num_hidden_layers=1, vocab_size=tokenizer.size - 1), seed=1)
    with pytest.raises(InputError, match="900 ids, but the model has 899"):
        generate(small, tokenizer, "x")


def test_ids_with_padding_on_either_side(model: StableLM) -> None:
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    alone = [
        generate_ids(model, torch.tensor([row]), max_new_tokens=12)[0, len(row) :].tolist() for row in rows
    ]
    left = torch.tensor([[1, 1, 5, 6, 7], rows[1]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    right = torch.tensor([[5, 6, 7, 1, 1], rows[1]]), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    everywhere_wider = (
        torch.tensor([[3, 3, 5, 6, 7, 3], [3, *rows[1]]]),
        torch.tensor([[0, 0, 1, 1, 1, 0], [0, *[1] * 5]]),
    )
    for ids, mask in (left, right, everywhere_wider):
        for kind in (torch.int64, torch.bool):
            out = generate_ids(model, ids, mask.to(kind), max_new_tokens=12)
            assert torch.equal(out[:, : ids.shape[1]], ids), "the prompt comes back as it was given"
            assert out[:, ids.shape[1] :].tolist() == alone


def test_ended_rows_are_filled() -> None:
    model = scripted([4, 0, 9], [4, 4, 4, 0])
    out = generate_ids(model, torch.tensor([[3], [3]]), max_new_tokens=9, pad_id=1)
    assert out.tolist() == [[3, 4, 0, 1, 1], [3, 4, 4, 4, 0]]
    out = generate_ids(scripted([4, 7, 9]), torch.tensor([[3]]), max_new_tokens=9, eos_ids=[9, 7])
    assert out.tolist() == [[3, 4, 7]]
    out = generate_ids(scripted([0]), torch.tensor([[3]]), max_new_tokens=4, eos_ids=[])
    assert out.tolist() == [[3, 0, 0, 0, 0]]


def test_ids_that_cannot_be_read_are_refused(model: StableLM) -> None:
    for ids, mask, message in (
        (torch.tensor([1, 2]), None, r"\[batch, tokens\]"),
        (torch.tensor([[1.0, 2.0]]), None, "whole numbers"),
        (torch.tensor([[1, 2]]), torch.ones(1, 3), "same shape"),
        (torch.tensor([[1, 1024]]), None, "outside the model's vocabulary of 1,024"),
        (torch.tensor([[1, -1]]), None, "outside"),
        (torch.tensor([[1, 2], [1, 2]]), torch.tensor([[1, 1], [0, 0]]), "prompt 1 holds no token"),
        (torch.zeros(1, 0, dtype=torch.int64), None, "the prompt holds no token"),
    ):
        with pytest.raises(InputError, match=message):
            generate_ids(model, ids, mask)


def test_generation_leaves_the_callers_gradients_alone(model: StableLM, tokenizer: Tokenizer) -> None:
    pieces = stream(model, tokenizer, "x", max_new_tokens=5)
    next(pieces)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    out = generate_ids(model, torch.tensor([[1, 2]]), max_new_tokens=3)
    loss = model(out[:, :-1], labels=out[:, 1:])  # would refuse tensors made in inference mode
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
    pieces.close()


def test_bfloat16_and_mixed_precision(tokenizer: Tokenizer) -> None:
    half = network().to(torch.bfloat16)
    assert generate(half, tokenizer, PROMPTS, max_new_tokens=8, temperature=0) != [""] * 4
    mixed = network()
    mixed.compute_dtype = torch.bfloat16
    assert len(generate(mixed, tokenizer, PROMPTS, max_new_tokens=8, seed=1)) == 4


def test_weights_with_nan_stop_with_a_clear_error(tokenizer: Tokenizer) -> None:
    broken = network()
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="new token 0 are not finite"):
        generate(broken, tokenizer, "x", max_new_tokens=2)
