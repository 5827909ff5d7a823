"""`data.fim`: texts rearranged for filling in; the tokens told and stored; the model asked with --infill."""

import json

import pytest
import torch

import stablelm
from stablelm.config import InputError
from stablelm.config.adaptation import InfillingConfig
from stablelm.finetuning import finetune
from stablelm.finetuning.tuner import prepare
from stablelm.inference import Sampling, generate_ids
from stablelm.storage import read_json
from stablelm.tokenizer.infilling import FILL, Infilling, InfillingTokenizer, Marks
from tests.cli.conftest import command
from tests.finetuning.conftest import Recorder, write_lines

TEXTS = [{"text": f"def f{i}(a, b):\n    return a + b + {i}\n"} for i in range(30)]
FIM = {"rate": 0.6, "spm_rate": 0.5}


def test_examples_are_the_texts_rearranged(make):
    config = make(TEXTS, data={"fim": FIM, "held_out_share": 0})
    _, data = prepare(config)
    ours = Infilling(InfillingConfig(**FIM), config.seed, Marks.of(data.tokenizer))
    count = 0
    for example, record in zip(data.train, TEXTS, strict=True):
        text = record["text"]
        parts = data.tokenizer.encode_documents(ours.parts(text, text))
        count += len(parts) == 3
        ids = ours.marks.arranged(*parts, ours.is_spm(text)) if len(parts) == 3 else parts[0]
        assert example.ids.tolist() == [~0, *ids, 0], "all trained, between separators"
        assert example.text_bytes == len(text.encode())
    assert 9 < count < 27 and data.accounts["train"].rearranged == count
    told = "\n".join(data.describe())
    assert "tokenizer: gets <fim_prefix> 320, " in told and f"; {count} rearranged for filling in" in told


def test_tuned_asked_and_refused(make, base, tmp_path):
    console = Recorder()
    run = finetune(make(TEXTS, data={"fim": FIM}), console=console)
    assert any("have never read, learnt from now on: <fim_prefix> (320)" in m for m in console.messages)
    model, tokenizer = stablelm.load(run)
    marks = Marks.of(tokenizer)
    assert marks.prefix == 320 and read_json(run / "finetune.json")["data"]["fim"] == FIM
    before, after = "def f3(a, b):\n    ", " + 3\n"
    (tmp_path / "before.py").write_text(before)
    (tmp_path / "after.py").write_text(after)
    ids = InfillingTokenizer(tokenizer).encode(before + FILL + after)
    greedy = generate_ids(model, torch.tensor([ids]), max_new_tokens=6, sampling=Sampling(temperature=0.0),
                          real_ids=tokenizer.size)  # fmt: skip
    wanted = tokenizer.decode(greedy[0, len(ids) :], skip_special_tokens=True)
    line = ("generate", run, "--infill", "--temperature", 0, "--max-new-tokens", 6, "--quiet")
    files = ("--file", tmp_path / "before.py", "--suffix", tmp_path / "after.py")
    assert command(*line, *files).out.removesuffix("\n") == wanted
    assert command(*line, before + FILL + after).out.removesuffix("\n") == wanted
    assert command(*line, *files, "--echo").out == f"{before}{wanted}{after}\n"
    write_lines(tmp_path / "many.jsonl", [{"prompt": before + FILL + after}])
    many = command(*line, "--file", tmp_path / "many.jsonl", "--out", tmp_path / "answers.jsonl")
    assert many.code == 0, many.err
    assert json.loads((tmp_path / "answers.jsonl").read_text())["text"] == wanted

    def refused(*arguments):
        said = command(*arguments)
        assert said.code == 2 and said.out == "", said.err
        return said.err

    assert "the prompt has 0 marks <FILL>" in refused(*line, "nothing")
    assert "has no special token <fim_prefix>" in refused("generate", base, f"a{FILL}b", "--infill")
    assert "--suffix goes with --infill" in refused("generate", run, "a", "--suffix", tmp_path / "after.py")
    assert "leave --truncate left away" in refused(*line, f"a{FILL}", "--truncate", "left")
    write_lines(tmp_path / "bad.jsonl", [{"prompt": f"a{FILL}"}, {"prompt": "b"}])
    out = ("--out", tmp_path / "never.jsonl")
    assert "line 2 of " in refused(*line, "--file", tmp_path / "bad.jsonl", *out)


@pytest.mark.parametrize(
    ("records", "data", "message"),
    [
        ([{"prompt": "a", "completion": "b"}], {"fim": {}}, "rearranges texts; this is .* format completion"),
        (TEXTS, {"fim": {}, "format": "chat"}, "fim rearranges texts, not examples of format chat"),
        (TEXTS, {"fim": {}, "too_long": "truncate"}, "truncate would cut off; drop instead"),
        (TEXTS, {"fim": {"rate": 1.5}}, "data.fim.rate"),
    ],
)
def test_mistakes(make, records, data, message):
    with pytest.raises(InputError, match=message):
        prepare(make(records, data=data))
