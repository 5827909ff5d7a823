"""Fill-in-the-middle: what is cut is the document, in the paper's order, by a hash; tokens that are added."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.adaptation import InfillingConfig
from stablelm.tokenizer import Tokenizer, train_tokenizer
from stablelm.tokenizer.infilling import (
    FILL,
    TOKENS,
    Infilling,
    InfillingTokenizer,
    Marks,
    added_by,
    around,
    with_infilling,
)

TEXT = "def add(a, b):\n    return a + b  # ünï 🦕\n"


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return train_tokenizer([TEXT * 3, "def main():\n    print(add(1, 2))\n" * 3], 300)


@pytest.fixture(scope="module")
def tokenizer(plain) -> Tokenizer:
    return with_infilling(plain)


def infilling(tokenizer, rate=1.0, spm_rate=0.5, seed=7):
    return Infilling(InfillingConfig(rate=rate, spm_rate=spm_rate), seed, Marks.of(tokenizer))


def arranged(tokenizer, ours, text, *key):
    pieces = [np.array(ids, np.int32) for ids in tokenizer.encode_documents(ours.parts(text, *key))]
    return ours.arranged(pieces, *key).tolist()


def test_tokens_follow_the_last_id(plain, tokenizer):
    first = plain.size
    assert [tokenizer.token_to_id(token) for token in TOKENS] == [first, first + 1, first + 2, first + 3]
    assert tokenizer.size == first + 4 and set(range(first, first + 4)) <= tokenizer.special_ids
    assert {token: number for token, number in tokenizer.vocab.items() if number < first} == plain.vocab
    assert tokenizer.encode_documents([TEXT]) == plain.encode_documents([TEXT])
    assert (
        with_infilling(tokenizer) is tokenizer
        and added_by(tokenizer, tokenizer) == added_by(plain, plain) == ""
    )
    assert added_by(plain, tokenizer).startswith(f"<fim_prefix> {first}, <fim_middle> {first + 1}, ")
    # a text that says so is no token
    assert not {first, first + 1, first + 2} & set(
        tokenizer.encode_documents(["<fim_prefix> <fim_middle>"])[0]
    )
    assert tokenizer.decode([first + 1], skip_special_tokens=True) == ""


def test_of_neox_they_are_in_the_padded_part(shared):
    neox = Tokenizer.from_file(shared / "data" / "neox-tokenizer")
    made = with_infilling(neox)
    assert [made.token_to_id(token) for token in TOKENS] == [50_277, 50_278, 50_279, 50_280]
    assert made.size == 50_281 <= 50_304
    assert made.encode_documents([TEXT * 3]) == neox.encode_documents([TEXT * 3])


def test_saved_and_read_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.from_file(tmp_path)
    assert again.sha256 == tokenizer.sha256 and Marks.of(again) == Marks.of(tokenizer)


def test_collisions_are_refused(plain):
    parts = json.loads(plain.content)
    number = plain.token_to_id("a")
    del parts["model"]["vocab"]["a"]
    parts["model"]["vocab"]["<fim_suffix>"] = number
    parts["model"]["merges"] = []
    taken = plain.with_content(json.dumps(parts).encode())
    with pytest.raises(InputError, match=rf"<fim_suffix> is an ordinary token there \(id {number}\)"):
        with_infilling(taken)
    with pytest.raises(InputError, match="has no special token <fim_prefix>, so its model was not taught"):
        Marks.of(plain)


@given(st.text(max_size=60), st.integers(0, 50), st.sampled_from([0.0, 0.4, 1.0]))
def test_the_parts_are_the_document_in_the_papers_order(tokenizer, text, number, spm_rate):
    """Against the layouts written out: PSM and SPM (Bavarian et al., 2022, section 3 and appendix D)."""
    ours = infilling(tokenizer, spm_rate=spm_rate)
    prefix, middle, suffix = ours.parts(text, "code", str(number))
    assert prefix + middle + suffix == text
    pre, mid, suf = (tokenizer.token_to_id(f"<fim_{name}>") for name in ("prefix", "middle", "suffix"))
    a, b, c = tokenizer.encode_documents([prefix, middle, suffix])
    psm, spm = [pre, *a, suf, *c, mid, *b], [pre, suf, *c, mid, *a, *b]
    found = arranged(tokenizer, ours, text, "code", str(number))
    assert found == (spm if ours.is_spm("code", str(number)) else psm)
    if spm_rate != 0.4:
        assert found == (spm if spm_rate else psm)
    assert ours.parts(text, "code", str(number)) == [prefix, middle, suffix], "drawn once for all"


def test_rates_are_those_of_the_draws(tokenizer):
    ours = infilling(tokenizer, rate=0.3, spm_rate=0.25)
    keys = [("code", str(number)) for number in range(4000)]
    cut = [key for key in keys if len(ours.parts(TEXT, *key)) == 3]
    spm = sum(ours.is_spm(*key) for key in cut)
    assert abs(len(cut) / 4000 - 0.3) < 0.03 and abs(spm / len(cut) - 0.25) < 0.05
    places = np.array([len(ours.parts(TEXT, *key)[0]) for key in cut])
    assert abs(places.mean() / len(TEXT) - 1 / 3) < 0.03, "the first of two uniform cuts"
    other = infilling(tokenizer, rate=0.3, seed=8)
    assert cut != [key for key in keys if len(other.parts(TEXT, *key)) == 3]
    # a lower rate takes some of the same documents, cut at the same places
    fewer = infilling(tokenizer, rate=0.1, spm_rate=0.25)
    some = [key for key in keys if len(fewer.parts(TEXT, *key)) == 3]
    assert set(some) < set(cut) and all(fewer.parts(TEXT, *k) == ours.parts(TEXT, *k) for k in some)
    assert not any(len(infilling(tokenizer, rate=0).parts(TEXT, *key)) == 3 for key in keys)


def test_a_prompt_asks_as_it_was_taught(tokenizer):
    asking = InfillingTokenizer(tokenizer)
    marks = Marks.of(tokenizer)
    before, after = "def f(<fim_middle>):\n", "<|endoftext|> return"
    a, c = tokenizer.encode_documents([before, after])
    assert asking.encode(before + FILL + after) == [marks.prefix, *a, marks.suffix, *c, marks.middle]
    assert InfillingTokenizer(tokenizer, spm=True).encode(FILL) == [marks.prefix, marks.suffix, marks.middle]
    assert asking.decode(a) == before and asking.eos_id == tokenizer.eos_id
    for text in ("nothing", f"{FILL} twice {FILL}"):
        with pytest.raises(InputError, match=f"the prompt has {text.count(FILL)} marks <FILL>; it wants one"):
            around(text)
