"""Which files are read: one order, each once, and paths that name nothing are refused."""

import json
import os

import pytest

from stablelm.config import InputError
from stablelm.config.recipe import SourceConfig
from stablelm.data.accounts import SourceAccount
from stablelm.data.sources import read_documents


def texts(result):
    return [document.text for document in result[0]]


def test_a_tree_is_read_in_one_order_and_the_rest_is_counted(read, tmp_path):
    for name in ("b/x.md", "b/a.py", "a.txt", "b.txt", "c/d/e/deep.txt", "B.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("picture.png", "b/other.PNG", "Makefile", ".hidden.txt", "b/.git"):
        (tmp_path / name).write_text("passed over")
    documents, account = read(tmp_path)
    expected = ["B.txt", "a.txt", "b/a.py", "b/x.md", "b.txt", "c/d/e/deep.txt"]
    assert [document.id for document in documents] == [document.text for document in documents] == expected
    assert account["ignored"] == {".png": 2, "without suffix": 1, "hidden": 2}


def test_a_format_reads_every_file_of_a_folder(read, tmp_path):
    (tmp_path / "notes.rst").write_text("one")
    (tmp_path / "LICENSE").write_text("two")
    (tmp_path / ".hidden").write_text("three")
    assert texts(read(tmp_path, format="text")) == ["two", "one"]


def test_patterns(read, tmp_path, monkeypatch):
    for name in ("a/1.jsonl", "a/2.jsonl", "a/b/3.jsonl", "a/b/4.txt", "c/5.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    monkeypatch.chdir(tmp_path)
    assert [d.text for d in read("a/*.jsonl")[0]] == ["a/1.jsonl", "a/2.jsonl"]
    assert [d.text for d in read("**/*.jsonl")[0]] == ["a/1.jsonl", "a/2.jsonl", "a/b/3.jsonl", "c/5.jsonl"]
    assert [d.id for d in read("a/**/[3].jsonl")[0]] == ["b/3.jsonl:1"]
    assert read("a/*")[1]["ignored"] == {"folder": 1}
    with pytest.raises(InputError, match=r"z/\*\.jsonl: no file to read"):
        read("z/*.jsonl")
    with pytest.raises(InputError, match=r"c/\*\.txt: no file to read"):
        read("a/*.jsonl", "c/*.txt")


def test_relative_paths_start_at_the_root(tmp_path):
    (tmp_path / "x.txt").write_text("here")
    account = SourceAccount()
    [document] = read_documents(SourceConfig(name="s", paths=["x.txt"]), tmp_path, "stop", account)
    assert (document.text, account.files[0].path) == ("here", "x.txt")


def test_a_name_with_brackets_is_a_name_first(read, tmp_path):
    (tmp_path / "[x].txt").write_text("brackets")
    (tmp_path / "x.txt").write_text("plain")
    assert texts(read(tmp_path / "[x].txt")) == ["brackets"]


def test_a_file_named_twice_is_read_once(read, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    documents, account = read(tmp_path, tmp_path / "*.txt", tmp_path / "b.txt")
    assert [document.id for document in documents] == ["a.txt", "b.txt"]
    assert account["ignored"] == {"named before": 5}


def test_links_are_followed_but_not_in_circles(read, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.txt").write_text("x")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    assert [d.id for d in read(tmp_path / "data")[0]] == ["link/x.txt"]
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match=r"data/link/back: a loop of symbolic links"):
        read(tmp_path / "data", on_error="skip")


@pytest.mark.parametrize("target", ["nowhere", "self.txt"])
def test_links_that_lead_nowhere(read, tmp_path, target):
    (tmp_path / "self.txt").symlink_to(tmp_path / target)
    for path in (tmp_path, tmp_path / "self.txt"):
        with pytest.raises(InputError, match=r"self\.txt: cannot be opened"):
            read(path, on_error="skip")


def test_things_that_are_no_files(read, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="not a regular file"):
        read(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="no file to read .passed over: 1 not a regular file"):
        read(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "missing.txt")
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "missing")


def test_a_folder_that_may_not_be_read(read, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("stablelm.data.discovery.os.scandir", refuse)
    with pytest.raises(InputError, match=r"the folder cannot be read \(Permission denied\)"):
        read(tmp_path)


def test_names_that_are_not_utf8(read, tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("x")
    [document], account = read(tmp_path)
    assert document.id == "caf\\udce9.txt"
    json.dumps(account).encode()
