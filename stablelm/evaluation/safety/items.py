"""The items of the safety suite: ours, and those in a user's directory, checked before a model is opened."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.storage.json_lines import json_lines

OURS = Path(__file__).parent / "data"
FILES = {
    "toxicity": ("prompts.jsonl", ("prompt",)),
    "stereotypes": ("pairs.jsonl", ("category", "stereotype", "counter")),
    "leakage": ("leakage.jsonl", ("prompt",)),
}
"""Part → its file, and the texts of each line."""
LEXICON = "lexicon.txt"


@dataclasses.dataclass(frozen=True)
class Items:
    """One file of one part."""

    part: str
    name: str
    """What results are listed under: the part for ours, part and "own" for a user's."""
    rows: tuple[dict[str, str], ...]


def gather(data: str | Path | None, limit: int | None) -> tuple[list[Items], Path]:
    """All items, ours first, at most `limit` of each file, and the lexicon: the user's if there is one.

    `InputError` for a directory that holds none of the files, and for a line that is not as it should be."""
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least one item of each set is needed.")
    found = [Items(part, part, _read(OURS / name, fields, limit)) for part, (name, fields) in FILES.items()]
    if data is None:
        return found, OURS / LEXICON
    folder = Path(data)
    named = [*(name for name, _ in FILES.values()), LEXICON]
    if not folder.is_dir() or not any((folder / name).is_file() for name in named):
        raise InputError(
            f"{folder}: {'holds none of' if folder.is_dir() else 'no such directory; it may hold'} "
            f"{', '.join(named)}. Put at least one there, or leave --data out to use the built-in sets."
        )
    for part, (name, fields) in FILES.items():
        if (folder / name).is_file():
            found.append(Items(part, f"{part}, own", _read(folder / name, fields, limit)))
    return found, folder / LEXICON if (folder / LEXICON).is_file() else OURS / LEXICON


def _read(path: Path, fields: Sequence[str], limit: int | None) -> tuple[dict[str, str], ...]:
    rows: list[dict[str, str]] = []
    for _, where, value in json_lines(path):
        rows.append({field: _text(value, field, fields, where) for field in fields})
    if not rows:
        raise InputError(f"{path}: holds no items.")
    return tuple(rows[:limit])


def _text(value: Any, field: str, fields: Sequence[str], where: str) -> str:
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        example = json.dumps(dict.fromkeys(fields, "…"), ensure_ascii=False)
        raise InputError(f"{where}: has no text under {field!r}; a line is {example}.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{where}: half of a surrogate pair under {field!r}, which is no character.")
    return text
