"""Lists of what to leave out, as files that you bring: one entry a line, UTF-8, # begins a comment line.

A list is checked as it is read, and every fault names the file and the line. Its entries are kept as long as
the file's size and time of change stay; its hash is part of what a signal is measured by. No lists are
brought along: what is not wanted is for who trains to decide."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from stablelm.config import InputError
from stablelm.storage.hashes import sha256_file


def read_list(path: str | Path, key: str) -> list[tuple[int, str]]:
    """(line, entry) of a list file, without comments and blank lines; `InputError` names the file and the
    line."""
    path = _found(path, key)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        problem = f"{path}, line {line}: not UTF-8; {key} wants a text file, an entry a line."
        raise InputError(problem) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {key} names it.") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    entries = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not entries:
        raise InputError(f"{path}: holds no entry; write one a line, or take the file out of {key}.")
    return entries


def _found(path: str | Path, key: str) -> Path:
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory; {key} names text files, an entry a line.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; {key} names text files, an entry a line.")
    return path


def list_hashes(paths: Sequence[str], key: str) -> list[str]:
    """sha256 of each file."""
    return [sha256_file(_found(path, key)) for path in paths]


def list_entries(paths: Sequence[str], key: str, read: Callable[[str], str]) -> frozenset[str]:
    """The entries of several files; read again only when a file has changed."""
    found: set[str] = set()
    for path in paths:
        stat = _found(path, key).stat()
        found |= _file_entries(str(path), key, read, stat.st_size, stat.st_mtime_ns)
    return frozenset(found)


@lru_cache(maxsize=32)
def _file_entries(path: str, key: str, read: Callable[[str], str], _size: int, _time: int) -> frozenset[str]:
    found = set()
    for line, entry in read_list(path, key):
        try:
            found.add(read(entry))
        except ValueError as error:
            raise InputError(f"{path}, line {line}: {error} (given: {entry!r}).") from None
    return frozenset(found)
