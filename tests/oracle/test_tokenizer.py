"""Tokenizers that we save against `transformers` reading the same directory."""

import logging
import pydoc_data.topics
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.tokenizer import StreamDecoder, Tokenizer, train_tokenizer

pytestmark = pytest.mark.oracle
TEXTS = [
    "def f(x):\n    if x:\n        return  {'a' :1 , \"b\": [x]}  # 'tis , isn 't it ?\n\treturn None\r\n",
    "🦕🙂🏽 \u200d👩\u200d👩\u200d👧 naïve façade 東京 \u0623\u0647\u0644\u0627 \u2028\x00\x7f",
    *["x" + " " * length + "y" for length in (*range(1, 27), 48, 49, 97)],
    "\n\n    \n \n\t  \t x   \n" + " " * 31,
    "e\u0301 \u212b \ufb01 \u1e9b\u0323 \u0344 ﷺ",
    "a<|endoftext|>b", "<|endoftext|><|endoftext|>", " <|endoftext|> ", "  <|padding|>  x", "<|endoftext|",
    "", " ", "  ", "\n",
    "1234567890 3.14159 don't I'll we've  THE  End .",
]  # fmt: skip


@pytest.fixture(scope="module", params=["neox", "trained"])
def both(request, shared: Path, tmp_path_factory) -> tuple[Tokenizer, transformers.PreTrainedTokenizerBase]:
    if request.param == "neox":
        ours = Tokenizer.from_file(shared / "data" / "neox-tokenizer")
    else:
        ours = train_tokenizer(list(pydoc_data.topics.topics.values())[:30], 900)
    folder = tmp_path_factory.mktemp(request.param)
    ours.save(folder)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_identical(both, text: str) -> None:
    ours, theirs = both
    ids = theirs(text)["input_ids"]
    assert ours(text) == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        decoder = StreamDecoder(ours, skip_special_tokens=skip)
        pieces = [decoder.push(number) for number in ids] + [decoder.flush()]
        assert "".join(pieces) == theirs.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n"), max_size=50))
def test_any_text(both, text: str) -> None:
    ours, theirs = both
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_ids(both, data) -> None:
    ours, theirs = both
    ids = data.draw(st.lists(st.integers(0, ours.size - 1), max_size=30))
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_documents_with_special_tokens_off(both) -> None:
    ours, theirs = both
    expected = [theirs(text, split_special_tokens=True)["input_ids"] for text in TEXTS]
    assert not {0, 1} & {number for ids in expected for number in ids}
    assert ours.encode_documents(TEXTS) == expected


def test_batches_and_settings(both) -> None:
    ours, theirs = both
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (0, 0, 1)
    assert (theirs.padding_side, len(theirs)) == ("left", ours.size)
    assert theirs.all_special_ids == sorted(ours.special_ids)
    for side in ("left", "right"):
        theirs.padding_side = side
        expected = theirs(TEXTS[:4], padding=True, return_tensors="pt")
        batch = ours(TEXTS[:4], padding=True, padding_side=side, return_tensors="pt")
        assert batch.input_ids.equal(expected.input_ids)
        assert batch.attention_mask.equal(expected.attention_mask)
    theirs.padding_side = "left"


def test_what_transformers_saves_is_read(both, tmp_path: Path) -> None:
    ours, theirs = both
    logging.disable(logging.WARNING)
    theirs.save_pretrained(tmp_path)
    again = Tokenizer.from_file(tmp_path)
    assert (again.size, again.eos_id, again.pad_id) == (ours.size, 0, 1)
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text)
        assert again.encode_documents([text]) == ours.encode_documents([text])
    logging.disable(logging.NOTSET)
