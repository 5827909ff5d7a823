"""`stablelm generate` from files: a prompt, many prompts, an interruption, a prompt that is too long."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import stablelm
from stablelm.cli.prompts import truncate_left
from stablelm.tokenizer import Tokenizer
from tests.cli.conftest import sentences

HOT = ("--max-new-tokens", 20, "--temperature", 2, "--top-p", 1, "--seed", 11)


@pytest.fixture
def asked(tmp_path):
    """Seven prompts, one of them empty, one with an id of its own."""
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": sentences(i, 1)[: 4 * i]} for i in range(7)]
    lines[3] = {"id": "vïer", "prompt": "é\u2028🦕"}
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return file


def read(file):
    return [json.loads(line) for line in file.read_bytes().decode().split("\n")[:-1]]


def test_each_line_is_what_it_would_be_alone(world, run, asked, tmp_path):
    out = tmp_path / "new" / "answers.jsonl"
    said = run("generate", world / "model", "--file", asked, "--out", out, "--batch", 3, *HOT)
    assert (said.code, said.out) == (0, ""), said.err
    assert said.err.endswith(f"{out}: 7 answers\n") and "3 of 7 answers, " in said.err
    found, given = read(out), read(asked)
    assert [one["id"] for one in found] == [1, 2, 3, "vïer", 5, 6, 7]
    assert [one["prompt"] for one in found] == [one["prompt"] for one in given]
    model, tokenizer = stablelm.load(world / "model")
    for number, one in enumerate(found):
        settings = dict(max_new_tokens=20, temperature=2, seed=11 + number)
        assert one["text"] == stablelm.generate(model, tokenizer, one["prompt"], **settings)
        assert set(one) == {"id", "prompt", "text"}
    assert [path.name for path in out.parent.iterdir()] == ["answers.jsonl"]
    again = run("generate", world / "model", "--file", asked, "--out", out, *HOT)
    assert again.code == 2 and "already exists" in again.err


def test_a_killed_one_goes_on_exactly(world, run, tmp_path):
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"{i} the river"}) + "\n" for i in range(80)))
    out, whole, work = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "a.jsonl.partial"))
    line = ["generate", world / "model", "--file", asked, "--batch", 4, "--max-new-tokens", 40]
    hot = ["--temperature", 1.5, "--top-p", 1]
    code = "from stablelm.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, *map(str, [*line, *hot, "--out", out])]
    child = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    done, limit = work / "done.jsonl", time.monotonic() + 60
    while not (done.is_file() and done.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists() and done.is_file()
    seed = json.loads((work / "settings.json").read_text())["seed"]
    with open(done, "ab") as file:
        file.write(b'{"id": 9, "pro')  # as a full disk leaves it
    said = run(*line, *hot, "--out", out)  # without a seed: the one it was begun with
    assert said.code == 0, said.err
    assert re.search(r"80 answers, \d+ of them from before", said.err)
    assert run(*line, *hot, "--out", whole, "--seed", seed).code == 0
    assert out.read_bytes() == whole.read_bytes() and not work.exists()


def test_an_interrupted_one_with_other_settings_is_refused(world, run, asked, tmp_path, monkeypatch):
    out, work = tmp_path / "a.jsonl", tmp_path / "a.jsonl.partial"
    line = ("generate", world / "model", "--file", asked, "--out", out, "--batch", 2)
    fsync, count = os.fsync, []

    def stop(handle):
        fsync(handle)
        count.append(handle)
        if len(count) == 5:  # the file of settings and its folder, then some batches
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    assert run(*line, *HOT).code == 130
    monkeypatch.undo()
    kept = (work / "done.jsonl").read_bytes()
    assert kept.count(b"\n") in (4, 6) and not out.exists()
    for other, name in (
        (("--seed", 12), "seed"),
        (("--temperature", 1.0), "temperature"),
        (("--max-new-tokens", 3), "max_new_tokens"),
        (("--stop", "x"), "stop"),
        (("--batch", 3), "batch"),
    ):
        said = run(*line, *HOT, *other)
        assert said.code == 2 and f"was begun with another {name}. " in said.err
    text = asked.read_text("utf-8")
    asked.write_text(text.replace("vïer", "vier"), "utf-8")
    assert "another prompts" in run(*line, *HOT).err
    asked.write_text(text, "utf-8")
    (work / "done.jsonl").write_bytes(kept.replace(b'"text": ', b'"test": ', 1))
    assert "done.jsonl, line 1: damaged" in run(*line, *HOT).err
    (work / "done.jsonl").write_bytes(kept)
    assert run(*line, *HOT).code == 0 and len(read(out)) == 7


def test_a_prompt_from_a_file(world, run, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("her letter é\r\n".encode())
    line = ("generate", world / "model", "--max-new-tokens", 6, "--temperature", 0, "--quiet", "--echo")
    expected = run(*line, "her letter é")
    assert run(*line, "--file", file) == expected and expected.out.startswith("her letter é")
    assert run(*line, "--file", "-", stdin="her letter é\n".encode()) == expected
    file.write_bytes(b"ab\xe9")
    assert "prompt.txt: byte 2, 0xe9, is not UTF-8" in run(*line, "--file", file).err
    assert "nowhere.txt: No such file" in run(*line, "--file", tmp_path / "nowhere.txt").err


def test_a_long_prompt_loses_its_beginning_when_asked(world, run, tmp_path):
    model, tokenizer = stablelm.load(world / "model")
    long = sentences(7, 60)
    line = ("generate", world / "model", long, "--max-new-tokens", 20, "--temperature", 0, "--quiet")
    assert run(*line).code == 2
    said = run(*line, "--truncate", "left")
    kept = tokenizer.decode(tokenizer.encode(long)[-108:])
    assert long.endswith(kept) and len(tokenizer.encode(kept)) == 108
    assert said.out == stablelm.generate(model, tokenizer, kept, max_new_tokens=20, temperature=0) + "\n"
    assert said.err == f"the prompt lost its first {len(tokenizer.encode(long)) - 108:,} tokens\n"
    file, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps({"prompt": "x"}) + "\n" + json.dumps({"prompt": long}) + "\n")
    line = ("generate", world / "model", "--file", file, "--out", out, *line[3:])
    said = run(*line)
    assert said.code == 2 and "the prompt of line 2 has" in said.err and "--truncate left" in said.err
    said = run(*line, "--truncate", "left")
    assert said.code == 0 and read(out)[1]["prompt"] == long
    assert "the prompt of line 2 lost its first" in said.err


@pytest.mark.parametrize("room", range(1, 12))
def test_truncation_never_cuts_a_character(world, room):
    tokenizer = Tokenizer.from_file(world / "tok")
    for text in ("é🦕 é🦕 the river", "🦕", "", "\ufffd the"):
        kept, cut = truncate_left(tokenizer, text, room)
        assert text.endswith(kept) and len(tokenizer.encode(kept)) <= room
        assert (cut == 0) == (kept == text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "line 2: not valid JSON"),
        ('{"text": "a"}', 'line 1: wants {"prompt": "…"}'),
        ('{"prompt": "a", "seed": 3}', "line 1: unknown key 'seed'"),
        ('{"prompt": "a", "id": 2}\n{"prompt": "b"}', "line 2: the id 2 is that of line 1 already"),
        ('{"prompt": "a", "id": [2]}', "the id must be text or a whole number"),
        ('{"prompt": "\\ud83d"}', "half of a surrogate pair"),
        ("\n\n", "holds no prompt"),
    ],
)
def test_broken_prompts_are_named(world, run, tmp_path, content, message):
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    said = run("generate", world / "model", "--file", file, "--out", tmp_path / "out.jsonl")
    assert said.code == 2 and message in said.err and str(file) in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_options_that_do_not_go_together(world, run, asked, tmp_path):
    line = ("generate", world / "model")
    assert "give either a PROMPT" in run(*line).err
    assert "give either a PROMPT" in run(*line, "x", "--file", asked).err
    for more in (("--file", asked), ("x", "--out", tmp_path / "o.jsonl")):
        assert "go together" in run(*line, *more).err
    assert "go with one prompt" in run(*line, "--file", asked, "--out", tmp_path / "o.jsonl", "--echo").err


def test_stats(world, run):
    said = run("generate", world / "model", "the river", "--max-new-tokens", 30, "--top-p", 1, "--stats")
    number = r"[\d.,]+"
    assert re.search(
        rf"\nprefill: 3 tokens in {number} s, {number} tokens/s\ndecode: \d+ tokens in {number} s, {number} "
        rf"tokens/s; reads {number}(e-\d+)? GB/s, a copy {number} GB/s\n$",
        said.err,
    ), said.err
    said = run("generate", world / "model", "x", "--max-new-tokens", 1, "--stats", "--quiet")
    assert "no rate" in said.err
