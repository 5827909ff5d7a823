"""The library behind the tokenizer: 1.x gives the same, or is refused before it writes an id."""

import json
import types

import numpy as np
import pytest
import tokenizers as stable
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.tokenizer import Tokenizer, engine, train_tokenizer
from stablelm.tokenizer.golden import TEXTS, Plain

# From the provenance of the released file: the library's 0.23.3 and 1.0.0rc3 agree on all of them.
RELEASED = {
    "Hello world": [12092, 1533],
    "The quick brown fox jumps over the lazy dog.": [
        510, 3158, 8516, 30013, 27287, 689, 253, 22658, 4370, 15,
    ],
    "   x": [50275, 89],
    "\n\n    def f():\n        return 1\n": [535, 50274, 1545, 269, 14850, 187, 50270, 2309, 337, 187],
    "\u00e9 e\u0301 \ufb01 \u00c5": [860, 3974, 16141, 107, 212, 17732],
    " " * 30 + "end": [50254, 50272, 423],
    "1234567890 3.14159": [42594, 25025, 2270, 495, 15, 1047, 17220],
    "a<|endoftext|>b": [66, 29, 93, 423, 1171, 1156, 49651, 67],
}  # fmt: skip


class Encoding:
    """What 1.x returns for a text."""

    def __init__(self, ids):
        self.ids = ids

    @property
    def ids_array(self):
        return np.array(self.ids, np.uint32)


def fast(wrong=lambda ids: ids):
    """A module with the surface of 1.x over the stable library; `wrong` changes ids."""

    class Surface:
        def __init__(self, encoder):
            self.encoder = encoder

        @staticmethod
        def from_file(path):
            return Surface(stable.Tokenizer.from_file(path))

        def encode_batch(self, inputs, *, add_special_tokens, encode_special_tokens, padding, truncation):
            assert padding is None and truncation is None
            self.encoder.encode_special_tokens = encode_special_tokens
            return [
                Encoding(wrong(e.ids)) for e in self.encoder.encode_batch(inputs, add_special_tokens=False)
            ]

        def decode(self, ids, skip_special_tokens=True):
            return self.encoder.decode(ids, skip_special_tokens=skip_special_tokens)

    return types.SimpleNamespace(__version__="1.0.0-rc.3", Tokenizer=Surface)


@pytest.fixture(scope="module")
def neox(shared):
    return (shared / "data/neox-tokenizer/tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "small"
    train_tokenizer(["the cat sat on the mat with a hat, it's"] * 50, 290, path)
    return (path / "tokenizer.json").read_bytes()


def test_the_plain_way_gives_the_released_ids(neox):
    plain, tokenizer = Plain(json.loads(neox), "neox"), Tokenizer(neox, "neox")
    for text, ids in RELEASED.items():
        assert plain.ids(text) == ids == tokenizer.encode_documents([text])[0]


def test_the_plain_way_equals_the_library_on_the_texts_of_the_check(neox, small):
    for content in (neox, small):
        plain = Plain(json.loads(content), "file")
        assert [plain.ids(text) for text in TEXTS] == Tokenizer(content, "file").encode_documents(TEXTS)


@given(st.text(st.sampled_from("ab eE'st1 2\n\t.,-_é\u0301漢🙂<|endoftext|>"), max_size=60))
def test_the_plain_way_equals_the_library_on_others(text):
    content = test_the_plain_way_equals_the_library_on_others.content
    assert (
        Plain(json.loads(content), "file").ids(text) == Tokenizer(content, "file").encode_documents([text])[0]
    )


@pytest.fixture(autouse=True, scope="module")
def _content(small):
    test_the_plain_way_equals_the_library_on_others.content = small


def facts(tokenizer):
    ids = tokenizer.size, tokenizer.eos_id, tokenizer.pad_id, tokenizer.special_ids
    return *ids, tokenizer.vocab, tokenizer.id_to_token(5), tokenizer.id_to_token(60_000)


def test_1_x_gives_the_same_tokenizer(neox, monkeypatch):
    before = Tokenizer(neox, "neox")
    texts = [*TEXTS, "a <|endoftext|> b"]
    wanted = before.encode_documents(texts)
    about = (
        before.size,
        before.eos_id,
        before.pad_id,
        before.special_ids,
        before.vocab,
        before.id_to_token(5),
    )
    prompt, shown = before.encode(texts[-1]), before.decode([12092, 1533, 60_000, 0])
    monkeypatch.setattr(engine, "tokenizers", fast())
    assert engine.is_fast()
    after = Tokenizer(neox, "neox")
    assert after.encode_documents(texts) == wanted
    arrays = after.document_arrays(texts, np.dtype("<u2"))
    assert [array.tolist() for array in arrays] == wanted
    assert {array.dtype for array in arrays} == {np.dtype("<u2")}
    assert about == (
        after.size,
        after.eos_id,
        after.pad_id,
        after.special_ids,
        after.vocab,
        after.id_to_token(5),
    )
    assert (after.encode(texts[-1]), after.decode([12092, 1533, 60_000, 0])) == (prompt, shown)


@pytest.mark.parametrize(
    "wrong", [lambda ids: ids[:-1], lambda ids: [*ids, 0], lambda ids: ids if len(ids) < 40 else ids[::-1]]
)
def test_1_x_with_other_ids_is_refused_before_it_encodes(small, monkeypatch, wrong):
    monkeypatch.setattr(engine, "tokenizers", fast(wrong))
    tokenizer = Tokenizer(small, "my.json")
    for encode in (tokenizer.encode_documents, lambda t: tokenizer.document_arrays(t, np.dtype("<u2"))):
        with pytest.raises(InputError, match=r"my\.json: .* other ids .* pip install 'tokenizers<1'"):
            encode(["the cat"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}),
        ("normalizer", {"type": "NFKC"}),
    ],
)
def test_1_x_is_not_used_for_a_scheme_that_is_not_checked(small, monkeypatch, key, value):
    content = json.dumps({**json.loads(small), key: value}).encode()
    monkeypatch.setattr(engine, "tokenizers", fast())
    with pytest.raises(InputError, match="the only one whose ids are checked with tokenizers 1.x"):
        Tokenizer(content, "my.json").encode_documents(["the cat"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": {}}'])
def test_1_x_and_a_file_that_is_no_tokenizer(monkeypatch, content):
    monkeypatch.setattr(engine, "tokenizers", fast())
    with pytest.raises(InputError, match=r"my\.json: not a tokenizer\.json"):
        Tokenizer(content, "my.json")
