"""Which files a source names: files, folders, glob patterns, addresses and datasets, each file once, in a
stable order.

A folder is searched recursively, sorted by name; names beginning with a dot are left out and links are
followed. What has another suffix is counted as passed over, but a file named by itself must be readable.
Addresses (s3://, hf://, …) follow the same rules through fsspec. Paths that name nothing, links that lead
nowhere or in circles, and folders that cannot be opened are `InputError`s before anything is read."""

import glob
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig
from stablelm.data.documents import printable
from stablelm.data.inputs import InputFile as InputFile
from stablelm.data.inputs import explained, file_system, is_address, local_file, remote_stamp

FORMATS = {
    ".txt": "text", ".md": "text", ".py": "text", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".html": "html", ".htm": "html", ".warc": "warc",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
PACKED = (".gz", ".zst")
TABLES = ("parquet", "arrow")
CODE = frozenset(
    """
    .ada .asm .bash .bat .c .cc .clj .cljs .cmake .coffee .cpp .cs .css .cu .cuh .cxx .d .dart .el .elm
    .erl .ex .exs .f .f03 .f90 .f95 .for .fs .fsx .go .gradle .groovy .h .hh .hpp .hs .hxx .inl .java
    .jl .js .jsx .kt .kts .lean .less .lisp .lua .m .makefile .mjs .mk .ml .mli .mm .nim .nix .pas .php
    .pl .pm .proto .ps1 .py .pyi .pyx .r .rb .rkt .rs .s .sass .scala .scm .scss .sh .sol .sql .sv
    .svelte .swift .tcl .tex .tf .thrift .ts .tsx .v .vb .vhd .vhdl .vue .wat .zig .zsh
    """.split()  # noqa: SIM905 (one a line would take a page)
)
"""The languages of the usual public code sets; data and markup (.json, .xml, .html, .csv) are left out."""
_CODE_NAMES = {"makefile", "dockerfile", "cmakelists.txt", "rakefile", "gemfile", "justfile"}


def find_files(source: SourceConfig, root: str | Path, ignored: Counter[str]) -> list[InputFile]:
    """The files a source's paths name, in the order of reading; `ignored` counts the others by suffix."""
    found: dict[tuple[str, int], InputFile] = {}
    for entry in source.paths:
        passed: Counter[str] = Counter()
        here = list(_resolve(entry, Path(root), source, passed))
        if not here:
            left = ", ".join(f"{count} {kind}" for kind, count in sorted(passed.items()))
            raise InputError(
                f"source {source.name!r}: {entry}: no file to read{left and f' (passed over: {left})'}. "
                f"Readable are {' '.join(FORMATS)}, those before .parquet also with {' or '.join(PACKED)}; "
                "`format` adds others."
            )
        ignored.update(passed)
        for file in here:
            plain = file.remote or file.format == "datasets"
            key = (file.location if plain else os.path.realpath(file.path), file.shard)
            if found.setdefault(key, file) is not file:
                ignored["named before"] += 1
    return list(found.values())


def _resolve(entry: str, root: Path, source: SourceConfig, passed: Counter[str]) -> Iterator[InputFile]:
    """The files of one entry of `paths`."""
    if source.format == "datasets":
        from stablelm.data.hub import find_dataset

        yield from find_dataset(entry, root, source)
    elif is_address(entry):
        yield from _stored(entry, source, passed)
    else:
        yield from _local(os.path.expanduser(entry.removeprefix("file://")), root, source, passed)


def _local(entry: str, root: Path, source: SourceConfig, passed: Counter[str]) -> Iterator[InputFile]:
    """A folder, a file or a pattern."""
    path = root / entry
    if os.path.isdir(path):
        for file, name in _walk(path, entry, "", frozenset(), passed):
            yield from _taken(file, f"{entry.rstrip('/')}/{name}", name, source, passed)
    elif os.path.lexists(path):
        if not stat.S_ISREG(_status(path, entry).st_mode):
            raise InputError(
                f"source {source.name!r}: {entry}: not a regular file. Name a file, folder or pattern."
            )
        yield local_file(
            path,
            printable(entry),
            printable(path.name),
            _known(path.name, entry, source),
            _status(path, entry),
        )
    elif glob.has_magic(entry):
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(entry).parts))
        for match in sorted(glob.glob(entry, root_dir=root, recursive=True)):
            if (root / match).is_dir():
                passed.update({} if "**" in entry else {"folder": 1})
            else:
                name = Path(match).relative_to(fixed).as_posix()
                yield from _taken(root / match, match, name, source, passed)
    else:
        raise InputError(f"source {source.name!r}: {path}: no such file or folder. Correct `paths`.")


def _stored(entry: str, source: SourceConfig, passed: Counter[str]) -> Iterator[InputFile]:
    """An address: of a file, of what stands for a folder, or a pattern."""
    if "::" in entry:
        raise InputError(f"{entry}: chained addresses are not supported. Name the store alone.")
    system, path = file_system(entry)
    with explained(entry):
        if glob.has_magic(path):
            fixed = "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), path.split("/")))
            listed = system.glob(path, detail=True)
        elif (info := system.info(path))["type"] != "directory":
            name = PurePosixPath(path).name
            where, kind = system.unstrip_protocol(path), _known(name, entry, source)
            yield InputFile(where, printable(entry), printable(name), kind, *remote_stamp(info))
            return
        else:
            fixed, listed = path.rstrip("/"), system.find(path, detail=True)
    names = {where.removeprefix(fixed).strip("/"): (where, info) for where, info in listed.items()}
    for name in sorted(names, key=lambda name: [os.fsencode(part) for part in name.split("/")]):
        where, info = names[name]
        address = system.unstrip_protocol(where)
        if info["type"] != "file":
            passed.update({} if "**" in entry else {"folder": 1})
        elif any(part.startswith(".") for part in name.split("/")):
            passed["hidden"] += 1
        elif known := _kind(PurePosixPath(name).name, source, passed):
            yield InputFile(address, printable(address), printable(name), known, *remote_stamp(info))


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
        elif stat.S_ISDIR(_status(Path(entry.path), entry.path).st_mode):
            yield from _walk(Path(entry.path), entry.path, f"{name}/", above | {identity}, passed)
        else:
            yield Path(entry.path), name


def _status(path: Path, shown: str) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:  # a link that leads nowhere, or to itself
        raise InputError(f"{shown}: cannot be opened ({error.strerror}). Repair or remove it.") from None


def _taken(
    path: Path, shown: str, name: str, source: SourceConfig, passed: Counter[str]
) -> Iterator[InputFile]:
    """The file, if its format is known; else it is counted as passed over."""
    if not (kind := _kind(path.name, source, passed)):
        return
    info = _status(path, shown)
    if not stat.S_ISREG(info.st_mode):
        passed["not a regular file"] += 1
    else:
        yield local_file(path, printable(shown), printable(name), kind, info)


def _kind(name: str, source: SourceConfig, passed: Counter[str]) -> str | None:
    """The format of a file in a folder or pattern; None, and counted, if it is passed over."""
    stem, suffix = os.path.splitext(name.lower())
    stem, inner = os.path.splitext(stem) if suffix in PACKED else (stem, suffix)
    kind = FORMATS.get(inner) if source.format == "auto" else source.format
    if source.suffixes:
        wanted = inner in source.suffixes
    else:
        wanted = kind != "code" or inner in CODE or stem + inner in _CODE_NAMES
    if kind is None or not wanted or (kind in TABLES and suffix in PACKED):
        passed[suffix or "without suffix"] += 1
        return None
    return kind


def _known(name: str, entry: str, source: SourceConfig) -> str:
    """The format of a file that was named by itself."""
    stem, suffix = os.path.splitext(name.lower())
    inner = os.path.splitext(stem)[1] if suffix in PACKED else suffix
    kind = FORMATS.get(inner) if source.format == "auto" else source.format
    if kind in TABLES and suffix in PACKED:
        raise InputError(
            f"source {source.name!r}: {entry}: {kind} is not read from {suffix}. Unpack it first."
        )
    if kind is None:
        raise InputError(
            f"source {source.name!r}: {entry}: the suffix does not tell its format. Set `format` to text, "
            f"code, jsonl, parquet, arrow, warc or html, or name it {', '.join(FORMATS)}."
        )
    return kind
