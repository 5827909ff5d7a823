"""Tokenizers through GGUF: the same bytes where they go along, the same ids where they are rebuilt."""

import json
import random
from pathlib import Path

import pytest
import tokenizers as hf
from gguf import GGUFReader, GGUFWriter

from stablelm.config import InputError, preset
from stablelm.interchange.gguf import load_gguf, save_gguf
from stablelm.interchange.gguf_tokenizer import tokenizer_metadata
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer, train_tokenizer

SMALL = dict(num_hidden_layers=1, hidden_size=32, num_attention_heads=1, intermediate_size=32)
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TEXTS = [
    "", " ", "it's  they'LL don't", "def f(x):\n    if x:\n\t\treturn 'a'  # two\n",
    "a<|endoftext|>  <|padding|>b", "3 33 333 33.33 ½", "日本語のテキスト", "🚀👩‍👩‍👧", "e\u0301 and \u00e9",
    " \u00a0x ", " " * 49 + "x", "\r\n\r\n", "[PAD295]",
]  # fmt: skip


@pytest.fixture(scope="module")
def texts(shared) -> list[str]:
    return [path.read_text() for path in sorted((shared / "data/corpus/raw/tree").rglob("*.txt"))]


@pytest.fixture(scope="module")
def neox(shared) -> Tokenizer:
    return Tokenizer.from_file(shared / "data/neox-tokenizer")


@pytest.fixture(scope="module")
def words(texts) -> Tokenizer:
    return train_tokenizer(texts, 700)


def model(vocab_size: int) -> StableLM:
    return StableLM(preset("stablelm-1m", vocab_size=vocab_size, **SMALL))


def changed(source: Path, target: Path, **entries) -> Path:
    """A copy without weights' change but with other metadata; None drops a key (`__` stands for a dot)."""
    reader, writer = GGUFReader(source), GGUFWriter(target, "stablelm")
    entries = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (
            "general.architecture",
            "tokenizer.huggingface.json",
        ):
            continue
        value = entries.get(field.name, field.contents())
        if value is not None:
            writer.add_key_value(field.name, value, field.types[0])
    for found in reader.tensors:
        writer.add_tensor(found.name, found.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def assert_same(ours: Tokenizer, original: Tokenizer, texts: list[str]) -> None:
    pick = random.Random(2)
    for text in (*TEXTS, *texts, *("".join(pick.choices(TEXTS, k=4)) for _ in range(50))):
        ids = original.encode(text)
        assert ours.encode(text) == ids, text[:60]
        assert ours.encode_documents([text]) == original.encode_documents([text]), text[:60]
        assert ours.decode(ids) == original.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)
    assert (ours.size, ours.eos_id, ours.pad_id) == (original.size, original.eos_id, original.pad_id)
    assert ours.special_ids == original.special_ids
    assert ours.is_byte_level


def test_the_released_tokenizer(tmp_path, neox, texts, monkeypatch) -> None:
    save_gguf(model(50_304), neox, tmp_path / "x.gguf", dtype="q8_0")
    _, same = load_gguf(tmp_path / "x.gguf")
    assert same.sha256 == neox.sha256

    def without_json(*arguments):
        return {k: v for k, v in tokenizer_metadata(*arguments).items() if "huggingface" not in k}

    monkeypatch.setattr("stablelm.interchange.gguf.tokenizer_metadata", without_json)
    save_gguf(model(50_304), neox, tmp_path / "y.gguf", dtype="q8_0")
    _, rebuilt = load_gguf(tmp_path / "y.gguf")
    assert rebuilt.sha256 != neox.sha256
    assert_same(rebuilt, neox, texts)


def test_the_metadata_of_the_released_tokenizer(neox) -> None:
    found = tokenizer_metadata(neox, preset("stablelm-3b-4e1t"))
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (len(tokens), len(found["tokenizer.ggml.merges"])) == (50_304, 50_009)
    assert tokens[50_254] == " " * 24 and tokens[50_276] == "  " and tokens[50_303] == "[PAD50303]"
    assert types[:3] == [3, 3, 1] and set(types[50_254:50_277]) == {4} and set(types[50_277:]) == {5}
    assert found["tokenizer.ggml.pre"] == "olmo" and not found["tokenizer.ggml.add_bos_token"]


@pytest.mark.parametrize("old", [False, True])
def test_files_of_other_tools(tmp_path, words, texts, old) -> None:
    """No tokenizer.json in them. Converters of 2023 wrote no name, and called padding user-defined and
    all else normal."""
    save_gguf(model(768), words, tmp_path / "x.gguf")
    kinds = [NORMAL] * words.size + [USER_DEFINED] * (768 - words.size)
    entries = dict(pre=None, token_type=kinds, padding_token_id=None, add_bos_token=None) if old else {}
    _, again = load_gguf(changed(tmp_path / "x.gguf", tmp_path / "y.gguf", **entries))
    assert again.sha256 != words.sha256
    assert_same(again, words, texts)
    _, still = load_gguf(changed(tmp_path / "x.gguf", tmp_path / "z.gguf", token_type=None))
    assert_same(still, words, [])


def arcade_like(texts: list[str]) -> dict:
    from stablelm.interchange.gguf_tokenizer import _STABLELM_2

    encoder = hf.Tokenizer(hf.models.BPE())
    split = hf.pre_tokenizers.Split(hf.Regex(_STABLELM_2), "removed", invert=True)
    level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = hf.pre_tokenizers.Sequence([split, level])
    encoder.decoder = hf.decoders.ByteLevel()
    alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    encoder.train_from_iterator(texts, hf.trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    encoder.normalizer = hf.normalizers.NFC()
    encoder.add_special_tokens(["<|endoftext|>", "<|padding|>", "<fim_prefix>"])
    return json.loads(encoder.to_str())


def test_a_tokenizer_cut_as_stablelm_2s(tmp_path, texts) -> None:
    original = Tokenizer(json.dumps(arcade_like(texts)).encode(), "like arcade100k")
    config = preset("stablelm-1m", vocab_size=640, **SMALL, bos_token_id=600, eos_token_id=600)
    save_gguf(StableLM(config), original, tmp_path / "x.gguf")
    assert tokenizer_metadata(original, config)["tokenizer.ggml.pre"] == "stablelm2"
    again, other = load_gguf(changed(tmp_path / "x.gguf", tmp_path / "y.gguf"))
    assert_same(other, original, texts)
    assert other.encode("1234") == [other.token_to_id(digit) for digit in "1234"]  # one digit at a time
    assert again.config.eos_token_id == other.eos_id == 600


def test_a_tokenizer_cut_as_gpt_2s_without_normalization(tmp_path, words, texts) -> None:
    """Its vocabulary has not GPT-NeoX's form: nothing says that its text was composed."""
    content = json.loads(words.content)
    content["normalizer"] = None
    content["added_tokens"] = content["added_tokens"][:1]  # no padding, no runs of spaces
    dropped = [token for token in content["model"]["vocab"] if token == "<|padding|>"]
    for token in dropped:
        content["model"]["vocab"]["<|unseen|>"] = content["model"]["vocab"].pop(token)
    original = with_changes(content)
    save_gguf(model(768), original, tmp_path / "x.gguf")
    _, again = load_gguf(changed(tmp_path / "x.gguf", tmp_path / "y.gguf"))
    assert_same(again, original, texts)
    assert json.loads(again.content)["normalizer"] is None


def with_changes(content: dict, **changes) -> Tokenizer:
    content = json.loads(json.dumps(content))
    for path, value in changes.items():
        place, *rest = path.split("__")
        if rest:
            content[place] = {**content[place], rest[0]: value} if isinstance(content[place], dict) else value
        else:
            content[place] = value
    return Tokenizer(json.dumps(content).encode(), "mine/tokenizer.json")


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
WORDS = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0}, "unk_token": "<|endoftext|>"}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(normalizer={"type": "NFKC"}), "the normalizer .*NFKC"),
        (dict(normalizer={"type": "Lowercase"}), "the normalizer"),
        (dict(pre_tokenizer={**LEVEL, "add_prefix_space": True}), "the pre-tokenizer"),
        (dict(pre_tokenizer={**LEVEL, "use_regex": False}), "the pre-tokenizer"),
        (dict(pre_tokenizer={"type": "Whitespace"}), "the pre-tokenizer .*Whitespace"),
        (dict(pre_tokenizer=None), "the pre-tokenizer"),
        (dict(pre_tokenizer={"type": "Sequence", "pretokenizers": [DIGITS, LEVEL]}), ".*Digits"),
        (dict(decoder=None), "not byte-level"),
        (dict(post_processor=TEMPLATE), "adds tokens to every text"),
        (dict(model__ignore_merges=True), "ignore_merges = True"),
        (dict(model__dropout=0.1), "dropout = 0.1"),
        (dict(model__byte_fallback=True), "byte_fallback = True"),
        (dict(model=WORDS), "a WordLevel model"),
        (dict(model__merges=[]), "without merges"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_cut_otherwise_is_refused(tmp_path, words, changes, message) -> None:
    tokenizer = with_changes(json.loads(words.content), **changes)
    with pytest.raises(InputError, match=message) as caught:
        save_gguf(model(768), tokenizer, tmp_path / "x.gguf")
    assert "mine/tokenizer.json: llama.cpp cannot represent" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_eat_spaces_are_refused(tmp_path, words, flag) -> None:
    content = json.loads(words.content)
    content["added_tokens"][1][flag] = True
    with pytest.raises(InputError, match=rf"the added token '<\|padding\|>' with {flag}"):
        save_gguf(model(768), with_changes(content), tmp_path / "x.gguf")


def test_a_token_spelled_like_padding_is_refused(tmp_path, words) -> None:
    content = json.loads(words.content)
    added = {**content["added_tokens"][0], "id": words.size, "content": "[PAD750]"}
    content["added_tokens"].append(added)
    with pytest.raises(InputError, match="spelled like the"):
        save_gguf(model(768), with_changes(content), tmp_path / "x.gguf")


def test_an_added_token_with_a_number_of_its_own(tmp_path, words) -> None:
    """Ids with holes between them: what is not a token is padding there, and no token here."""
    content = json.loads(words.content)
    content["model"]["vocab"]["<fim_prefix>"] = words.size + 5
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": words.size + 5, "content": "<fim_prefix>"}
    )
    original = with_changes(content)
    save_gguf(model(768), original, tmp_path / "x.gguf")
    _, again = load_gguf(changed(tmp_path / "x.gguf", tmp_path / "y.gguf"))
    assert_same(again, original, ["a <fim_prefix> b"])
    assert again.encode("<fim_prefix>") == [words.size + 5]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(model="llama"), "its tokenizer is 'llama'"),
        (dict(pre="deepseek-llm"), "tokenizer.ggml.pre 'deepseek-llm' names no way of cutting text"),
        (dict(token_type=[1, 2]), "2 token types for 768 tokens"),
        (dict(tokens=["a", "a"], token_type=[1, 1]), "the token 'a' has the ids 0 and 1"),
        (dict(tokens=["a"] * 769), "769 tokens are more than the embedding's 768 rows"),
        (dict(tokens=None), "'tokenizer.ggml.tokens' is missing"),
        (dict(merges=None), "'tokenizer.ggml.merges' is missing"),
        (dict(merges=["a b", "nothing"]), "not a tokenizer.json"),
        (dict(merges=["zzz yyy"]), "not a tokenizer.json"),
        (dict(eos_token_id=768), "tokenizer.ggml.eos_token_id is 768, beyond the vocabulary of 768"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_contradicts_itself_is_refused(tmp_path, words, entries, message) -> None:
    save_gguf(model(768), words, tmp_path / "x.gguf")
    with pytest.raises(InputError, match=message) as caught:
        load_gguf(changed(tmp_path / "x.gguf", tmp_path / "y.gguf", **entries))
    assert "y.gguf" in str(caught.value)


def test_the_tokenizer_json_and_the_tokens_must_agree(tmp_path, words) -> None:
    save_gguf(model(768), words, tmp_path / "x.gguf")
    content = (tmp_path / "x.gguf").read_bytes()
    at = content.index(b"[PAD700]") - 8  # the token before it: two spaces
    assert content[at - 2 : at] == b"  "
    (tmp_path / "y.gguf").write_bytes(content[: at - 1] + b"!" + content[at:])
    with pytest.raises(InputError, match="says that id 699 is '  ', tokenizer.ggml.tokens says otherwise"):
        load_gguf(tmp_path / "y.gguf")


def test_without_a_tokenizer(tmp_path) -> None:
    save_gguf(model(64), None, tmp_path / "x.gguf")
    assert load_gguf(tmp_path / "x.gguf")[1] is None
