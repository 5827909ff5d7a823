"""`stablelm chat`: what the model reads, what is written where, commands, a full context, Ctrl-C."""

import re
import shutil

import pytest

import stablelm
from stablelm.cli.chat import _typed
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.chat import ZEPHYR, render

GREEDY = ("--temperature", 0, "--max-new-tokens", 12)


@pytest.fixture
def tuned(world, tmp_path):
    """The world's model with the template of Zephyr."""
    folder = tmp_path / "tuned"
    shutil.copytree(world / "model", folder)
    (folder / "chat_template.jinja").write_text(ZEPHYR)
    return folder


def answer(folder, prompt, **settings):
    settings = {"max_new_tokens": 12, "temperature": 0, **settings}
    return stablelm.generate(*stablelm.load(folder), prompt, **settings)


def test_each_answer_follows_the_whole_conversation(run, tuned):
    said = run(
        "chat", tuned, *GREEDY, "--system", "be kind", stdin=b"the river\r\nher letter\n\n/exit\nmore\n"
    )
    assert said.code == 0, said.err
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the river"}]
    first = answer(tuned, render(ZEPHYR, talk))
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "her letter"}]
    assert said.out == f"{first}\n{answer(tuned, render(ZEPHYR, talk))}\n"
    assert "plain completion" not in said.err


def test_reset_and_seeds(run, tuned):
    line = ("chat", tuned, "--max-new-tokens", 12, "--seed", 5, "--temperature", 2, "--top-p", 1)
    said = run(*line, stdin="é\n /exit is a word\n/reset\né".encode())
    fresh = [render(ZEPHYR, [{"role": "user", "content": "é"}])] * 2
    hot = dict(temperature=2, top_p=1)
    assert said.code == 0, said.err
    assert said.out.startswith(answer(tuned, fresh[0], seed=5, **hot) + "\n")
    assert said.out.endswith("\n" + answer(tuned, fresh[1], seed=7, **hot) + "\n")
    assert said == run(*line, stdin="é\n /exit is a word\n/reset\né".encode())


def test_a_base_model_continues_and_says_so(run, world):
    said = run("chat", world / "model", *GREEDY, stdin=b"the river\nher letter\n")
    first = answer(world / "model", "the river")
    second = answer(world / "model", f"the river{first}\nher letter")
    assert (said.code, said.out) == (0, f"{first}\n{second}\n")
    assert "has no chat template: plain completion" in said.err
    said = run("chat", world / "model", "--system", "x")
    assert (said.code, said.out) == (2, "") and "no place for --system" in said.err


def test_a_full_context_is_told_with_both_numbers(run, tuned):
    size = len(
        Tokenizer.from_file(tuned).encode(render(ZEPHYR, [{"role": "user", "content": "\u00e9" * 90}]))
    )
    talk = f"{chr(233) * 90}\nhi\n".encode()
    said = run("chat", tuned, *GREEDY, stdin=talk)
    assert said.code == 2 and said.out.count("\n") == 1, "the second message gets its answer"
    assert f"has {size:,} tokens, the model's context is 128" in said.err
    said = run("chat", tuned, "--temperature", 0, "--min-p", 0, stdin=b"hi\n")
    size = len(Tokenizer.from_file(tuned).encode(render(ZEPHYR, [{"role": "user", "content": "hi"}])))
    assert f"the answer was cut after {128 - size} tokens: with the {size} before them" in said.err
    assert said.code == 0


def test_mistakes(run, tuned):
    said = run("chat", tuned, *GREEDY, stdin=b"/what\n")
    assert said.code == 2 and "/what is no command; /reset starts anew" in said.err and said.out == ""
    said = run("chat", tuned, *GREEDY, stdin=b"hi\na\xe9\n")
    assert said.code == 2 and "line 2 of the input, byte 2: not UTF-8" in said.err
    (tuned / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    said = run("chat", tuned, stdin=b"hi\n")
    assert said.code == 2 and "no system role" in said.err and said.out == ""
    (tuned / "chat_template.jinja").write_bytes(b"\xff")
    said = run("chat", tuned, stdin=b"hi\n")
    assert said.code == 2 and "chat_template.jinja: byte 0 is not UTF-8" in said.err
    assert run("chat", tuned / "nowhere").code == 2


def test_a_template_goes_where_the_tokenizer_goes(tuned, tmp_path):
    Tokenizer.from_file(tuned).save(tmp_path / "copy")
    assert Tokenizer.from_file(tmp_path / "copy").chat_template == ZEPHYR
    model, tokenizer = stablelm.load(tuned)
    model.save_pretrained(tmp_path / "other")
    assert stablelm.load(tmp_path / "other")[1].chat_template == tokenizer.chat_template == ZEPHYR


def test_ctrl_c_ends_an_answer_and_not_the_program(run, tuned, monkeypatch):
    plain, answers = stablelm.inference.stream, []

    def interrupted(*given, on_token, **settings):
        answers.append(given)
        if len(answers) > 1:
            yield from plain(*given, on_token=on_token, **settings)
            return
        on_token(5)
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr(stablelm.inference, "stream", interrupted)
    said = run("chat", tuned, "--seed", 3, stdin=b"the river\n/reset\nhi\n")
    assert said.code == 0 and len(answers) == 2
    assert said.out.startswith("half an\n")
    assert said.err.index("stopped") < said.err.index("a new conversation")


def test_ctrl_c_at_the_prompt_drops_the_line(capsys):
    given = iter(["hi", KeyboardInterrupt, "\udcff", EOFError])

    def read(prompt):
        value = next(given)
        if not isinstance(value, str):
            raise value
        return value

    assert list(_typed(read)) == ["hi", "\ufffd"]
    assert re.search("/exit", capsys.readouterr().err)
