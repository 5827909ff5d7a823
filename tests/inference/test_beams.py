"""Beam search against every text there is; best-of-n against scores of its own; what does not go together."""

import itertools
from functools import partial

import pytest
import torch

from stablelm.config import InputError
from stablelm.inference import Decoding, Sampling, Window, generate, generate_ids, runner, score_ids
from stablelm.inference.beams import beam_search
from stablelm.inference.runner import ModelRunner
from stablelm.inference.window import WindowRunner
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer
from tests.inference.networks import network as sharp

network = partial(sharp, factor=4)


@pytest.fixture(scope="module")
def model() -> StableLM:
    return network(64)


def all_texts(model: StableLM, prompt: list[int], count: int, ends: list[int], penalty: float) -> dict:
    """The score of every text of at most `count` ids: the sum from `score_ids`, divided by the length."""
    size, found = model.config.vocab_size, {}
    for length in range(1, count + 1):
        for text in itertools.product(range(size), repeat=length):
            whole = any(token in ends for token in text[:-1])
            if whole or (length < count and text[-1] not in ends):
                continue
            nats = score_ids(model, [*prompt, *text]).log_probabilities[len(prompt) - 1 :]
            found[text] = float(nats.sum()) / length**penalty
    return found


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_with_beams_enough_it_finds_the_likeliest_of_all_texts(penalty: float) -> None:
    """7 ids, 3 tokens, 49 beams: everything is kept, so nothing can be missed."""
    model = network(7)
    scores = all_texts(model, [3, 4], 3, [0], penalty)
    best = sorted(scores, key=lambda text: -scores[text])
    found = beam_search(ModelRunner(model), [3, 4], 3, 49, penalty, ends=[0])
    if penalty <= 0:  # above 0 the early stop may miss longer ones, as documented
        assert [one.ids for one in found[:20]] == best[:20]
    assert found[0].ids == best[0]
    for one in found:
        assert one.score == pytest.approx(scores[one.ids], abs=1e-4)


def test_more_beams_find_no_worse_and_one_beam_is_greedy(model: StableLM) -> None:
    prompt = [5, 9, 2]
    scores = [beam_search(ModelRunner(model), prompt, 12, beams)[0].score for beams in (1, 4, 24)]
    assert scores[0] < scores[1] <= scores[2]
    greedy = generate_ids(model, torch.tensor([prompt]), max_new_tokens=12, eos_ids=[])[0, 3:]
    assert beam_search(ModelRunner(model), prompt, 12, 1)[0].ids == tuple(greedy.tolist())


def test_a_hypothesis_scores_what_score_ids_says(model: StableLM) -> None:
    """The rows change places and are trimmed to beams that go on; the cache must follow."""
    prompt = [5, 9, 2, 40]
    for penalty in (0.0, 1.0, 2.0):
        for one in beam_search(ModelRunner(model), prompt, 15, 5, penalty, ends=[7, 11, 30]):
            nats = score_ids(model, [*prompt, *one.ids]).log_probabilities[len(prompt) - 1 :]
            assert one.score == pytest.approx(float(nats.sum()) / len(one.ids) ** penalty, abs=1e-3)
            assert not {7, 11, 30} & set(one.ids[:-1])


def test_forbidden_ids_and_penalties(model: StableLM) -> None:
    prompt = torch.tensor([[5, 9, 2]])
    way = Decoding(beams=4)
    sampling = Sampling(allowed_ids=[3, 8, 20], min_new_tokens=6)
    ids = generate_ids(model, prompt, max_new_tokens=9, sampling=sampling, eos_ids=[8], way=way)[0, 3:]
    assert set(ids.tolist()) <= {3, 8, 20} and 8 not in ids[:6]
    one = generate_ids(model, prompt, max_new_tokens=9, sampling=Sampling(allowed_ids=[3]), way=way)
    assert one[0, 3:].tolist() == [3] * 9, "one text is left, in one beam"
    strong = Sampling(repetition_penalty=50.0)
    ids = generate_ids(model, prompt, max_new_tokens=20, sampling=strong, eos_ids=[], way=way)[0].tolist()
    assert len(set(ids)) == 23
    often = Sampling(frequency_penalty=30.0)
    ids = generate_ids(model, prompt, max_new_tokens=20, sampling=often, eos_ids=[], way=way)[0, 3:].tolist()
    assert len(set(ids)) == 20


def test_rows_are_searched_alone_and_filled(model: StableLM) -> None:
    ids, mask = torch.tensor([[5, 9, 2, 8], [0, 0, 7, 1]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    way = Decoding(beams=3, length_penalty=0.0)
    ends = [11, 30, 45, 60, 2, 3, 4]
    both = generate_ids(model, ids, mask, max_new_tokens=12, eos_ids=ends, pad_id=1, way=way)
    lengths = set()
    for row, start in ((0, 0), (1, 2)):
        own = generate_ids(model, ids[row : row + 1, start:], max_new_tokens=12, eos_ids=ends, way=way)[0]
        assert both[row, start:].tolist()[: len(own)] == own.tolist()
        assert set(both[row, start + len(own) :].tolist()) <= {1}
        lengths.add(len(own) + start)
    assert both.shape[1] == max(lengths)


def test_text_of_a_list_and_stop_strings(words: Tokenizer) -> None:
    model = network(512, 3)
    prompts = ["the river", "a small town, and"]
    plain = generate(model, words, prompts, beams=4, max_new_tokens=16)
    assert plain == [generate(model, words, prompt, beams=4, max_new_tokens=16) for prompt in prompts]
    again = generate(model, words, prompts[0], beams=4, max_new_tokens=16, temperature=0)
    assert again == plain[0] and len(plain[0]) > 3
    for stop in (plain[0][2], plain[0][2:5]):
        found = generate(model, words, prompts[0], beams=4, max_new_tokens=16, stop=stop)
        assert stop not in found
    everything = [chr(number) for number in range(33, 127)]
    found = generate(model, words, prompts[0], beams=4, max_new_tokens=16, stop=everything)
    assert not set(everything) & set(found) and len(found) < len(plain[0])


def test_a_window_while_nothing_is_dropped(model: StableLM) -> None:
    whole = beam_search(ModelRunner(model), [5, 9, 2], 12, 4)
    assert beam_search(WindowRunner(model, Window(30)), [5, 9, 2], 12, 4) == whole
    narrow = beam_search(WindowRunner(model, Window(4, 1)), [5, 9, 2], 40, 4)
    assert len(narrow[0].ids) == 40


def test_best_of_is_the_likeliest_of_the_texts_with_these_seeds(words: Tokenizer) -> None:
    model = network(512, 3)
    settings = dict(max_new_tokens=20, temperature=1.3, top_k=200)
    ways: set[int] = set()
    for first, prompt in ((10, "the river"), (20, "her letter"), (30, "x")):
        texts = generate(model, words, [prompt] * 5, seed=first, **settings)
        row = words.encode(prompt)
        sampling = Sampling(temperature=1.3, top_k=200, seed=first)
        ids = generate_ids(
            model, torch.tensor([row] * 5), max_new_tokens=20, sampling=sampling, real_ids=words.size,
            eos_ids=[words.eos_id],
        )[:, len(row) :].tolist()  # fmt: skip
        means = []
        for new in ids:
            new = new[: new.index(words.eos_id) + 1] if words.eos_id in new else new
            means.append(float(score_ids(model, [*row, *new]).log_probabilities[len(row) - 1 :].mean()))
        best = means.index(max(means))
        ways.add(best)
        assert generate(model, words, prompt, best_of=5, seed=first, **settings) == texts[best]
    assert len(ways) > 1, "not always the first"
    several = generate(model, words, ["her letter", "x"], best_of=5, seed=20, **settings)
    alone = [
        generate(model, words, prompt, best_of=5, seed=20 + number, **settings)
        for number, prompt in enumerate(("her letter", "x"))
    ]
    assert several == alone


def test_the_prompt_of_several_samples_is_read_once(words: Tokenizer, monkeypatch) -> None:
    model, shapes = network(512, 3), []
    hidden = ModelRunner._hidden
    monkeypatch.setattr(ModelRunner, "_hidden", lambda *g: shapes.append(tuple(g[1].shape)) or hidden(*g))
    generate(model, words, "the river", best_of=6, max_new_tokens=3)
    length = len(words.encode("the river"))
    assert shapes == [(1, length), (6, 1), (6, 1)]


def test_a_stop_string_ends_a_sample_and_its_mean(words: Tokenizer) -> None:
    """What is drawn after the stop belongs to no text."""
    model = network(512, 3)
    settings = dict(max_new_tokens=30, temperature=1.2)
    plain = generate(model, words, ["the river"] * 4, seed=1, **settings)
    stop = plain[2][3:5]
    cut = generate(model, words, ["the river"] * 4, seed=1, stop=stop, **settings)
    assert generate(model, words, "the river", best_of=4, seed=1, stop=stop, **settings) in cut


def test_what_does_not_go_together(model: StableLM, words: Tokenizer) -> None:
    big = network(512)
    for settings, message in (
        (dict(beams=0), "beams must be a whole number of at least 1, not 0"),
        (dict(best_of=True), "best_of must be a whole number"),
        (dict(beams=2, length_penalty=float("nan")), "length_penalty must be a finite number"),
        (dict(length_penalty=2.0), "length_penalty compares the hypotheses of a beam search"),
        (dict(beams=2, best_of=2), "choose one of them"),
        (dict(beams=2, lookup=True), "lookup reads ahead for one plain text; it does not go with beams"),
        (dict(best_of=2, lookup=True), "does not go with best_of"),
        (dict(window=9, lookup=True), "does not go with a window"),
        (dict(beams=2, top_k=4), "beam search draws nothing: top_k has no effect"),
        (dict(beams=2, seed=4), "seed has no effect"),
        (dict(beams=2, temperature=0.5), "temperature has no effect"),
        (dict(best_of=3, temperature=0), "at temperature 0 all 3 texts are the same"),
    ):
        with pytest.raises(InputError, match=message):
            generate(big, words, "the", **settings)
    with pytest.raises(InputError, match="best_of returns one text of several; call generate"):
        generate_ids(model, torch.tensor([[1]]), way=Decoding(best_of=2))


def test_every_prompt_is_checked_before_the_first_is_read(words: Tokenizer, monkeypatch) -> None:
    model = network(512)
    monkeypatch.setattr(model, "hidden_states", None)
    with pytest.raises(InputError, match="the model's context is"):
        generate(model, words, ["the river", "a town " * 4000], beams=2)


def test_rows_that_would_not_fit_are_refused_before_the_start(model: StableLM, words, monkeypatch) -> None:
    big = network(512)
    length = len(words.encode("the river"))
    needed = 4 * (length + 7) * big.config.kv_bytes_per_token(4)
    monkeypatch.setattr(runner, "free_memory", lambda device: needed - 1)
    monkeypatch.setattr(big, "hidden_states", None)
    for way in (dict(beams=4), dict(best_of=4)):
        with pytest.raises(InputError, match=rf"cache for 4 x {length + 7} tokens"):
            generate(big, words, "the river", max_new_tokens=8, **way)
    monkeypatch.setattr(runner, "free_memory", lambda device: 4 * 6 * big.config.kv_bytes_per_token(4) - 1)
    with pytest.raises(InputError, match="cache for 4 x 6 tokens"):
        generate(big, words, "the river", max_new_tokens=800, best_of=4, window=4, sinks=1)


def test_logits_that_are_not_finite_stop_it(words: Tokenizer) -> None:
    model = network(512)
    with torch.no_grad():
        model.lm_head.weight[3, 5] = float("nan")
    for way in (dict(beams=3), dict(best_of=3)):
        with pytest.raises(InputError, match="the logits of new token 0 are not finite"):
            generate(model, words, "the", **way)
