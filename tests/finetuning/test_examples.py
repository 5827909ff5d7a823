"""Records of every shape and kind of file become the tokens they should, or are refused by place and key."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from stablelm.config import InputError
from stablelm.config.finetune import ExamplesConfig
from stablelm.finetuning.conversations import ChatEncoder
from stablelm.finetuning.examples import Account, ExampleReader
from stablelm.tokenizer.chat import ZEPHYR
from tests.finetuning.conftest import TALKS, write_lines


def read(tokenizer, paths, longest=97, **data):
    paths = [str(path) for path in paths]
    config = ExamplesConfig(paths=paths, **data)
    account = Account()
    reader = ExampleReader(config, tokenizer, ChatEncoder(tokenizer, ZEPHYR, 0), longest)
    return reader.read(paths, account), account


def texts(tokenizer, example):
    """The whole text, and the trained part of it."""
    ids = np.where(example.ids < 0, ~example.ids, example.ids)
    return tokenizer.decode(ids), tokenizer.decode(example.ids[example.ids >= 0])


END = "<|endoftext|>"


def test_texts_and_completions(tokenizer, tmp_path):
    written = write_lines(tmp_path / "a.jsonl", [{"text": "The sky is blue."}])
    (example,), account = read(tokenizer, [written])
    assert texts(tokenizer, example) == (f"{END}The sky is blue.{END}", f"The sky is blue.{END}")
    assert (example.ids[0], example.ids[-1], example.text_bytes) == (-1, 0, 16)
    assert account.format == "text"
    pairs = [{"prompt": "The sky is", "completion": " blue."}, {"prompt": "", "completion": "It is white."}]
    (first, second), account = read(tokenizer, [write_lines(tmp_path / "b.jsonl", pairs)])
    assert texts(tokenizer, first) == (f"The sky is blue.{END}", f" blue.{END}")
    prompt = tokenizer.encode("The sky is")
    assert (~first.ids[: len(prompt)]).tolist() == prompt
    assert first.ids[len(prompt) :].tolist() == [*tokenizer.encode(" blue."), 0]
    assert texts(tokenizer, second) == (f"{END}It is white.{END}", f"It is white.{END}")
    assert account.format == "completion"


def test_loss_on_all_tokens(tokenizer, tmp_path):
    written = write_lines(tmp_path / "a.jsonl", [{"prompt": "The sky is", "completion": " blue."}])
    (example,), _ = read(tokenizer, [written], train_on="all")
    assert example.ids[0] < 0 and (example.ids[1:] >= 0).all()
    assert example.text_bytes == len("The sky is blue.")


def test_alpaca_is_a_conversation(tokenizer, tmp_path):
    records = [
        {"instruction": "Name it.", "input": "The sky", "output": "It is blue."},
        {"instruction": "Name it.", "input": "", "output": "It is blue.", "system": "Be brief."},
    ]
    (first, second), account = read(tokenizer, [write_lines(tmp_path / "a.jsonl", records)])
    said = f"<|user|>\nName it.\n\nThe sky{END}\n<|assistant|>\nIt is blue.{END}"
    assert texts(tokenizer, first) == (said, f"It is blue.{END}")
    assert texts(tokenizer, second)[0].startswith(f"<|system|>\nBe brief.{END}\n<|user|>\nName it.{END}")
    assert account.format == "alpaca"


def test_every_kind_of_file_gives_the_same_examples(tokenizer, tmp_path):
    records = [{"messages": said, "id": number} for number, said in enumerate(TALKS[:6])]
    plain = write_lines(tmp_path / "a.jsonl", records)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    (tmp_path / "d.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "e.json").write_bytes(plain.read_bytes())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "f.parquet")
    import datasets

    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "g"))
    wanted, _ = read(tokenizer, [plain])
    for name in ("b.jsonl.gz", "c.jsonl.zst", "d.json", "e.json", "f.parquet", "g"):
        found, account = read(tokenizer, [tmp_path / name])
        assert [e.ids.tolist() for e in found] == [e.ids.tolist() for e in wanted], name
        assert name in found[2].where and "3" in found[2].where
        assert account.unread == {"id": 6}
    (tmp_path / "h.txt").write_text("The sky is blue.")
    (text,), _ = read(tokenizer, [tmp_path / "h.txt"])
    assert texts(tokenizer, text)[1] == f"The sky is blue.{END}"


def test_their_keys_in_our_words(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"question": "The sky?", "answer": "Blue.", "id": 1}])
    (example,), account = read(tokenizer, [path], keys={"prompt": "question", "completion": "answer"})
    assert texts(tokenizer, example) == (f"The sky?Blue.{END}", f"Blue.{END}")
    assert account.unread == {"id": 1}


def test_what_is_too_long(tokenizer, tmp_path):
    long = {"prompt": "The sky", "completion": " is blue." * 30}
    hopeless = {"prompt": "The sky is blue. " * 30, "completion": "Yes."}
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "The sky?", "completion": "Blue."}, long, hopeless])
    with pytest.raises(
        InputError, match=r"a\.jsonl, line 2: \d+ tokens; the longest .* 40 has 41.*too_long=drop"
    ):
        read(tokenizer, [path], longest=41)
    found, account = read(tokenizer, [path], longest=41, too_long="drop")
    assert (len(found), account.kept, account.truncated) == (1, 1, 0)
    assert account.dropped == {"too long": 2}
    found, account = read(tokenizer, [path], longest=41, too_long="truncate")
    assert (len(found), account.truncated, account.dropped) == (2, 1, {"too long": 1})
    assert len(found[1].ids) == 41 and found[1].ids[-1] != 0
    assert 0 < found[1].text_bytes < len(long["completion"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "a", "completion": " "}'], "line 1: 'completion': the answer has no text"),
        (['{"text": ""}'], "line 1: 'text': the text has no text"),
        (['{"prompt": "a", "completion": 3}'], "line 1: 'completion' is a number, not a string"),
        (['{"instruction": "a", "output": null}'], "line 1: 'output' is null, not a string"),
        (['{"instruction": "a", "output": " "}'], "line 1: 'output': the answer has no text"),
        (['{"question": "a", "reply": "b"}'], "line 1: the keys 'question', 'reply' fit no shape"),
        (['{"text": "a"}', '{"txt": "a"}'], "line 2: the key 'text' is missing (there: 'txt')"),
        (['{"text": "a"}', '["a"]'], "line 2: a list; wanted is an object"),
        (['{"text": "a"}', '{"text": "a"'], "line 2: not valid JSON"),
        (['{"text": "\\ud83d"}'], "line 1: 'text': character 1 is half a surrogate pair"),
        (['{"messages": [{"role": "user", "content": "a"}]}'], "line 1: messages ends without an answer"),
        ([], "no example in 0 records"),
    ],
)  # fmt: skip
def test_a_record_that_is_no_example_is_named(tokenizer, tmp_path, lines, message):
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as refused:
        read(tokenizer, [tmp_path / "a.jsonl"])
    assert message in str(refused.value) and "a.jsonl" in str(refused.value)


def test_faults_are_skipped_and_counted_only_when_asked(tokenizer, tmp_path):
    records = [{"txt": "a"}, {"text": "a"}, {"text": " "}, {"text": 7}, 8, {"text": "b"}]
    path = write_lines(tmp_path / "a.jsonl", records)
    found, account = read(tokenizer, [path], on_error="skip")
    assert len(found) == account.kept == 2
    assert account.dropped == {"missing key": 1, "empty text": 1, "wrong type": 2}
    assert account.read == account.kept + sum(account.dropped.values())
    with pytest.raises(InputError, match=r"no example in 1 records \(empty text 1\)"):
        read(tokenizer, [write_lines(tmp_path / "b.jsonl", [{"text": ""}])], on_error="skip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "no such file"),
        ("a.csv", b"a,b", "of no kind that examples are read from"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "it was cut off"),
        ("a.parquet", b"no", "not a Parquet file"),
        ("a.json", b"[{", "not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1: byte 10, 0xff, is not UTF-8"),
    ],
    ids=["missing", "unknown", "cut", "no table", "broken", "no text"],
)
def test_a_file_that_cannot_be_read_stops_whatever_is_skipped(tokenizer, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        read(tokenizer, [tmp_path / name], on_error="skip")
    assert message in str(refused.value) and name in str(refused.value)


def test_records_encoded_together_are_those_encoded_alone(tokenizer, tmp_path, monkeypatch):
    """Also where groups end in the middle, some records are skipped, some cut; errors come in their order."""
    good: list[dict] = [{"messages": said} for said in TALKS]
    good[7:7] = [{"messages": []}, {"messages": [{"role": "user", "content": "long " * 200}, TALKS[0][1]]}]
    path = write_lines(tmp_path / "a.jsonl", good)
    found = []
    for together in (1, 3, 512):
        monkeypatch.setattr("stablelm.finetuning.examples.TOGETHER", together)
        examples, account = read(tokenizer, [path], too_long="drop", on_error="skip")
        found.append(([(e.ids.tolist(), e.text_bytes, e.where) for e in examples], account.as_dict()))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == len(TALKS) and found[0][1]["dropped"] == {"wrong type": 1, "too long": 1}
    both = write_lines(tmp_path / "b.jsonl", [good[0], good[8], {"messages": []}])
    with pytest.raises(InputError, match=r"b.jsonl, line 2: .* tokens; the longest"):
        read(tokenizer, [both])
