"""A manifest finds every file that is missing, cut or changed, and never reads outside its directory."""

import json
import shutil

import pytest

from stablelm.config import InputError
from stablelm.storage import MANIFEST, read_manifest, sha256_file, write_manifest

REMEDY = "Resume from an earlier checkpoint."


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "step"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "a.bin").write_bytes(bytes(range(256)) * 10_000)
    (folder / "state.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    write_manifest(folder, {"step": 5, "what": "checkpoint"})
    return folder


def test_a_whole_directory_is_accepted_and_listed(folder):
    manifest = read_manifest(folder)
    assert list(manifest) == ["step", "what", "files"]
    assert set(manifest["files"]) == {"model/a.bin", "state.json", "empty"}
    entry = manifest["files"]["model/a.bin"]
    assert entry == {"bytes": 2_560_000, "sha256": sha256_file(folder / "model" / "a.bin")}


@pytest.mark.parametrize("position", [0, 1_234_567, 2_559_999])
def test_one_flipped_bit_is_found_by_name(folder, position):
    path = folder / "model" / "a.bin"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"model/a\.bin: corrupt: its sha256 is not the manifest's\. Resume from"
    ):
        read_manifest(folder, remedy=REMEDY)
    read_manifest(folder, hashes=False)  # sizes alone cannot see it, and do not claim to


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("size", [0, 2_559_999, 2_560_001])
def test_another_size_is_found_without_reading(folder, hashes, size):
    with open(folder / "model" / "a.bin", "r+b") as file:
        file.truncate(size)
    with pytest.raises(InputError, match=f"promises 2,560,000 bytes, the file has {size:,}. Resume"):
        read_manifest(folder, hashes=hashes, remedy=REMEDY)


@pytest.mark.parametrize("hashes", [True, False])
def test_a_missing_file_even_an_empty_one(folder, hashes):
    (folder / "empty").unlink()
    with pytest.raises(InputError, match="empty: missing, although the manifest lists it"):
        read_manifest(folder, hashes=hashes)


def test_a_directory_in_the_place_of_a_file(folder):
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="empty: missing"):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": []}', '{"files": null}', "5", "null"])
def test_what_is_no_manifest(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="this is not a manifest"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "entry", [5, None, {}, {"bytes": 0}, {"sha256": "x"}, {"bytes": "0", "sha256": 1}, [0, "x"], "2560000"]
)
def test_a_broken_entry_is_refused_by_name(folder, entry):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["empty"] = entry
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="empty"):
        read_manifest(folder)


def test_no_manifest_at_all(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"manifest\.json: no such file"):
        read_manifest(folder)


def test_a_cut_manifest(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"manifest\.json, line \d+: not valid JSON"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "model/../../outside"])
def test_a_manifest_cannot_point_outside(folder, name):
    (folder.parent / "outside").write_text("x")
    manifest = {"files": {name: {"bytes": 1, "sha256": "0"}}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="leads outside this directory"):
        read_manifest(folder)


def test_the_directory_may_move_and_grow(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    read_manifest(tmp_path / "elsewhere")


def test_what_was_hashed_by_its_writer_is_not_hashed_again(tmp_path):
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("two")
    known = {"a": {"bytes": 3, "sha256": "0" * 64}}
    assert write_manifest(tmp_path, {}, known)["files"]["a"] == known["a"]
    with pytest.raises(InputError, match="a: corrupt"):
        read_manifest(tmp_path)
    assert read_manifest(tmp_path, hashes=lambda name: name == "b")
    for lost in ({"a": {"bytes": 4, "sha256": ""}}, {"c": {"bytes": 3, "sha256": ""}}):
        with pytest.raises(InputError, match="Do all processes see one directory"):
            write_manifest(tmp_path, {}, lost)
