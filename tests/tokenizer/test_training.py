"""Training a tokenizer: the recipe's ids, the file's parts, the same bytes each time."""

import argparse
import inspect
import json
import os
import pydoc_data.topics
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from stablelm.config import InputError
from stablelm.tokenizer import Tokenizer, train_tokenizer

SIZE = 1200


@pytest.fixture(scope="module")
def texts() -> list[str]:
    prose = list(pydoc_data.topics.topics.values())[:40]
    return [inspect.getsource(argparse), *prose, "if x:" + " " * 25 + "y\n" + " " * 70 + "z\n"] * 2


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, SIZE)


def test_the_ids_are_the_recipes(trained: Tokenizer) -> None:
    assert trained.size == SIZE == len(trained.vocab)
    assert sorted(trained.vocab.values()) == list(range(SIZE))
    assert [trained.id_to_token(n) for n in (0, 1)] == ["<|endoftext|>", "<|padding|>"]
    assert (trained.eos_id, trained.pad_id, trained.special_ids) == (0, 1, {0, 1})
    assert all(len(trained.id_to_token(n)) == 1 for n in range(2, 258))
    assert len({trained.decode([n]) for n in range(2, 130)}) > 90
    assert [trained.id_to_token(SIZE - 23 + n) for n in range(23)] == [
        " " * length for length in range(24, 1, -1)
    ]
    for length in range(2, 25):
        assert trained.encode("x" + " " * length + "\n")[1] == SIZE + 1 - length


def test_the_file_has_the_parts_of_the_released_one(trained: Tokenizer, shared: Path, tmp_path: Path) -> None:
    trained.save(tmp_path)
    ours = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    theirs = json.loads((shared / "data/neox-tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    assert ours.keys() == theirs.keys()
    for part in ("version", "truncation", "padding", "normalizer"):
        assert ours[part] == theirs[part]
    for part in (
        "pre_tokenizer",
        "post_processor",
        "decoder",
    ):  # use_regex was implied when the other was written
        assert ours[part] == {**theirs[part], "use_regex": True}
    assert (
        ours["model"].items()
        >= {k: v for k, v in theirs["model"].items() if k not in ("vocab", "merges")}.items()
    )
    assert [{**token, "id": 0} for token in ours["added_tokens"]] == [
        {**t, "id": 0} for t in theirs["added_tokens"]
    ]


def test_no_id_is_wasted_on_what_encoding_cannot_reach(trained: Tokenizer) -> None:
    merged = [trained.id_to_token(number) for number in range(258, SIZE - 23)]
    assert not [token for token in merged if "ĠĠ" in token]
    seen = set()
    for token in merged:
        text = trained.decode([trained.token_to_id(token)])
        seen |= set(trained.encode(text)) | set(trained.encode("x" + text))
    assert len(set(range(258, SIZE - 23)) - seen) < 0.02 * SIZE, (
        "nearly every merge is what its own text encodes to"
    )


def test_every_text_comes_back(trained: Tokenizer) -> None:
    for text in (bytes(range(128)).decode(), "🦕 Ünïcödé  日本\u00a0x", " " * 61, "\x00\r\n\t", LICENCE):
        assert trained.decode(trained.encode(text)) == text


LICENCE = "Permission is hereby granted, free of charge, to any person obtaining a copy   .\n"


def test_a_literal_separator_is_ordinary_text(texts: list[str]) -> None:
    tokenizer = train_tokenizer([*texts, "<|endoftext|>" * 500], SIZE)
    ids = tokenizer.encode_documents(["a<|endoftext|>b<|padding|>"])[0]
    assert not {0, 1} & set(ids)
    assert tokenizer.encode("<|endoftext|>") == [0]


def test_the_same_texts_give_the_same_bytes(trained: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    train_tokenizer(iter(texts), SIZE, tmp_path / "again")
    assert Tokenizer.from_file(tmp_path / "again").sha256 == trained.sha256
    program = textwrap.dedent(
        f"""
        import json, sys
        from stablelm.tokenizer import train_tokenizer
        print(train_tokenizer(json.load(sys.stdin), {SIZE}).sha256)
        """
    )
    for changes in ({"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}, {"TOKENIZERS_PARALLELISM": "false"}):
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), **changes}
        other = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            env=environment,
        )
        assert other.stdout.strip() == trained.sha256, other.stderr


def test_too_little_text_says_how_much_it_supports() -> None:
    text = ["the cat sat on the mat and the cat ran, the mat sat"]
    with pytest.raises(InputError, match=r"too small for vocab_size 2,000: it supports (\d+) ids") as caught:
        train_tokenizer(text, 2000)
    supported = int(re.search(r"supports (\d+)", str(caught.value))[1])
    assert 281 < supported < 400
    assert train_tokenizer(text, supported).size == supported
    with pytest.raises(InputError, match=f"supports {supported}"):
        train_tokenizer(text, supported + 1)


def test_too_small_a_vocabulary_is_refused_before_reading() -> None:
    def texts() -> Iterator[str]:
        pytest.fail("read although the size is impossible")
        yield ""

    with pytest.raises(InputError, match="make 281 ids"):
        train_tokenizer(texts(), 280)
    assert train_tokenizer([], 281).size == 281, "bytes alone need no text"


def test_out_is_whole_or_absent(texts: list[str], tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield texts[0]
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        train_tokenizer(broken(), SIZE, tmp_path / "a")
    with pytest.raises(InputError, match="text 1, character 1"):
        train_tokenizer([texts[0], "x\udcff"], SIZE, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    counts: list[int] = []
    tokenizer = train_tokenizer(texts, SIZE, tmp_path / "a", progress=counts.append)
    assert counts == list(range(1, len(texts) + 1))
    assert tokenizer.source == str(tmp_path / "a" / "tokenizer.json")
    assert Tokenizer.from_file(tmp_path / "a").encode("def f():\n    x") == tokenizer.encode(
        "def f():\n    x"
    )
    with pytest.raises(InputError, match="already exists"):
        train_tokenizer(texts, SIZE, tmp_path / "a")
