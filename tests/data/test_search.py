"""`find` against decoding every document and looking."""

import random
from pathlib import Path

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.data import search
from stablelm.data.search import find
from stablelm.data.token_files import TokenFile
from stablelm.tokenizer import Tokenizer

WORDS = [
    "the cat",
    "sat on",
    "a hat",
    "münze",
    "naïve",
    "日本語",
    "🙂🙃",
    "  x = 1\n\n",
    "\t",
    "end",
    "<|endoftext|>",
    "é",
]


@pytest.fixture(scope="module")
def texts():
    pick = random.Random(3)
    return [
        "".join(pick.choice(WORDS) + pick.choice(["", " ", "\n"]) for _ in range(n % 37))
        for n in range(1, 90)
    ]


@pytest.fixture
def dataset(run, tmp_path, texts):
    for name, part in (("one", texts[:50]), ("two", texts[50:])):
        (tmp_path / name).mkdir()
        for number, text in enumerate(part):
            (tmp_path / name / f"{number:03}.txt").write_bytes(text.encode())
    return run(one=[tmp_path / "one"], two=[tmp_path / "two"], recipe={"held_out": 0.1, "on_error": "skip"})


def brute(dataset, text):
    tokenizer = Tokenizer.from_file(dataset.tokenizer_path)
    expected = []
    for name in dataset.sources:
        for side, file in (("train", dataset.train(name)), ("held_out", dataset.held_out(name))):
            for number in range(file.num_documents if file else 0):
                content = tokenizer.decode(file.document(number), skip_special_tokens=True)
                if text in content:
                    expected.append((name, side, number, content.count(text), content.index(text)))
    return expected


NEEDLES = [
    "the cat", "e c", "at", "t", "hat", "münze", "ünz", "n", "naïve",
    "ïv", "日本語", "本", "🙂", "🙃🙂", "x = 1", "= 1\n\n", " ", "\n",
    "\t", "end", "dsat on", "<|endoftext|>", "endoftext|>", "é", "absent", "the cat sat on a hat",
]  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_find_is_decoding_and_looking(dataset, monkeypatch, chunk):
    monkeypatch.setattr(search, "_CHUNK", chunk)
    tokenizer = Tokenizer.from_file(dataset.tokenizer_path)
    for text in NEEDLES:
        found = find(dataset, text)
        assert [(f.source, f.side, f.document, f.times, f.character) for f in found] == brute(dataset, text)
        assert found or text in ("absent", "the cat sat on a hat")
        for each in found:
            file = dataset.train(each.source) if each.side == "train" else dataset.held_out(each.source)
            first, stop = each.tokens
            ids = file.document(each.document).tolist()
            assert text in tokenizer.decode(ids[first:stop])
            assert text not in tokenizer.decode(ids[first + 1 : stop])
            assert text not in tokenizer.decode(ids[first : stop - 1])
            assert text in each.snippet
            assert each.file == str(Path(dataset.path) / each.source / each.side)
            ids_of = dataset.document_ids(each.source, [each.document], each.side)
            assert each.id == ids_of[each.document]


def test_every_document_is_found_by_its_own_text(dataset):
    tokenizer = Tokenizer.from_file(dataset.tokenizer_path)
    for name in dataset.sources:
        file = dataset.train(name)
        for number in range(file.num_documents):
            content = tokenizer.decode(file.document(number), skip_special_tokens=True)
            assert number in [f.document for f in find(dataset, content, sources=[name]) if f.side == "train"]


def test_limits_and_sources(dataset):
    every = find(dataset, "a")
    assert [find(dataset, "a", limit=n) for n in (1, 3)] == [every[:1], every[:3]]
    assert find(dataset, "a", sources=["two"]) == [each for each in every if each.source == "two"]
    with pytest.raises(InputError, match="no source 'thre'; valid: one, two"):
        find(dataset, "a", sources=["thre"])
    with pytest.raises(InputError, match="empty text"):
        find(dataset, "")


def test_a_text_passes_the_tokenizer_s_normalizer(shared):
    """GPT-NeoX's composes characters (NFC), so what a user types decomposed is found."""
    spelling = search._Spelling(Tokenizer.from_file(shared / "data/neox-tokenizer/tokenizer.json"))
    assert spelling.normal("nai\u0308ve") == "na\u00efve"
    assert spelling.normal("  two   runs of     spaces \n") == "  two   runs of     spaces \n"


def test_bytes_of_every_kind_of_token(shared):
    tokenizer = Tokenizer.from_file(shared / "data/neox-tokenizer/tokenizer.json")
    spelling = search._Spelling(tokenizer)
    text = "def f(x):\n        return  x    # naïve 日本語 🙂 <|endoftext|>\r\n" + " " * 30 + "é"
    ids = np.array(tokenizer.encode_documents([text])[0], dtype=np.uint16)
    content, places = spelling.of(ids)
    assert content.decode() == text
    assert places[-1] == len(content)
    assert spelling.of(np.array([0, 50276, 50277, 60000], dtype=np.uint16))[0] == b"\xff" + b"  "
    assert spelling.of(ids[:0])[0] == b""


def test_a_tokenizer_without_bytes_is_decoded(dataset, monkeypatch):
    monkeypatch.setattr(Tokenizer, "is_byte_level", False)
    for text in ("the cat", "naïve", "🙃🙂", "absent"):
        found = find(dataset, text)
        assert [(f.source, f.side, f.document, f.times, f.character) for f in found] == brute(dataset, text)


def test_the_shard_of_what_was_found(run, json_lines, tmp_path):
    json_lines(tmp_path / "x.jsonl", *({"text": f"the cat number {n} sat"} for n in range(60)))
    made = run(recipe={"shard_tokens": 100, "held_out": 0.3}, web=[tmp_path / "x.jsonl"])
    found = find(made, "the cat number")
    assert len(found) == 60 and len({each.shard for each in found}) > 5
    for each in found:
        assert Path(each.shard).parent == made.path / "web" and Path(each.shard).name.startswith(each.side)
        whole = made.train("web") if each.side == "train" else made.held_out("web")
        there = TokenFile(each.shard.removesuffix(".bin")).document(each.place)
        assert there.tolist() == whole.document(each.document).tolist()
