"""Which files a source names: files, folders and glob patterns, each file once, in a stable order.

A folder is searched recursively, sorted by name; names beginning with a dot are left out and links are
followed. What has another suffix is counted as passed over, but a file named by itself must be readable.
Paths that name nothing, links that lead nowhere or in circles, and folders that cannot be opened are
`InputError`s before anything is read."""

import glob
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig

FORMATS = {
    ".txt": "text", ".md": "text", ".py": "text",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class InputFile:
    """A file to read."""

    path: Path
    shown: str
    """The path as the user wrote it."""
    id: str
    """The path below the folder or pattern that was named; the file's name when it was named itself."""
    format: str
    """text, jsonl or parquet."""


def find_files(source: SourceConfig, root: str | Path, ignored: Counter[str]) -> list[InputFile]:
    """The files a source's paths name, in the order of reading; `ignored` counts the others by suffix."""
    found: dict[str, InputFile] = {}
    for entry in source.paths:
        passed: Counter[str] = Counter()
        here = list(_resolve(os.path.expanduser(entry), Path(root), source, passed))
        if not here:
            left = ", ".join(f"{count} {kind}" for kind, count in sorted(passed.items()))
            raise InputError(
                f"source {source.name!r}: {entry}: no file to read{left and f' (passed over: {left})'}. "
                f"Readable are {' '.join(FORMATS)}, all but the last also with {' or '.join(PACKED)}; "
                "`format` adds others."
            )
        ignored.update(passed)
        for file in here:
            if found.setdefault(os.path.realpath(file.path), file) is not file:
                ignored["named before"] += 1
    return list(found.values())


def _resolve(entry: str, root: Path, source: SourceConfig, passed: Counter[str]) -> Iterator[InputFile]:
    """The files of one entry of `paths`: a folder, a file or a pattern."""
    path = root / entry
    if os.path.isdir(path):
        for file, name in _walk(path, entry, "", frozenset(), passed):
            yield from _taken(file, f"{entry.rstrip('/')}/{name}", name, source, passed)
    elif os.path.lexists(path):
        if not stat.S_ISREG(_mode(path, entry)):
            raise InputError(
                f"source {source.name!r}: {entry}: not a regular file. Name a file, folder or pattern."
            )
        files = list(_taken(path, entry, path.name, source, passed))
        if not files:
            raise InputError(
                f"source {source.name!r}: {entry}: the suffix does not tell its format. Set `format` to "
                f"text, jsonl or parquet, or name it {', '.join(FORMATS)}."
            )
        yield from files
    elif glob.has_magic(entry):
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(entry).parts))
        for match in sorted(glob.glob(entry, root_dir=root, recursive=True)):
            if (root / match).is_dir():
                passed.update({} if "**" in entry else {"folder": 1})
            else:
                yield from _taken(
                    root / match, match, Path(match).relative_to(fixed).as_posix(), source, passed
                )
    else:
        raise InputError(f"source {source.name!r}: {path}: no such file or folder. Correct `paths`.")


def _walk(
    folder: Path, shown: str, below: str, above: frozenset[tuple[int, int]], passed: Counter[str]
) -> Iterator[tuple[Path, str]]:
    """The files below a folder with their relative paths; `above` identifies the folders that hold it."""
    try:
        info, entries = folder.stat(), sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise InputError(
            f"{shown}: the folder cannot be read ({error.strerror}). Make it readable."
        ) from None
    identity = (info.st_dev, info.st_ino)
    if identity in above:
        raise InputError(
            f"{shown}: a loop of symbolic links: it leads back to a folder that holds it. Remove the link."
        )
    for entry in entries:
        name = f"{below}{entry.name}"
        if entry.name.startswith("."):
            passed["hidden"] += 1
        elif stat.S_ISDIR(_mode(Path(entry.path), entry.path)):
            yield from _walk(Path(entry.path), entry.path, f"{name}/", above | {identity}, passed)
        else:
            yield Path(entry.path), name


def _mode(path: Path, shown: str) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:  # a link that leads nowhere, or to itself
        raise InputError(f"{shown}: cannot be opened ({error.strerror}). Repair or remove it.") from None


def _taken(
    path: Path, shown: str, name: str, source: SourceConfig, passed: Counter[str]
) -> Iterator[InputFile]:
    """The file, if its format is known; else it is counted as passed over."""
    stem, suffix = os.path.splitext(path.name.lower())
    inner = os.path.splitext(stem)[1] if suffix in PACKED else suffix
    kind = FORMATS.get(inner) if source.format == "auto" else source.format
    if kind is None or (kind == "parquet" and suffix in PACKED):
        passed[suffix or "without suffix"] += 1
    elif not stat.S_ISREG(_mode(path, shown)):
        passed["not a regular file"] += 1
    else:
        yield InputFile(path, printable(shown), printable(name), kind)


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold spelled out (undecodable file names, lone surrogates in ids)."""
    return text.encode("utf-8", "backslashreplace").decode()
