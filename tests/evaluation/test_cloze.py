"""A cloze set from token files: which passages, which choices, which words, and what counts as right."""

import numpy as np
import pytest
import torch

from stablelm.config import preset
from stablelm.data import TokenFile, TokenFileWriter
from stablelm.evaluation.cloze import Cloze, evaluate, make
from stablelm.evaluation.shares import Share
from stablelm.model import StableLM
from stablelm.tokenizer import train_tokenizer

WORDS = ["river", "small", "town", "neighbour", "machine", "morning", "letter", "old", "answer", "window"]


def text(number):
    pick = np.random.Philox(key=number).random_raw(60) % len(WORDS)
    return " ".join(WORDS[int(i)] + "." * (n % 7 == 6) for n, i in enumerate(pick)) + " of it."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text(number) for number in range(20)], 300)


@pytest.fixture(scope="module")
def held_out(tokenizer, tmp_path_factory):
    """Twelve documents with EOD, of 61 words, and a short one between."""
    path = tmp_path_factory.mktemp("cloze") / "held_out"
    with TokenFileWriter(path, vocab_size=tokenizer.size) as writer:
        for number in range(13):
            ids = tokenizer.encode_documents([text(number) if number != 5 else "Too short."])[0]
            writer.add([*ids, 0])
    return TokenFile(path)


@pytest.fixture(scope="module")
def items(held_out, tokenizer):
    return make(held_out, tokenizer, 0, 8, 40)


def test_choices_are_pieces_of_documents(items, held_out):
    documents = [held_out.document(n).tolist() for n in range(held_out.num_documents)]
    assert len(items.choices) == 8
    for choices in items.choices:
        begins = {before for before, _ in choices}
        assert len(begins) == 1 and len(choices) == 4 and len({after for _, after in choices}) == 4
        (begin,) = begins
        passage = [*begin[1:], *choices[0][1]]
        assert begin[0] == 0 and len(passage) == 40 and {len(after) for _, after in choices} == {5}
        holders = [
            n for n, ids in enumerate(documents)
            if any(ids[i : i + 40] == passage for i in range(0, len(ids), 40))
        ]  # fmt: skip
        assert len(holders) == 1 and 0 not in passage  # within one document, the separator left out
    assert items.chance == 0.25


def test_last_words_are_whole_words_after_what_stands_before(items, tokenizer):
    assert len(items.words) >= 6
    for before, after in items.words:
        word = tokenizer.decode(list(after))
        assert word.startswith(" ") and word.strip() in WORDS
        assert before[0] == 0 and len(before) + len(after) <= 41


def test_the_same_data_give_the_same_items(items, held_out, tokenizer):
    assert make(held_out, tokenizer, 0, 8, 40) == items
    assert make(held_out, tokenizer, 0, 9, 40) != items


def test_short_documents_give_short_passages_and_too_little_gives_none(tokenizer, tmp_path):
    def of(name, lengths):
        with TokenFileWriter(tmp_path / name, vocab_size=tokenizer.size) as writer:
            for number, length in enumerate(lengths):
                writer.add([*range(5 + number, 5 + number + length), 0])
        return make(TokenFile(tmp_path / name), tokenizer, 0, 8, 64)

    assert of("short", [40, 40, 35, 50]).choices[0][0][1] == tuple(range(33, 37))  # 32 tokens, 4 to tell
    assert of("few", [200]) is not None
    assert of("one", [63]) is None and of("tiny", [10] * 50) is None


def test_what_is_right_is_counted(items):
    """A network that gives the truth its highest score is right everywhere, one that hates it nowhere."""
    model = StableLM(preset("stablelm-1m", num_hidden_layers=1, vocab_size=384), seed=1)
    found = evaluate(model, items, 40, 200)
    assert set(found) == {"choice_accuracy", "chance", "choices", "word_accuracy", "word_loss", "words"}
    truth = tuple(tuple(sorted(choices, key=lambda pair: pair != choices[0])) for choices in items.choices)
    assert truth == items.choices
    from stablelm.evaluation.scoring import score

    ordered = []
    for choices in items.choices:
        values = [one.loglikelihood for one in score(model, choices)]
        ordered.append([pair for _, pair in sorted(zip(values, choices, strict=True))])
    best = Cloze(tuple(tuple(pairs[::-1]) for pairs in ordered), ())
    worst = Cloze(tuple(tuple(pairs) for pairs in ordered), ())
    assert evaluate(model, best, 40, 200)["choice_accuracy"] == 1.0
    assert evaluate(model, worst, 40, 200) == {
        "choice_accuracy": 0.0, "chance": 0.25, "choices": 8, "words": 0,
    }  # fmt: skip


def test_words_are_right_when_all_their_tokens_are(items):
    model = StableLM(preset("stablelm-1m", num_hidden_layers=1, vocab_size=384), seed=1)
    nats, right = 0.0, 0
    with torch.no_grad():
        for before, after in items.words:
            rows = model(torch.tensor([[*before, *after]]))[0, len(before) - 1 : -1].log_softmax(-1)
            wanted = torch.tensor(after)
            nats -= float(rows.gather(1, wanted[:, None]).sum())
            right += bool((rows.argmax(-1) == wanted).all())
    found = evaluate(model, items, 40, 200)
    assert found["word_loss"] == pytest.approx(nats / len(items.words), rel=1e-5)
    assert found["word_accuracy"] == right / len(items.words)


def test_parts_give_what_one_gives(items):
    model = StableLM(preset("stablelm-1m", num_hidden_layers=1, vocab_size=384), seed=1).double()
    sums = []
    for part in range(2):
        evaluate(model, items, 40, 100, Share(part, 2, lambda mine: sums.append(mine) or mine, 4))
    found = evaluate(model, items, 40, 100, Share(0, 1, lambda mine: sum(sums)))
    assert found == evaluate(model, items, 40, 100)
