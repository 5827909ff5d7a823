"""The demo's text: docstrings leave the code, nothing else does; no text twice; a poor Python is told so."""

import ast
import builtins
import json
import sys
import sysconfig
import tokenize
import warnings
from pathlib import Path
from textwrap import dedent

import pytest

from stablelm.config import InputError
from stablelm.demo import corpus
from stablelm.demo.corpus import docstrings, without_docstrings, write_corpus
from stablelm.storage import fingerprint

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The corpus of the Python that runs the tests."""
    out = tmp_path_factory.mktemp("corpus") / "text"
    return out, write_corpus(out)


def files(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes().decode()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def bare(tree: ast.Module) -> str:
    """The tree without its docstrings, as text; written here a second way, by rebuilding the tree."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.dump(tree)


@pytest.mark.filterwarnings("ignore")
def test_files_of_the_library_keep_their_code_exactly(real):
    out, summary = real
    written = files(out / "code")
    assert len(written) == summary.code.files > 300
    for name, text in list(written.items())[::6]:
        with tokenize.open(STDLIB / name) as file:
            original = ast.parse(file.read())
        cut = ast.parse(text)
        assert docstrings(cut) == [], name
        assert ast.dump(cut) == bare(original), name


@pytest.mark.filterwarnings("ignore")
def test_code_still_compiles(real):
    out, _ = real
    for name, text in list(files(out / "code").items())[::4]:
        compile(text, name, "exec")


def test_the_two_sources_are_large_apart_and_counted(real):
    out, summary = real
    prose, code = files(out / "prose"), files(out / "code")
    sizes = {name: len(text.encode()) for name, text in code.items()}
    assert summary.code.listing == fingerprint(sizes)
    assert {p.name for p in out.iterdir()} == {"prose", "code", "corpus.json"}
    assert summary.prose.files == len(prose)
    assert summary.prose.bytes == sum(len(t.encode()) for t in prose.values()) >= 1_000_000
    assert summary.code.bytes == sum(len(t.encode()) for t in code.values()) >= 2_000_000
    assert summary.licence == "PSF-2.0"
    assert json.loads((out / "corpus.json").read_text())["python"].endswith(sys.version.split()[0])
    assert not [n for n in code if "/test" in f"/{n}" or "site-packages" in n or "pydoc_data" in n]
    assert not [n for n in code if "_sysconfigdata" in n]
    sentence = "Return a list of the lines in the string"
    assert len(set(prose.values())) == len(prose)
    assert len(set(code.values())) == len(code)
    assert sentence not in "".join(code.values())
    assert any(n.startswith("topics/") for n in prose) == ("pydoc_data.topics" in sys.modules)


def test_pieces_of_one_module_are_in_one_file(real):
    out, _ = real
    text = (out / "prose" / "modules" / "textwrap.txt").read_text("utf-8")
    for piece in (sys.modules.get("textwrap") or __import__("textwrap")).__doc__, dedent.__doc__:
        assert piece is not None
        assert piece.strip().splitlines()[0] in text
    assert "def dedent(text):" in (out / "code" / "textwrap.py").read_text("utf-8")


def test_a_second_call_keeps_it_and_a_damaged_one_is_made_again(real, tmp_path):
    library = small_library(tmp_path)
    out = tmp_path / "out"
    first = write_corpus(out, library=library)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert write_corpus(out, library=library) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == stamps
    before = files(out)
    (out / "code" / "a.py").unlink()
    (out / "code" / "stray.py").write_text("x = 1\n")
    assert write_corpus(out, library=library) == first
    assert files(out) == before
    (out / "corpus.json").unlink()  # as a kill before the end leaves it
    assert write_corpus(out, library=library) == first


@pytest.fixture(autouse=True)
def small_needs(request, monkeypatch):
    """Small libraries are enough where the real one is not used."""
    if "real" not in request.fixturenames or "tmp_path" in request.fixturenames:
        monkeypatch.setattr(corpus, "NEEDED", {"prose": 1, "code": 1})
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)


def small_library(folder: Path, **more: bytes) -> Path:
    library = folder / "lib"
    contents = {
        "a.py": b'"""Module a."""\n\nx = 1\n',
        "pack/b.py": b'def f():\n    """Same text."""\n    return 2\n',
        "pack/c.py": b'def g():\n    """Same text."""\n    return 3\n', "empty.py": b"",
        "only.py": b'"""Only this."""\n',
        "twin_a.py": b"y = 5\n", "twin_b.py": b"y = 5\n",
        "test/t.py": b"t = 1\n", "pack/tests/u.py": b"u = 1\n",
        "site-packages/v.py": b"v = 1\n", "_sysconfigdata__linux_.py": b"w = '/home/me'\n",
        "LICENSE.txt": b"Do as you like.\n",
        **more,
    }  # fmt: skip
    for name, content in contents.items():
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return library


def test_a_small_library_in_full(tmp_path):
    summary = write_corpus(tmp_path / "out", library=small_library(tmp_path))
    assert files(tmp_path / "out" / "prose") == {
        "modules/a.txt": "Module a.\n", "modules/pack/b.txt": "Same text.\n",
        "modules/only.txt": "Only this.\n", "licences/python.txt": "Do as you like.\n",
    }  # fmt: skip
    assert files(tmp_path / "out" / "code") == {
        "a.py": "x = 1\n", "pack/b.py": "def f():\n    return 2\n", "pack/c.py": "def g():\n    return 3\n",
        "twin_a.py": "y = 5\n",
    }  # fmt: skip
    assert summary.left_out == {"empty": 2, "repeated": 1, "repeated docstrings": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"x = '\xff'\n",
        b"def f(:\n",
        b"x = 1\x00\n",
        b"# coding: no-such-codec\nx = 1\n",
        b"print 'old'\n",
        b"(" * 5000,
    ],
    ids=["undecodable", "syntax", "null", "codec", "python2", "deep"],
)
def test_files_that_are_not_python_are_counted(tmp_path, content):
    summary = write_corpus(tmp_path / "out", library=small_library(tmp_path, **{"bad.py": content}))
    assert summary.left_out["unreadable"] == 1
    assert "bad.py" not in files(tmp_path / "out" / "code")


def test_other_encodings_and_newlines_become_utf8_lines(tmp_path):
    library = small_library(
        tmp_path,
        **{
            "latin.py": '# coding: latin-1\nname = "é"\n'.encode("latin-1"),
            "dos.py": b'\xef\xbb\xbfdef f():\r\n    """Doc\r\n    more."""\r\n    return 1\r\n',
        },
    )
    write_corpus(tmp_path / "out", library=library)
    assert files(tmp_path / "out" / "code")["latin.py"] == '# coding: latin-1\nname = "é"\n'
    assert files(tmp_path / "out" / "code")["dos.py"] == "def f():\n    return 1\n"
    assert files(tmp_path / "out" / "prose")["modules/dos.txt"] == "Doc\nmore.\n"


def test_the_same_library_gives_the_same_bytes(tmp_path):
    library = small_library(tmp_path)
    for name in ("one", "two"):
        write_corpus(tmp_path / name, library=library)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_too_little_text_says_how_much(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "NEEDED", {"prose": 1_000, "code": 1})
    with pytest.raises(
        InputError, match=r"lib: too little prose for the demo: \d+ bytes found, 1,000 needed"
    ):
        write_corpus(tmp_path / "out", library=small_library(tmp_path))
    assert not (tmp_path / "out" / "corpus.json").exists()


def test_no_library_at_all(tmp_path):
    """A Python whose library is in a zip file has no folder."""
    with pytest.raises(InputError, match="0 bytes found"):
        write_corpus(tmp_path / "out", library=tmp_path / "python311.zip")


def test_nothing_is_imported_or_run(tmp_path, monkeypatch):
    library = small_library(tmp_path, **{"evil.py": b"raise SystemExit('ran')\n"})
    monkeypatch.setattr(builtins, "exec", lambda *_: pytest.fail("code was run"))
    write_corpus(tmp_path / "out", library=library)
    assert "evil.py" in files(tmp_path / "out" / "code")


NESTED = """\
class A:
    'Doc.'

    async def f(self):
        'Doc.'
        def g():
            'Doc.'
"""
BLOCKS = """\
try:
    import x
except E:
    def f():
        'Doc.'
        return 1
else:
    class B: 'Doc.'
"""
UNDOCUMENTED = """\
def f():
    x = 1
    "Stays."
    b"stays"

def g():
    b"stays"

def h():
    f"stays"
"""
CASES = {
    "module": ('"""Doc."""\nimport os\n', "import os\n"),
    "module, nothing else": ('"""Doc."""\n', ""),
    "after comments": (
        "#!/usr/bin/python\n# -*- x -*-\n\n'''Doc'''\n\nx = 1\n",
        "#!/usr/bin/python\n# -*- x -*-\n\nx = 1\n",
    ),
    "future import": (
        '"""Doc."""\nfrom __future__ import annotations\n',
        "from __future__ import annotations\n",
    ),
    "class of nothing else": ('class A(B):\n    """Doc."""\n', "class A(B):\n    pass\n"),
    "one line": ('def f(): "Doc."\n', "def f(): pass\n"),
    "one line and more": ('def f(): "Doc."; return 1\n', "def f(): return 1\n"),
    "semicolon": ('def f():\n    "Doc."; return 1\n', "def f():\n    return 1\n"),
    "trailing semicolon": ('def f():\n    "Doc.";\n    return 1\n', "def f():\n    return 1\n"),
    "trailing comment": (
        'def f():\n    "Doc."  # why\n    return 1\n',
        "def f():\n    # why\n    return 1\n",
    ),
    "semicolon and comment": (
        'def f():\n    "Doc.";  # why\n    return 1\n',
        "def f():\n    # why\n    return 1\n",
    ),
    "brackets": (
        'def f():\n    ("""Doc."""  # in\n     """More."""\n    )\n    return 1\n',
        "def f():\n    return 1\n",
    ),
    "two strings": ('def f():\n    "Doc." \\\n        "More."\n    return 1\n', "def f():\n    return 1\n"),
    "wide characters": ('def f(é="→"): "Döc 中"; return "é"\n', 'def f(é="→"): return "é"\n'),
    "raw": ('def f():\n    r"""\\d"""\n    return 1\n', "def f():\n    return 1\n"),
    "nested": (
        NESTED,
        "class A:\n    async def f(self):\n        def g():\n            pass\n",
    ),
    "inside other blocks": (
        BLOCKS,
        "try:\n    import x\nexcept E:\n    def f():\n        return 1\nelse:\n    class B: pass\n",
    ),
    "not docstrings": (UNDOCUMENTED, UNDOCUMENTED),
    "no newline at the end": ('def f():\n    """Doc."""', "def f():\n    pass"),
    "form feed": ('"""Doc."""\n\x0c\nx = 1\n', "x = 1\n"),
    "line separators inside": (
        'def f():\n    """Doc\u2028more\x0b."""\n    return 1\n',
        "def f():\n    return 1\n",
    ),
    "quotes in quotes": (
        "def f():\n    '''a \"\"\" b'''\n    return '''c'''\n",
        "def f():\n    return '''c'''\n",
    ),
    "tabs": ('def f():\n\t"""Doc."""\n\treturn 1\n', "def f():\n\treturn 1\n"),
    "async and decorators": ('@a\n@b(1)\nclass C:\n  "Doc"\n  x: int\n', "@a\n@b(1)\nclass C:\n  x: int\n"),
}


@pytest.mark.parametrize(("source", "expected"), CASES.values(), ids=CASES)
def test_cutting(source, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert without_docstrings(source) == expected
        assert ast.dump(ast.parse(expected)) == bare(ast.parse(source))


def test_docstrings_are_clean_and_in_source_order():
    source = '''
"""Module.

More.
    Indented.
"""
class A:
    """  Class.  """
    def f(self):
        """Method.

        More.
        """
    x = 1
def g():
    """"""
def h():
    """Function."""
'''
    tree = ast.parse(source)
    assert docstrings(tree) == ["Module.\n\nMore.\n    Indented.", "Class.", "Method.\n\nMore.", "Function."]
