"""`stablelm finetune` as a user types it."""

import json
import re

import pytest

from stablelm.finetuning.preview import preview, shown
from stablelm.finetuning.tuner import prepare
from tests.cli.conftest import command
from tests.finetuning.conftest import TALKS, write_lines


@pytest.fixture
def chats(tmp_path):
    return write_lines(tmp_path / "chats.jsonl", [{"messages": said, "id": 1} for said in TALKS])


def test_preview_marks_what_is_trained(base, chats, tmp_path):
    said = command("finetune", base, chats, "--preview")
    assert said.code == 0, said.err
    assert f"{chats}, line 2: " in said.out and "keys that were not read: id (40)" in said.out
    marked = "<|endoftext|>\n<|assistant|>\n⟦The grass is green.<|endoftext|>⟧\n"
    assert f"<|user|>\nWhat colour is the grass, number 1?{marked}" in said.out
    assert {path.name for path in tmp_path.iterdir()} == {"chats.jsonl"}, "nothing is written"


def test_preview_in_colours_shows_every_token_and_no_control_characters(make):
    said = [[{"role": "user", "content": "a\x1b[2J\u00e9"}, {"role": "assistant", "content": "bé\n"}]]
    tuning = prepare(make([{"messages": m} for m in said * 2], data={"held_out_share": 0}))[1]
    text = shown(tuning.train[0], tuning.tokenizer, colour=True)
    assert "a" in text and "\\x1b" in text and "\x1b[2J" not in text
    green, grey = (
        text.count("\x1b[1;32m") + text.count("\x1b[32m"),
        text.count("\x1b[37m") + text.count("\x1b[90m"),
    )
    assert green >= 3 and grey >= 8
    plain = shown(tuning.train[0], tuning.tokenizer, colour=False)
    assert plain.endswith("⟦bé\n<|endoftext|>⟧") and plain.count("⟦") == 1
    assert len(list(preview(tuning, 1, colour=False))) == 2 + len(tuning.describe())


def test_tune_then_chat_then_export(base, chats, tmp_path):
    out = tmp_path / "tuned"
    flags = ("--epochs", 10, "--lr", 1e-2, "--sequence-length", 96, "--set", "batch.sequences=2")
    said = command(
        "finetune", base, chats, "--out", out, *flags, "--set", "precision=fp32", "--set", "device=cpu"
    )
    assert said.code == 0, said.err
    assert f"{out}: done. Next: stablelm chat {out}" in said.out
    written = json.loads((out / "finetune.json").read_text())
    assert (written["epochs"], written["batch"]["sequence_length"]) == (10, 96)
    talk = command("chat", out, "--temperature", 0, stdin=b"What colour is the coal, number 8?\n")
    assert talk.code == 0, talk.err
    assert re.fullmatch(r"The \w+ is \w+\.\n", talk.out), "an answer that ends; test_finetune.py has it right"
    assert command("export", out, tmp_path / "model").code == 0
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert "<|assistant|>" in settings["chat_template"]
    again = command("finetune", base, chats, "--out", out, *flags)
    assert again.code == 2 and "already holds a run" in again.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{base} {chats}", "--out is missing"),
        ("{base}", "no examples are given"),
        ("nowhere.yml", "nowhere.yml: no such file"),
        ("{base} nowhere.jsonl --out new", "nowhere.jsonl: no such file"),
        ("{base} {chats} --out new --epochs 0", "epochs must be above 0"),
        ("{base} {chats} --out new --lr 0", "optimizer.lr"),
        ("{base} {chats} --out new --set data.tempalte=zephyr", "did you mean 'template'"),
        ("{base} {chats} --out new --sequence-length 999", "longer than model.max_position_embeddings 128"),
        ("{base} {chats} --out new --held-out nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("nowhere {chats} --out new", "nowhere: no such directory"),
        ("{base} {base}/config.json --out new", "fit no shape of examples"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(base, chats, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    said = command("finetune", *line.format(base=base, chats=chats).split())
    assert said.code == 2 and said.out == ""
    assert message in said.err and "Traceback" not in said.err and "bug" not in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"chats.jsonl"}
