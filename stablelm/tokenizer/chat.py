"""A conversation as the text that a model was tuned on: Jinja templates, run in a sandbox.

A checkpoint's `chat_template` (chat_template.jinja, or the key in tokenizer_config.json) is a program by a
stranger, so it runs in Jinja's immutable sandbox: no attribute that starts with an underscore, no changing
of what it is given, no file. The environment is that of `transformers` (trimmed blocks, loop controls,
`tojson`, `raise_exception`, `strftime_now`), so the same template gives the same text. `ZEPHYR` is the format
of stablelm-zephyr-3b. A template that never ends is not caught."""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.storage import read_json

ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""<|user|>, a line end, the text, the separator, a line end; the tokenizer sees the roles as plain text."""


def find_template(folder: str | Path) -> str | None:
    """The chat template in a model's directory, or None. Of several by name, the one called `default`."""
    folder = Path(folder)
    settings = folder / "tokenizer_config.json"
    if (beside := read_beside(folder)) is not None:
        return beside
    found = read_json(settings) if settings.is_file() else None
    return default_of(found.get("chat_template") if isinstance(found, dict) else None, str(settings))


def read_beside(folder: Path) -> str | None:
    """The text of chat_template.jinja in a directory, or None."""
    file = folder / "chat_template.jinja"
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start:,} is not UTF-8. Convert it, or remove it.") from None


def default_of(found: Any, source: str) -> str | None:
    """The template that a tokenizer's settings name: text, or the `default` one of a list; None for none."""
    if isinstance(found, list):
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}.get("default")
    if found is not None and not isinstance(found, str):
        raise InputError(f"{source}: chat_template must be text, or a list of named templates.")
    return found


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    eos_token: str = "<|endoftext|>",
    bos_token: str = "<|endoftext|>",
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """The text of messages [{"role": …, "content": …}, …], by default up to where the answer begins.

    `InputError` for a message of another shape, and for a template that is wrong, does what the sandbox
    forbids, or refuses the conversation by `raise_exception`."""
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError(f"message {number} must be a mapping with role and content, not {message!r}.")
    try:
        from jinja2.exceptions import TemplateError
    except ImportError:
        raise InputError("chat templates need Jinja: pip install jinja2") from None
    given = dict(eos_token=eos_token, bos_token=bos_token, add_generation_prompt=add_generation_prompt)
    try:
        text: str = _compiled(template).render(messages=messages, **given, **variables)
    except TemplateError as error:
        where = f", line {error.lineno}" if getattr(error, "lineno", None) else ""  # type: ignore[attr-defined]
        raise InputError(
            f"the chat template{where}: {error.message or type(error).__name__}. Correct the conversation, "
            "or the template beside the tokenizer."
        ) from None
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(
            f"the chat template failed ({type(error).__name__}: {error}). Correct the conversation, or the "
            "template beside the tokenizer."
        ) from None
    return text


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """A template, ready to render: compiling it takes as long as a hundred short conversations."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    sandbox.filters["tojson"] = tojson
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return sandbox.from_string(template)
