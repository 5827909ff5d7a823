"""What `stablelm generate` continues: a text from the command line, a file or a pipe; or many from .jsonl."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stablelm.config.errors import InputError
from stablelm.storage.json_lines import decoded, json_lines

if TYPE_CHECKING:
    from stablelm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """What is continued."""

    given: str
    text: str
    """What is read of it: all, or its end."""
    line: int = 0
    """Of a file of prompts, from 1."""
    id: str | int = 0
    """As the line gives it; else the line's number."""
    adapter: str | None = None
    """The name of the adapter that writes; None is the base model."""


def read_text(source: str | Path, *, whole: bool = False) -> str:
    """A prompt: the argument itself, all of standard input for `-`, or a file's text (`Path`).

    UTF-8 whatever the locale says; the last line end of a file or of the input is dropped, unless the
    `whole` is wanted."""
    typed = isinstance(source, str) and source != "-"
    if typed:
        data, name = os.fsencode(source), "the prompt"
    elif str(source) == "-":
        data, name = sys.stdin.buffer.read(), "the prompt"
    else:
        data, name = Path(source).read_bytes(), str(source)
    text = decoded(data, name)
    return text if typed or whole else text.removesuffix("\n").removesuffix("\r")


def read_prompts(path: Path, adapters: Sequence[str] = ()) -> list[Prompt]:
    """The lines {"prompt": …, "id"?: …, "adapter"?: …} of a .jsonl file; `InputError` names the first line
    that is wrong. A line chooses one of `adapters`, or null for none; where there is one, that is the
    default."""
    found: list[Prompt] = []
    seen: dict[str | int, int] = {}
    for number, where, record in json_lines(path):
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise InputError(f'{where}: wants {{"prompt": "…"}}, and may have an "id".')
        if unknown := sorted(record.keys() - {"prompt", "id", "adapter"}):
            raise InputError(f"{where}: unknown key {unknown[0]!r}; a line has prompt, id and adapter alone.")
        name = record.get("id", number)
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise InputError(f"{where}: the id must be text or a whole number, not {name!r}.")
        if name in seen:
            raise InputError(f"{where}: the id {name!r} is that of line {seen[name]:,} already.")
        if any("\ud800" <= letter <= "\udfff" for letter in f"{name}{record['prompt']}"):
            raise InputError(f"{where}: half of a surrogate pair, which is no character.")
        seen[name] = number
        adapter = _adapter(record, adapters, where)
        found.append(Prompt(record["prompt"], record["prompt"], number, name, adapter))
    if not found:
        raise InputError(f"{path}: holds no prompt.")
    return found


def _adapter(record: dict[str, object], adapters: Sequence[str], where: str) -> str | None:
    if "adapter" not in record and len(adapters) < 2:
        return adapters[0] if adapters else None
    name = record.get("adapter", "")
    if name is None or (isinstance(name, str) and name in adapters):
        return name
    known = ", ".join(adapters) or "none: give them with --adapter"
    if "adapter" not in record:
        raise InputError(f'{where}: several adapters are given; choose one with "adapter" ({known}, null).')
    raise InputError(f"{where}: the adapter {name!r} is not given; there are {known}.")


def truncate_left(tokenizer: "Tokenizer", text: str, room: int) -> tuple[str, int]:
    """The end of `text` that has at most `room` tokens, and how many tokens were cut off before it.

    The cut lies between characters, so a token more than needed may go."""
    ids = tokenizer.encode(text)
    start = max(0, len(ids) - room)
    while start and start < len(ids):
        text = tokenizer.decode(ids[start:]).lstrip("\ufffd")  # the rest of a character that was cut
        if len(tokenizer.encode(text)) <= room:
            return text, start
        start += 1
    return ("" if start else text), start


def logit_bias(pairs: Sequence[str]) -> dict[int, float]:
    """ID=VALUE, several times, as a table."""
    table: dict[int, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            table[int(name)] = float(value)
        except ValueError:
            raise InputError(f"--logit-bias {pair}: wants ID=VALUE, as 50=-2.5.") from None
    return table
