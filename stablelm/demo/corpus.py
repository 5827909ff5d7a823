"""Real text with no download: the running Python's own library, as a tree of text files.

* `code/`: every `.py` file of the standard library, its docstrings cut out at their exact source positions.
* `prose/`: the language reference topics of `pydoc_data`, the docstrings (one file per module, so that all
  pieces of a module share an origin and fall on the same side of the held-out split) and the licence texts.

So no sentence is in both sources. Left out: third-party packages, tests and their data, files generated for
one machine, and files that do not decode or parse (counted). A docstring, topic or file that repeats another
one exactly is kept once, so that an epoch is an epoch and an overlap is a real one. The order is by name; the
same Python gives the same bytes. The files can be made again at any time, so they are not flushed one by one;
`corpus.json`, written last, marks them as whole. Everything is under the Python Software Foundation licence
(PSF-2.0), except bundled licence texts, which say for themselves whose they are. 12 MB cost 4 seconds."""

import ast
import importlib
import os
import platform
import re
import shutil
import sysconfig
import tokenize
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from stablelm.config import InputError
from stablelm.storage import explain_full_disk, fingerprint, read_json, sha256_text, write_json

LICENCE = "PSF-2.0"
NEEDED = {"prose": 1_000_000, "code": 2_000_000}  # bytes; below this the demo has too little to learn from
SUMMARY = "corpus.json"
# pydoc_data and LICENSE are prose; a test's data is often broken on purpose; the rest is not the library.
_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data"}
_GENERATED = "_sysconfigdata"  # holds the paths and compiler flags of one machine
_LICENCE_NAMES = ("license", "licence", "copying", "notice")
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class SourceSummary:
    """One source as written."""

    files: int
    bytes: int
    listing: str
    """sha256 of the files' names and sizes."""


@dataclass(frozen=True)
class CorpusSummary:
    """What `write_corpus` found; also in `corpus.json` beside the two trees."""

    python: str
    licence: str
    prose: SourceSummary
    code: SourceSummary
    left_out: dict[str, int]
    """Reason → how many files (unreadable, empty), or how many docstrings and files (repeated)."""


def write_corpus(out: Path, *, library: Path | None = None) -> CorpusSummary:
    """Writes OUT/prose and OUT/code from a standard library (by default this Python's) and says what is in
    them.

    A whole corpus that is already in OUT is kept as it is. Raises `InputError` when the library holds too
    little text."""
    if (summary := _existing(out)) is not None:
        return summary
    library = library or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    left_out: Counter[str] = Counter()
    with explain_full_disk(out):
        (out / SUMMARY).unlink(missing_ok=True)
        for source in NEEDED:
            shutil.rmtree(out / source, ignore_errors=True)
        for name, text in chain(_topics(), _modules(library, left_out, seen), _licences(library)):
            digest = sha256_text(text)
            if not text.strip() or digest in seen:
                left_out["repeated" if text.strip() else "empty"] += 1
                continue
            seen.add(digest)
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        python = f"{platform.python_implementation()} {platform.python_version()}"
        sizes = {source: _measure(out / source) for source in NEEDED}
        _require_enough(sizes, library)
        summary = CorpusSummary(python, LICENCE, **sizes, left_out=dict(sorted(left_out.items())))
        write_json(out / SUMMARY, asdict(summary))
    return summary


def _existing(out: Path) -> CorpusSummary | None:
    """The corpus that is in `out`, if it is whole: marked as finished, and every file as long as it was."""
    if not (out / SUMMARY).is_file():
        return None
    values = read_json(out / SUMMARY)
    sizes = {source: SourceSummary(**values[source]) for source in NEEDED}
    if any(_measure(out / source) != size for source, size in sizes.items()):
        return None
    return CorpusSummary(values["python"], values["licence"], **sizes, left_out=values["left_out"])


def _measure(folder: Path) -> SourceSummary:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return SourceSummary(len(sizes), sum(sizes.values()), fingerprint(sizes))


def _require_enough(sizes: dict[str, SourceSummary], library: Path) -> None:
    for source, needed in NEEDED.items():
        found = sizes[source].bytes
        if found < needed:
            raise InputError(
                f"{library}: too little {source} for the demo: {found:,} bytes found, {needed:,} needed. "
                "This Python comes without (all of) its standard library's sources; use a complete one, or "
                "prepare your own text with `stablelm data prepare`."
            )


def _topics() -> Iterator[tuple[str, str]]:
    """The language reference as `help()` shows it; some distributions leave it out."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for name in sorted(topics):
        yield f"prose/topics/{name}.txt", f"{topics[name].strip()}\n"


def _modules(library: Path, left_out: Counter[str], seen: set[str]) -> Iterator[tuple[str, str]]:
    """For each module its docstrings, if any are new, and its code without them."""
    for path in _source_files(library):
        name = path.relative_to(library).as_posix()
        try:
            with warnings.catch_warnings(), tokenize.open(path) as file:
                warnings.simplefilter("ignore")  # invalid escapes in old sources
                source = file.read()
                tree = ast.parse(source)
        except (
            SyntaxError,
            ValueError,
            OSError,
            RecursionError,
            MemoryError,
        ):  # ValueError: not decodable, or null bytes
            left_out["unreadable"] += 1
            continue
        texts = []
        for text in docstrings(tree):
            digest = sha256_text(text)
            if digest in seen:
                left_out["repeated docstrings"] += 1
            else:
                texts.append(text)
                seen.add(digest)
        if texts:
            yield f"prose/modules/{name.removesuffix('.py')}.txt", "\n\n".join(texts) + "\n"
        yield f"code/{name}", without_docstrings(source, tree)


def _source_files(library: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - _FOLDERS)
        found += [Path(folder, n) for n in names if n.endswith(".py") and not n.startswith(_GENERATED)]
    return sorted(found, key=lambda path: path.relative_to(library).as_posix())


def _licences(library: Path) -> Iterator[tuple[str, str]]:
    """Python's own licence, and those of the packages bundled with `ensurepip`."""
    for path in (library / "LICENSE.txt", library / "LICENSE", library.parent / "LICENSE.txt"):
        if path.is_file():
            yield "prose/licences/python.txt", path.read_text("utf-8", "replace")
            break
    for wheel in sorted(library.glob("ensurepip/_bundled/*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if PurePosixPath(name).name.lower().startswith(_LICENCE_NAMES):
                    label = name.replace("/", "-").removesuffix(".txt")
                    yield f"prose/licences/{label}.txt", archive.read(name).decode("utf-8", "replace")


def docstrings(tree: ast.Module) -> list[str]:
    """The docstrings of a module, its classes and functions, without their indentation, in source order."""
    texts = ((ast.get_docstring(node) or "").strip() for node in _documented(tree))
    return [text for text in texts if text]


def _documented(node: ast.AST) -> Iterator[Definition]:
    """What has a docstring, in source order; visits statements only, which is ten times faster than
    `ast.walk`."""
    if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
        yield node
    for part in ("body", "cases", "handlers", "orelse", "finalbody"):
        for child in getattr(node, part, ()):
            yield from _documented(child)


def without_docstrings(source: str, tree: ast.Module | None = None) -> str:
    """`source` (newlines as `\\n`) with every docstring removed; `pass` stands in where nothing else would be
    left.

    Positions are the parser's (UTF-8 offsets of the whole statement, brackets included), so the rest of the
    text stays as it was written, comments and layout included."""
    text = source.encode()
    starts = [0]
    for line in text.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    for node in reversed(list(_documented(tree or ast.parse(source)))):
        statement = node.body[0]
        start = starts[statement.lineno - 1] + statement.col_offset
        end = starts[(statement.end_lineno or 0) - 1] + (statement.end_col_offset or 0)
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        text = text[:start] + b"pass" + text[end:] if alone else _cut(text, start, end)
    return text.decode()


def _cut(text: bytes, start: int, end: int) -> bytes:
    """`text` without a statement that others follow: its lines when it has them to itself, else just
    itself."""
    after = text[end:]
    follower = re.match(rb"[ \t]*;[ \t]*", after)
    if follower and not re.match(rb"[#\n]|$", after[follower.end() :]):
        return text[:start] + after[follower.end() :]
    line = text.rfind(b"\n", 0, start) + 1
    rest = re.match(rb"[ \t]*;?[ \t]*(?:\n\s*\n|\n|$)", after)
    if rest and not text[line:start].strip():
        return text[:line] + after[rest.end() :]
    return text[:start] + after[follower.end() if follower else 0 :].lstrip(b" \t")
