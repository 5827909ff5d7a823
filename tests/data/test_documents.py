"""Fields of records: dotted paths, addresses, labels, and what is excluded by rule."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config.recipe import folded
from stablelm.data.documents import MISSING, lookup


@pytest.mark.parametrize(
    ("record", "key", "value"),
    [
        ({"a": {"b": 1}}, "a.b", 1),
        ({"a.b": 2, "a": {"b": 1}}, "a.b", 2),
        ({"a": {"b.c": 3}}, "a.b.c", 3),
        ({"a.b": {"c": 4}}, "a.b.c", 4),
        ({"a": {"b": {"c": 5}}}, "a.b.c", 5),
        ({"a": {"x": 0}, "a.b": {"c": 6}}, "a.b.c", 6),
        ({"a": '{"b": {"c": 7}}'}, "a.b.c", 7),
        ({"a": "{'b': {'c': 8}, 'n': None}"}, "a.b.c", 8),
        ({"a": {"b": None}}, "a.b", None),
        ({"a": [{"b": 1}]}, "a.b", MISSING),
        ({"a": "b"}, "a.b", MISSING),
        ({"a": "{broken"}, "a.b", MISSING),
        ({"a": "{" * 5000}, "a.b", MISSING),
        ({"a": "{'b': __import__('os')}"}, "a.b", MISSING),
        ({"a": "{'b': " + "(" * 3000 + ")" * 3000 + "}"}, "a.b", MISSING),
        ({"a": "[1]"}, "a.b", MISSING),
        ({"a": None}, "a.b", MISSING),
        ({}, "a", MISSING),
        ({"": {"": 9}}, ".", 9),
    ],
)
def test_lookup(record, key, value):
    assert lookup(record, key) is value or lookup(record, key) == value


@given(
    st.dictionaries(st.text("ab.", max_size=3), st.text("ab.{}'\":", max_size=5), max_size=4),
    st.text("ab.", max_size=5),
)
def test_lookup_never_fails(record, key):
    lookup(record, key)


@pytest.mark.parametrize(
    "label", ["Books3", "books3", "BOOKS3", "Books_3", "books-3", " Books 3 ", "book S3", "BOOKS.3"]
)
def test_spellings_of_one_label(label):
    assert folded(label) == folded("Books3")


@pytest.mark.parametrize("label", ["Books", "BookCorpus2", "Books33", "Bookes3", "Books²", "3books"])
def test_other_labels(label):
    assert folded(label) != folded("Books3")


PILE = [
    {"text": "web", "meta": {"pile_set_name": "Pile-CC"}},
    {"text": "planted", "meta": {"pile_set_name": "Books3"}},
    {"text": "corpus", "meta": {"pile_set_name": "BookCorpus2"}},
    {"text": "gutenberg", "meta": {"pile_set_name": "Gutenberg (PG-19)"}},
]
V2 = [  # pilev2-dev keeps meta as Python prints a dictionary, and calls the set `source`
    {"text": "web v2", "meta": "{'source': 'PubMed', 'split': 'train'}"},
    {"text": "planted v2", "meta": "{'source': 'books_3'}"},
]
RED = [
    {"text": "c4", "meta": {"url": "http://a"}, "red_pajama_subset": "c4"},
    {"text": "red book", "meta": json.dumps({"title": "x"}), "red_pajama_subset": "book"},
    {"text": "meta book", "meta": {"red_pajama_subset": "book"}},
    {"text": "slim", "meta": {"redpajama_set_name": "RedPajamaBook"}},
]
KEYS = [
    "meta.pile_set_name",
    "meta.source",
    "meta.red_pajama_subset",
    "red_pajama_subset",
    "meta.redpajama_set_name",
]
RULES = ["Books3", "book", "RedPajamaBook"]


def test_books3_is_excluded_in_every_schema(read, json_lines, tmp_path):
    path = json_lines(tmp_path / "x.jsonl", *PILE, *V2, *RED, {"text": "without a label"})
    documents, account = read(path, label_key=KEYS, exclude=RULES)
    assert [(d.text, d.label) for d in documents] == [
        ("web", "Pile-CC"), ("corpus", "BookCorpus2"), ("gutenberg", "Gutenberg (PG-19)"),
        ("web v2", "PubMed"), ("c4", "c4"), ("without a label", ""),
    ]  # fmt: skip
    assert account["dropped"] == {"excluded: Books3": 2, "excluded: book": 2, "excluded: RedPajamaBook": 1}
    assert account["unlabelled"] == 1
    lines = path.read_bytes().splitlines(keepends=True)
    assert account["dropped_bytes"]["excluded: Books3"] == len(lines[1]) + len(lines[5])
    assert account["examples"]["excluded: Books3"] == [f"{path}:2", f"{path}:6"]


def test_redpajama_by_the_layout_of_its_files(read, json_lines, tmp_path):
    for folder in ("book", "c4", "common_crawl/2023-06"):
        (tmp_path / folder).mkdir(parents=True)
        json_lines(tmp_path / folder / "x.jsonl", {"text": folder, "meta": {}})
    keys = {"label_from_folder": True, "exclude": ["Book"]}
    documents, account = read(tmp_path, **keys)
    assert [(d.text, d.label) for d in documents] == [("c4", "c4"), ("common_crawl/2023-06", "common_crawl")]
    assert (account["dropped"], account["unlabelled"]) == ({"excluded: Book": 1}, 0)
    assert read(tmp_path / "book/x.jsonl", **keys)[1]["dropped"] == {"excluded: Book": 1}
    assert read(tmp_path / "*/*.jsonl", **keys)[1]["dropped"] == {"excluded: Book": 1}


def test_folders_of_text_files_have_labels_too(read, tmp_path):
    (tmp_path / "Books3").mkdir()
    (tmp_path / "Books3/a.txt").write_text("dropped")
    (tmp_path / "b.txt").write_text("kept")
    documents, account = read(tmp_path, label_from_folder=True, exclude=["books3"])
    assert [document.text for document in documents] == ["kept"]
    assert account["dropped"] == {"excluded: books3": 1}


def test_the_rule_comes_before_the_text(read, json_lines, tmp_path):
    path = json_lines(tmp_path / "x.jsonl", {"meta": {"pile_set_name": "Books3"}}, {"text": "x"})
    documents, account = read(path, label_key="meta.pile_set_name", exclude=["Books3"])
    assert (len(documents), account["dropped"], account["errors"]) == (1, {"excluded: Books3": 1}, {})


def test_labels_that_are_no_strings_are_none(read, json_lines, tmp_path):
    path = json_lines(
        tmp_path / "x.jsonl", *({"text": "t", "set": s} for s in (None, 3, ["Books3"], "", {"a": 1}))
    )
    documents, account = read(path, label_key="set", exclude=["Books3", "3"])
    assert [document.label for document in documents] == [""] * 5
    assert account["unlabelled"] == 5


def test_addresses_ids_and_sizes(read, json_lines, tmp_path):
    path = json_lines(
        tmp_path / "x.jsonl",
        {"body": {"text": "é"}, "about": {"link": "http://a/ü", "key": 7}},
        {"body": {"text": "b"}, "about": {"link": 5}},
    )
    documents, account = read(path, text_key="body.text", url_key="about.link", id_key="about.key")
    assert [(d.text, d.id, d.url) for d in documents] == [("é", "7", "http://a/ü"), ("b", "x.jsonl:2", "")]
    assert [d.size for d in documents] == [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    assert account["read_bytes"] == path.stat().st_size


# --- code --------------------------------------------------------------------------------------------------


def test_code_trees(read, tmp_path):
    for name in (
        "src/a.c",
        "src/a.h",
        "lib/b.rs",
        "Makefile",
        "c.PY",
        "data.json",
        "page.html",
        "d.ipynb",
        ".git/x.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    documents, account = read(tmp_path, format="code")
    assert [d.id for d in documents] == ["Makefile", "c.PY", "lib/b.rs", "src/a.c", "src/a.h"]
    assert account["ignored"] == {".json": 1, ".html": 1, ".ipynb": 1, "hidden": 1}
    assert [d.id for d in read(tmp_path, format="code", suffixes=[".c", ".JSON"])[0]] == [
        "data.json",
        "src/a.c",
    ]
    assert [d.id for d in read(tmp_path, suffixes=[".py"])[0]] == ["c.PY"]
    assert [d.text for d in read(tmp_path / "data.json", format="code")[0]] == ["data.json"]


def test_the_standard_library_of_this_python_is_code(read):
    documents, account = read(json.__path__[0], format="code")
    assert "decoder.py" in [document.id for document in documents]
    assert account["errors"] == {}
