"""A prepared directory: cheap to open, and what was exchanged, cut or flipped is refused by name."""

import json
import shutil

import pytest

from stablelm.config import InputError
from stablelm.data import Dataset
from stablelm.data.token_files import TokenFileWriter


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(web=[[1, 2, 3], [4, 5]], code=[[7] * 10], none=[], held_out={"web": [[9, 9]]})


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_what_it_holds(dataset):
    assert dataset.sources == ("web", "code", "none")
    assert dataset.train("web").tokens(0, 5).tolist() == [1, 2, 3, 4, 5]
    assert dataset.held_out("web").tokens(0, 2).tolist() == [9, 9]
    assert dataset.held_out("code") is None
    assert dataset.train("none").num_documents == 0
    assert dataset.text_bytes("web") == 20
    assert dataset.text_bytes("web", "held_out") == 10
    assert dataset.info("code")["train"] == {"documents": 1, "tokens": 10, "bytes": 10}
    assert dataset.tokenizer_size == 100_000
    assert dataset.tokenizer_path.name == "tokenizer.json"
    assert dataset.document_ids("web", [1]) == {1: "web-train-1"}
    assert dataset.document_ids("web", []) == {}
    assert dataset.train("web") is dataset.train("web"), "opened once"
    with pytest.raises(InputError, match="no source 'wed'; did you mean 'web'"):
        dataset.info("wed")


def test_reports(dataset):
    lines = dataset.describe()
    assert "web: 2 documents, 5 tokens, 20 bytes of text; held out 1 documents, 2 tokens" in lines
    summary = json.loads(dataset.summary_json())
    assert summary["fingerprint"] == dataset.fingerprint
    assert summary["sources"]["web"]["licence"] == "CC0-1.0"
    assert summary["sources"]["web"]["held_out"]["documents"] == 1


def test_verify_reads_every_file(dataset):
    checked = dataset.verify()
    files = [p.relative_to(dataset.path).as_posix() for p in dataset.path.rglob("*") if p.is_file()]
    assert sorted(checked) == sorted(files)


FILES = [
    "web/train.bin",
    "web/train.idx",
    "web/train.ids",
    "web/held_out.bin",
    "code/train.bin",
    "none/train.idx",
]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found_by_name(dataset, name):
    flip(dataset.path / name)
    with pytest.raises(InputError, match=rf"{name}: corrupt"):
        Dataset(dataset.path).verify()


@pytest.mark.parametrize("name", [*FILES, "tokenizer.json"])
def test_a_missing_or_cut_file_is_found_on_opening(dataset, name):
    path = dataset.path / name
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    with pytest.raises(InputError, match=rf"{name}: truncated or changed: .*`stablelm data prepare`"):
        Dataset(dataset.path)
    if content:
        path.write_bytes(content[:-1])
        with pytest.raises(InputError, match=rf"{name}: truncated or changed"):
            Dataset(dataset.path)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: missing"):
        Dataset(dataset.path)


def test_a_changed_tokenizer_is_refused_on_opening(dataset):
    flip(dataset.tokenizer_path, 5)
    with pytest.raises(InputError, match=r"tokenizer\.json: not the tokenizer that made these token files"):
        Dataset(dataset.path)


def test_an_edited_manifest_is_found(dataset):
    path = dataset.path / "manifest.json"
    path.write_text(path.read_text().replace("CC0-1.0", "CC0-1.1"))
    with pytest.raises(InputError, match=r"manifest\.json: edited or damaged"):
        Dataset(dataset.path).verify()


def test_token_files_exchanged_with_their_sizes_kept(dataset):
    """Sizes alone would not notice: the number of documents differs, the bytes do not."""
    for suffix in ("bin", "idx"):
        (dataset.path / f"web/train.{suffix}").unlink()
    with TokenFileWriter(dataset.path / "web/train", vocab_size=100_000) as writer:
        writer.add([1, 2, 3, 4, 5, 6])
        writer.add([])
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    for name in ("web/train.bin", "web/train.idx"):
        manifest["files"][name]["bytes"] = (dataset.path / name).stat().st_size
    (dataset.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"train\.idx: 2 documents, 6 tokens; the manifest promises 2 and 5"):
        Dataset(dataset.path).train("web")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a prepared dataset: it has no manifest.json"),
        ("", r"manifest\.json, line 1: not valid JSON"),
        ("{\n", r"manifest\.json, line 2: not valid JSON"),
        ("[]", "this is not a manifest"),
        ('{"files": {}}', r"not a prepared dataset's \(format None"),
        ('{"files": {}, "format": "stablelm token files", "version": 2}', "version 2"),
        (
            '{"files": {}, "format": "stablelm token files", "version": 1}',
            r"incomplete \(KeyError\('tokenizer'\)",
        ),
    ],
)
def test_directories_that_are_no_dataset(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Dataset(tmp_path)


def test_a_manifest_that_leads_outside(dataset):
    path = dataset.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../outside"] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="leads outside"):
        Dataset(dataset.path)


@pytest.mark.parametrize("part", ["sources", "tokenizer", "web", "train", "tokens"])
def test_a_manifest_with_a_part_missing(dataset, part):
    path = dataset.path / "manifest.json"
    manifest = json.loads(path.read_text())
    places = {"sources": manifest, "tokenizer": manifest, "web": manifest["files"],
              "train": manifest["sources"]["web"], "tokens": manifest["sources"]["web"]["train"]}  # fmt: skip
    places[part].pop({"web": "web/train.bin"}.get(part, part))
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json: incomplete"):
        Dataset(dataset.path).train("web")


def test_the_fingerprint_is_of_the_content_not_the_place(dataset, tmp_path):
    shutil.copytree(dataset.path, tmp_path / "moved")
    assert Dataset(tmp_path / "moved").fingerprint == dataset.fingerprint
    path = tmp_path / "moved/manifest.json"
    path.write_text(path.read_text().replace("CC0-1.0", "CC0-1.1"))
    assert Dataset(tmp_path / "moved").fingerprint == dataset.fingerprint, (
        "a licence does not change the tokens"
    )


def test_describing_many_empty_files_counts_them(run, tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02d}.txt").touch()
    (tmp_path / "full.txt").write_text("the cat sat")
    said = run(web=[f"{tmp_path}/*.txt"]).describe()
    names = ", ".join(f"{tmp_path}/0{n}.txt" for n in range(3))
    assert f"  12 empty files, the first: {names}" in said and len("\n".join(said)) < 800
    few = run(out="few", web=[tmp_path / "00.txt", tmp_path / "full.txt"]).describe()
    assert f"  empty: {tmp_path}/00.txt" in few
