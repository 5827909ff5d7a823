"""JSON lines and plain text as a user hands them in: whatever is wrong is told with its file and line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stablelm.config.errors import InputError


def decoded(data: bytes, where: str) -> str:
    """UTF-8 bytes as text; `InputError` with the place of the first that is not."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte {error.start:,}, {data[error.start]:#04x}, is not UTF-8. Convert it with iconv."
        ) from None


def json_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Number, place (for messages) and value of each line that is not blank, one in memory at a time.

    Raises `InputError` for a line that is not UTF-8 or not JSON."""
    with open(path, "rb") as file:
        yield from parsed_lines(file, str(path))


def parsed_lines(lines: Iterable[bytes], shown: str) -> Iterator[tuple[int, str, Any]]:
    """`json_lines` of what is called `shown`, from its lines."""
    for number, line in enumerate(lines, 1):
        where = f"{shown}, line {number:,}"
        if not line.strip():
            continue
        try:
            yield number, where, json.loads(decoded(line, where))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON ({error}). Was the file cut off?") from None
