"""Perplexity of texts: every token once, with the context it should have; errors over documents."""

import json
import math
import pydoc_data.topics
import statistics

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.evaluation import text_files
from stablelm.evaluation.calibration import Calibration
from stablelm.evaluation.text_files import TextScores, documents, ratio, score_texts, windows
from stablelm.model import StableLM
from stablelm.tokenizer import train_tokenizer

TEXTS = ["A short one.", "", "ünïcode 🦕 " * 30, pydoc_data.topics.topics["if"], "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*list(pydoc_data.topics.topics.values())[:20], *TEXTS], 700)


@pytest.fixture(scope="module")
def model():
    made = StableLM(preset("stablelm-1m", num_hidden_layers=1, vocab_size=704), seed=3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3 if parameter.dim() == 2 else 1)
    return made


@torch.no_grad()
def by_hand(model, ids, window, stride):
    """One forward pass for each token, with what its window shows of the text before it."""
    ids, nats = [model.config.eos_token_id, *ids], 0.0
    for place in range(1, len(ids)):
        begin = 0
        while place > begin + window:
            begin += stride
        row = model(torch.tensor([ids[begin:place]]))[0, -1].double()
        nats -= float(row.log_softmax(-1)[ids[place]])
    return nats


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (7, 1), (400, 400)])
def test_every_token_once_with_its_context(model, tokenizer, window, stride, monkeypatch):
    monkeypatch.setattr(text_files, "GROUP_TOKENS", 50)  # several groups
    told = []
    texts = [text[:150] for text in TEXTS]
    found = score_texts(model, tokenizer, iter(texts), window, stride, told.append)
    rows = [ids for ids in tokenizer.encode_documents(texts) if ids]
    assert found.tokens == [len(ids) for ids in rows] and found.bytes == [len(t.encode()) for t in texts if t]
    expected = [by_hand(model, ids, window, stride) for ids in rows]
    assert found.nats == pytest.approx(expected, rel=2e-5)
    assert told[-1] == sum(found.tokens) and len(told) > 1
    assert found.calibration.tokens == sum(found.tokens)


def test_loss_by_position_counts_full_windows_alone(model, tokenizer, monkeypatch):
    monkeypatch.setattr(text_files, "GROUP_TOKENS", 50)
    texts = [TEXTS[3][:300], TEXTS[0], TEXTS[2][:100]]
    rows = [[0, *ids] for ids in tokenizer.encode_documents(texts)]
    found = score_texts(model, tokenizer, iter(texts), 21, 21, parts=4)
    edges = [(0, 5), (5, 10), (10, 15), (15, 21)]
    expected = {edge: [] for edge in edges}
    for row in rows:
        starts = [s for s in range(0, len(row) - 1, 21) if s + 21 < len(row)]
        sums = dict.fromkeys(edges, 0.0)
        for start in starts:
            window = torch.tensor(row[start : start + 22])
            with torch.no_grad():
                logits = model(window[None, :-1])[0].double().log_softmax(-1)
            nats = -logits.gather(1, window[1:, None])[:, 0]
            for first, last in edges:
                sums[first, last] += float(nats[first:last].sum())
        if starts:
            for edge in edges:
                expected[edge].append((sums[edge], len(starts) * (edge[1] - edge[0])))
    told = found.as_dict()["by_position"]
    assert 1 < told[0]["documents"] < 3, "one is too short"
    assert [(row["first"] - 1, row["last"]) for row in told] == edges
    for row, values in zip(told, expected.values(), strict=True):
        nats, tokens = zip(*values, strict=True)
        assert row["tokens"] == sum(tokens) and row["documents"] == len(values)
        assert row["loss"] == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)
        assert row["loss_standard_error"] == pytest.approx(ratio(nats, tokens)[1], rel=1e-3)
    twice = (found + found).as_dict()["by_position"]
    assert [row["tokens"] for row in twice] == [2 * row["tokens"] for row in told]
    assert "by_position" not in score_texts(model, tokenizer, iter(texts), 21, 21).as_dict()


@pytest.mark.parametrize(
    ("size", "window", "stride"), [(2, 1, 1), (9, 4, 4), (9, 4, 1), (30, 8, 3), (9, 8, 8)]
)
def test_windows_partition(size, window, stride):
    ids = list(range(size))
    pieces = list(windows(ids, window, stride))
    assert [i for _, after in pieces for i in after] == ids[1:]
    for before, after in pieces:
        assert before and after and len(before) + len(after) <= window + 1
        assert [*before, *after] == list(range(before[0], after[-1] + 1))


def test_standard_error():
    values = [3.0, 4.0, 6.5, 2.0]
    mean, error = ratio([5 * v for v in values], [5] * 4)
    assert mean == pytest.approx(statistics.mean(values))
    assert error == pytest.approx(statistics.stdev(values) / 2), "equal sizes: that of a mean"
    assert ratio([3.0], [2]) == (1.5, None)
    exact = ratio([2.0, 4.0, 20.0], [1, 2, 10])
    assert exact == (2.0, 0.0), "a constant ratio is known exactly, however long the documents are"
    # 4,000 draws of 200 documents: how far the estimate really spreads
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(1, 60, (4000, 200), generator=generator).double()
    nats = sizes * (3 + 0.5 * torch.randn(4000, 200, generator=generator).double())
    spread = float((nats.sum(1) / sizes.sum(1)).std())
    assert ratio(nats[0].tolist(), sizes[0].tolist())[1] == pytest.approx(spread, rel=0.2)


def test_units():
    sure = Calibration()
    sure.add(torch.tensor([[-0.1], [-0.1], [0.0]]))
    values = (TextScores([8.0], [4], [16], sure) + TextScores([6.0], [2], [8], sure)).as_dict()
    assert values["calibration"]["ece"] == pytest.approx(math.exp(-0.1))
    assert [row["tokens"] for row in values["calibration"]["bins"]] == [2]
    assert values["loss"] == pytest.approx(14 / 6) and values["perplexity"] == pytest.approx(math.exp(14 / 6))
    assert values["bits_per_byte"] == pytest.approx(14 / 24 / math.log(2))
    assert values["perplexity_standard_error"] == pytest.approx(
        values["perplexity"] * values["loss_standard_error"]
    )


def test_documents(tmp_path):
    text = tmp_path / "a.txt"
    text.write_bytes("é\r\n\n".encode())
    assert list(documents(text)) == ["é\r\n\n"]
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"body": "é\u2028x"}, ensure_ascii=False) + "\n\n" + '{"body": ""}', "utf-8")
    assert list(documents(lines, "body")) == ["é\u2028x", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": ', "line 2: not valid JSON"),
        (b'{"text": 3}', "line 1: no text under 'text' (found: text)"),
        (b'{"body": "a", "id": 2}', "found: body, id"),
        (b"[1]", "found: list"),
        (b'\n{"text": "\xe9"}', "line 2: byte 10, 0xe9, is not UTF-8"),
        (b'{"text": "\\ud83d"}', "line 1: half of a surrogate pair"),
    ],
)
def test_broken_lines_are_named(tmp_path, content, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        list(documents(file))
    assert message in str(error.value) and str(file) in str(error.value)
