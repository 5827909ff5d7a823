"""Chat templates: the released format, where a template is found, and what the sandbox forbids."""

import json

import pytest

from stablelm.config import InputError
from stablelm.tokenizer.chat import ZEPHYR, find_template, render

TALK = [
    {"role": "user", "content": "Hi {{ 1 + 1 }}"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]


def test_the_format_of_zephyr() -> None:
    end = "<|endoftext|>\n"
    said = f"<|user|>\nHi {{{{ 1 + 1 }}}}{end}<|assistant|>\nHello.{end}<|user|>\nBye{end}"
    assert render(ZEPHYR, TALK) == said + "<|assistant|>\n"
    assert render(ZEPHYR, TALK, add_generation_prompt=False) == said
    assert render(ZEPHYR, TALK[:1], eos_token="</s>").startswith("<|user|>\nHi {{ 1 + 1 }}</s>\n")


def test_blocks_are_trimmed_and_loops_can_break() -> None:
    body = "  {% if loop.index > 1 %}{% break %}{% endif %}\n[{{ m.role }}]\n"
    assert render(f"{{% for m in messages %}}\n{body}{{% endfor %}}\n", TALK) == "[user]\n"
    message = {"role": "é", "content": "<"}
    assert render("{{ messages[0] | tojson }}", [message]) == '{"role": "é", "content": "<"}'
    assert len(render("{{ strftime_now('%Y') }}", [])) == 4
    assert render("{{ name }}", [], name="x") == "x"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ render.__globals__ }}",
        "{% include '/etc/passwd' %}", "{{ messages[0].pop('role') }}", "{% if %}", "{{ nothing.at.all }}",
        "{{ 1 / 0 }}", "{{ raise_exception('no system role') }}", "{{ messages | nofilter }}",
        "{{ strftime_now.__globals__['os'] }}", "{{ 'a' + 1 }}",
    ],
)  # fmt: skip
def test_a_template_that_is_wrong_or_reaches_out_is_refused(template: str) -> None:
    talk = [dict(message) for message in TALK]
    with pytest.raises(InputError, match="the chat template"):
        render(template, talk)
    assert talk == TALK


def test_a_message_of_another_shape_is_named() -> None:
    for wrong in ("hello", {"role": "user"}):
        with pytest.raises(InputError, match="message 1 must be a mapping"):
            render(ZEPHYR, [TALK[0], wrong])


def test_where_a_template_is_found(tmp_path) -> None:
    assert find_template(tmp_path) is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one"}))
    assert find_template(tmp_path) == "one"
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "two"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert find_template(tmp_path) == "two"
    settings.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(InputError, match="chat_template must be text"):
        find_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("three")
    assert find_template(tmp_path) == "three"
