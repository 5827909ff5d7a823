"""The GPT-NeoX tokenizer, id for id, and what a tokenizer file may do to us."""

import copy
import json
import pickle
import threading
from pathlib import Path

import pytest
import torch

from stablelm.config import InputError
from stablelm.tokenizer import TokenBatch, Tokenizer

GOLDEN = [
    ("Hello world", [12092, 1533]),
    (
        "The quick brown fox jumps over the lazy dog.",
        [510, 3158, 8516, 30013, 27287, 689, 253, 22658, 4370, 15],
    ),
    ("   x", [50275, 89]),
    ("\n\n    def f():\n        return 1\n", [535, 50274, 1545, 269, 14850, 187, 50270, 2309, 337, 187]),
    ("\u00e9 e\u0301 \ufb01 \u00c5", [860, 3974, 16141, 107, 212, 17732]),
    (" " * 30 + "end", [50254, 50272, 423]),
    ("1234567890 3.14159", [42594, 25025, 2270, 495, 15, 1047, 17220]),
]
LITERAL = "a<|endoftext|>b"


@pytest.fixture(scope="module")
def file(shared: Path) -> Path:
    return shared / "data" / "neox-tokenizer" / "tokenizer.json"


@pytest.fixture(scope="module")
def neox(file: Path) -> Tokenizer:
    return Tokenizer.from_file(file)


@pytest.fixture
def parts(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def written(folder: Path, parts: object, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("text", "ids"), GOLDEN)
def test_golden_ids_for_prompts_and_documents(neox: Tokenizer, text: str, ids: list[int]) -> None:
    assert neox.encode(text) == ids
    assert neox.encode_documents([text, text]) == [ids, ids]


def test_the_numbers_of_the_released_tokenizer(neox: Tokenizer) -> None:
    assert neox.size == 50_277 == len(neox.vocab)
    assert (neox.eos_id, neox.pad_id, neox.special_ids) == (0, 1, {0, 1})
    assert neox.sha256 == "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade"
    assert neox.token_to_id("Ġthe") == neox.vocab["Ġthe"] == neox.encode(" the")[0]
    assert neox.id_to_token(50_276) == "  "
    assert neox.id_to_token(50_277) is None
    assert neox.id_to_token(-1) is None
    assert neox.token_to_id("no such token") is None


@pytest.mark.parametrize("length", range(2, 25))
def test_a_run_of_spaces_is_one_id(neox: Tokenizer, length: int) -> None:
    assert neox.encode("x" + " " * length + "y") == [89, 50_278 - length, 90]
    assert neox.decode([50_278 - length]) == " " * length


def test_longer_runs_are_cut_from_the_left(neox: Tokenizer) -> None:
    assert neox.encode(" " * 25 + "y") == [50_254, *neox.encode(" y")]
    assert neox.encode(" " * 26) == [50_254, 50_276]
    assert neox.encode(" " * 48) == [50_254, 50_254]
    assert neox.encode(" " * 49) == [50_254, 50_254, *neox.encode(" ")]


def test_special_tokens_are_parsed_in_prompts_and_never_in_documents(neox: Tokenizer) -> None:
    plain = [66, 29, 93, 423, 1171, 1156, 49651, 67]
    for _ in range(2):  # neither call may leave the other's setting behind
        assert neox.encode(LITERAL) == [66, 0, 67]
        assert neox.encode_documents([LITERAL]) == [plain]
    assert not {0, 1} & set(neox.encode_documents(["<|endoftext|><|padding|> <|endoftext|>"])[0])
    assert neox.decode(plain) == LITERAL


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_in_a_worker_keeps_special_tokens_off(neox: Tokenizer, clone) -> None:
    neox.encode_documents(["x"])
    other = clone(neox)
    assert 0 not in other.encode_documents([LITERAL])[0]
    assert other.encode(LITERAL) == [66, 0, 67]
    assert other.sha256 == neox.sha256


def test_prompts_and_documents_at_the_same_time(neox: Tokenizer) -> None:
    wrong = []

    def prompts() -> None:
        wrong.extend(1 for _ in range(300) if neox.encode(LITERAL) != [66, 0, 67])

    def documents() -> None:
        wrong.extend(1 for _ in range(300) if 0 in neox.encode_documents([LITERAL])[0])

    threads = [threading.Thread(target=target) for target in (prompts, documents) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_decoding_gives_back_the_normalised_text(neox: Tokenizer) -> None:
    assert neox.decode(neox.encode("e\u0301")) == "\u00e9"
    for text in (
        "x . y , z !",
        "a\r\n\tb",
        "def f( a ):\n    return  { 1 :2 }\n",
        "naïve 日本語 🙂\u200d🙂",
        "",
    ):
        assert neox.decode(neox.encode(text)) == text  # no clean-up of spaces before punctuation
    assert neox.decode(neox.encode(LITERAL)) == LITERAL
    assert neox.decode(neox.encode(LITERAL), skip_special_tokens=True) == "ab"


def test_decode_takes_what_models_give(neox: Tokenizer) -> None:
    ids = neox.encode("Hello world")
    assert neox.decode(torch.tensor(ids)) == neox.decode(tuple(ids)) == "Hello world"
    assert neox.decode(ids[0]) == neox.decode(torch.tensor(ids[0])) == "Hello"
    assert neox.batch_decode(torch.tensor([ids, ids])) == ["Hello world"] * 2
    assert neox.decode([*ids, 50_277, 50_303]) == "Hello world"  # padded rows of the vocabulary have no text
    with pytest.raises(InputError, match="-1 is not a token id"):
        neox.decode([5, -1])
    with pytest.raises(InputError, match="batch_decode"):
        neox.decode([[5, 6]])


def test_calling_gives_lists_or_tensors(neox: Tokenizer) -> None:
    assert neox("Hello world") == {"input_ids": [12092, 1533], "attention_mask": [1, 1]}
    assert neox(["Hello world", "x"])["input_ids"] == [[12092, 1533], neox.encode("x")]
    batch = neox("Hello world", return_tensors="pt")
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    assert batch.input_ids.tolist() == [[12092, 1533]]
    assert dict(**batch).keys() == {"input_ids", "attention_mask"}
    moved = batch.to("meta")
    assert isinstance(moved, TokenBatch)
    assert moved.input_ids.device.type == "meta"
    assert batch.input_ids.device.type == "cpu"
    assert neox("", return_tensors="pt").input_ids.shape == (1, 0)
    assert neox("", return_tensors="pt").input_ids.dtype == torch.int64
    with pytest.raises(AttributeError):
        _ = batch.labels


@pytest.mark.parametrize(("side", "row", "mask"), [("left", [1, 89], [0, 1]), ("right", [89, 1], [1, 0])])
def test_padding(neox: Tokenizer, side: str, row: list[int], mask: list[int]) -> None:
    batch = neox(["Hello world", "x"], return_tensors="pt", padding=True, padding_side=side)
    assert batch.input_ids.tolist() == [[12092, 1533], row]
    assert batch.attention_mask.tolist() == [[1, 1], mask]


def test_refused_calls(neox: Tokenizer) -> None:
    with pytest.raises(InputError, match="padding=True"):
        neox(["Hello world", "x"], return_tensors="pt")
    with pytest.raises(InputError, match="return_tensors='tf'"):
        neox("x", return_tensors="tf")
    with pytest.raises(InputError, match="padding_side='top'"):
        neox("x", padding=True, padding_side="top")
    with pytest.raises(InputError, match="text 1 is a NoneType"):
        neox(["x", None])
    with pytest.raises(InputError, match="text 0 is a tuple"):
        neox.encode_documents([("a", "pair")])
    with pytest.raises(InputError, match=r"text 1, character 2: '\\ud83d' is half of a surrogate pair"):
        neox.encode_documents(["fine", "ab\ud83d"])


def test_a_file_cannot_cut_or_pad_texts(tmp_path: Path, parts: dict) -> None:
    parts["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    parts["padding"] = {
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1,
        "pad_type_id": 0, "pad_token": "<|padding|>",
    }  # fmt: skip
    tokenizer = Tokenizer.from_file(written(tmp_path, parts))
    assert tokenizer.encode(GOLDEN[1][0]) == GOLDEN[1][1]
    assert tokenizer.encode_documents([GOLDEN[1][0]]) == [GOLDEN[1][1]]


def test_other_separators_are_read_from_the_configuration(tmp_path: Path, parts: dict) -> None:
    for number, name in ((0, "<sep>"), (1, "<gap>")):
        old = parts["added_tokens"][number]["content"]
        parts["added_tokens"][number]["content"] = name
        parts["model"]["vocab"][name] = parts["model"]["vocab"].pop(old)
    bare = Tokenizer.from_file(written(tmp_path, parts))
    with pytest.raises(InputError, match=r"tokenizer.json: has no token '<\|endoftext\|>'"):
        _ = bare.eos_id
    named = Tokenizer.from_file(written(tmp_path, parts, eos_token={"content": "<sep>"}, pad_token="<gap>"))
    assert (named.eos_id, named.pad_id) == (0, 1)
    assert (
        Tokenizer.from_file(written(tmp_path, parts, eos_token="<sep>")).pad_id == 0
    )  # nothing else to pad with
    named.save(tmp_path / "again")
    again = Tokenizer.from_file(tmp_path / "again")
    assert (again.eos_id, again.pad_id) == (0, 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOF"),
        (b'{"version": "1.0", "model"', "EOF"),
        (b"[]", "not a tokenizer.json"),
        (b'{"a": 1}', "not a tokenizer.json"),
        (b"\xff\xfe\x00", "not a tokenizer.json"),
        (b'{"vocab_size": 5, "model_type": "stablelm"}', "not a tokenizer.json"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        Tokenizer.from_file(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(InputError, match=r"gone\.json: no such file"):
        Tokenizer.from_file(tmp_path / "gone.json")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no such file"):
        Tokenizer.from_file(tmp_path / "file" / "tokenizer.json")


def test_saving_keeps_every_byte(tmp_path: Path, neox: Tokenizer, file: Path) -> None:
    neox.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == file.read_bytes()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["clean_up_tokenization_spaces"] is False
    assert json.loads((tmp_path / "special_tokens_map.json").read_text()) == {
        "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "pad_token": "<|padding|>",
    }  # fmt: skip
    assert Tokenizer.from_file(tmp_path).sha256 == neox.sha256
    neox.save(tmp_path)  # again, over itself
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("arcade100k.tiktoken", "IQ== 0", "arcade100k.tiktoken"),
        ("tokenization_arcade100k.py", "raise SystemExit", "tokenization_arcade100k.py"),
        (
            "tokenizer_config.json",
            json.dumps(
                {"auto_map": {"AutoTokenizer": ["tokenization_arcade100k.Arcade100kTokenizer", None]}}
            ),
            "tokenization_arcade100k.py",
        ),
    ],
)
def test_a_tokenizer_that_is_code_is_not_run_but_explained(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(
        InputError, match=f"has no tokenizer.json; its tokenizer is code .{said}.*TikTokenConverter"
    ):
        Tokenizer.from_file(tmp_path)


def test_beside_a_tokenizer_json_the_code_does_not_matter(tmp_path, neox):
    neox.save(tmp_path)
    (tmp_path / "tokenization_arcade100k.py").write_text("raise SystemExit")
    assert Tokenizer.from_file(tmp_path).size == 50_277
