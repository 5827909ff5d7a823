"""Preparing a directory: whole or absent, split by origin, shuffled once, and nothing lost on the way."""

import json
import unicodedata

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.data import Dataset
from stablelm.storage import DiskFullError, sha256_file
from stablelm.tokenizer import Tokenizer


def pieces(path, files=60, each=4):
    """`files` books of `each` pieces, every text different."""
    numbers = [(i, j) for i in range(files) for j in range(each)]
    records = [{"id": f"book{i}.md#{j}", "text": f"the cat number {i} sat on mat {j}"} for i, j in numbers]
    return write_lines(path, records)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def documents(dataset, name, side="train"):
    """Document id → text, decoded without the separator."""
    file = dataset.train(name) if side == "train" else dataset.held_out(name)
    if file is None:
        return {}
    tokenizer = Tokenizer.from_file(dataset.tokenizer_path)
    ids = dataset.document_ids(name, range(file.num_documents), side)
    end = dataset.manifest["append_eod"]
    assert not end or all(file.document(i)[-1] == tokenizer.eos_id for i in range(file.num_documents))
    return {
        ids[i]: tokenizer.decode(file.document(i)[: -1 if end else None]) for i in range(file.num_documents)
    }


def counts(about):
    return {unit: about["train"][unit] + about["held_out"][unit] for unit in ("documents", "tokens", "bytes")}


# --- the hard files ----------------------------------------------------------------------------------------


def test_all_hard_files_in_one_recipe(shared, run):
    raw = shared / "data/corpus/raw"
    names = ["docs.jsonl.gz", "tree", "docs.parquet", "truncated.jsonl.zst", "broken_line.jsonl",
             "missing_text.jsonl",
             "invalid_utf8.jsonl", "empty.jsonl", "long_line.jsonl", "special_token.jsonl"]  # fmt: skip
    kept = [200, 3, 50, 110, 19, 9, 9, 0, 1, 7]
    errors = [
        {},
        {},
        {},
        {"truncated": 1},
        {"broken JSON": 1},
        {"missing key": 1},
        {"invalid UTF-8": 1},
        {},
        {},
        {},
    ]
    sources = {name: [raw / name] for name in names}
    dataset = run(recipe={"on_error": "skip", "held_out": 0.05, "max_error_rate": 1}, **sources)
    assert dataset.sources == tuple(names)
    for name, count, error in zip(names, kept, errors, strict=True):
        about = dataset.info(name)
        assert (about["kept"], about["errors"], about["dropped"]) == (count, error, {})
        assert about["read"] == count + sum(error.values())
        assert about["train"]["documents"] + about["held_out"]["documents"] == count
        for side in ("train", "held_out"):
            file = dataset.train(name) if side == "train" else dataset.held_out(name)
            found = (file.num_documents, file.num_tokens) if file else (0, 0)
            assert found == (about[side]["documents"], about[side]["tokens"])
    assert dataset.info("empty.jsonl")["empty_files"] == [str(raw / "empty.jsonl")]
    assert counts(dataset.info("long_line.jsonl"))["bytes"] == 4_999_997
    [entry] = dataset.info("truncated.jsonl.zst")["inputs"]
    assert (entry["bytes"], entry["sha256"]) == (172_563, sha256_file(raw / "truncated.jsonl.zst"))
    dataset.verify()


@pytest.mark.parametrize(
    "name", ["truncated.jsonl.zst", "broken_line.jsonl", "missing_text.jsonl", "invalid_utf8.jsonl"]
)
def test_by_default_the_first_fault_stops_and_leaves_nothing(shared, run, tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}, line \d+: "):
        run(good=[shared / "data/corpus/raw/docs.jsonl.gz"], bad=[shared / "data/corpus/raw" / name])
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"], "what was read before is kept"


def test_a_literal_separator_stays_text(shared, run):
    """The original tokenizer: no id 0 or 1 from a text, one separator a document, the same text back."""
    path = shared / "data/corpus/raw/special_token.jsonl"
    dataset = run(special=[path], tokenizer=shared / "data/neox-tokenizer", recipe={"held_out": 0})
    texts = {r["id"]: r["text"] for r in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    assert sum(text.count("<|endoftext|>") for text in texts.values()) == 7
    assert documents(dataset, "special") == {
        name: unicodedata.normalize("NFC", text) for name, text in texts.items()
    }
    file = dataset.train("special")
    stream = file.tokens(0, file.num_tokens)
    assert np.flatnonzero(stream == 0).tolist() == (np.cumsum(file.sizes) - 1).tolist()
    assert not (stream == 1).any()
    assert dataset.manifest["tokenizer"]["size"] == 50_277
    assert (dataset.manifest["dtype"], file.dtype.name) == ("uint16", "uint16")


# --- contents ----------------------------------------------------------------------------------------------


def test_every_document_arrives_once_with_its_text(run, tmp_path):
    path = pieces(tmp_path / "x.jsonl")
    dataset = run(web=[path], recipe={"held_out": 0.2})
    train, held_out = documents(dataset, "web"), documents(dataset, "web", "held_out")
    expected = {r["id"]: r["text"] for r in map(json.loads, path.read_text().splitlines())}
    assert {**train, **held_out} == expected
    assert len(train) + len(held_out) == len(expected) == 240
    about = dataset.info("web")
    assert counts(about)["bytes"] == sum(len(text) for text in expected.values())
    assert about["train"]["bytes"] == sum(map(len, train.values()))
    assert about["held_out"]["tokens"] == dataset.held_out("web").num_tokens


def test_without_separators(run, tmp_path):
    path = pieces(tmp_path / "x.jsonl", 5)
    dataset = run(web=[path], recipe={"held_out": 0, "append_eod": False})
    stream = dataset.train("web").tokens(0, dataset.train("web").num_tokens)
    assert not (stream == 0).any()
    assert len(documents(dataset, "web")) == 20
    assert dataset.manifest["append_eod"] is False


def test_the_manifest_says_where_everything_came_from(run, tmp_path, small_tokenizer):
    path = pieces(tmp_path / "x.jsonl", 3)
    web = {"paths": [str(path)], "licence": "CC0-1.0", "url": "https://example.org"}
    manifest = run(web=web, recipe={"seed": 7, "held_out": 0.25}).manifest
    about = manifest["sources"]["web"]
    assert (about["licence"], about["url"], about["paths"]) == ("CC0-1.0", "https://example.org", [str(path)])
    assert about["inputs"][0]["sha256"] == sha256_file(path)
    assert manifest["tokenizer"] == {
        "sha256": sha256_file(small_tokenizer / "tokenizer.json"), "size": 290, "eod_id": 0,
    }  # fmt: skip
    assert (manifest["seed"], manifest["held_out"], manifest["append_eod"]) == (7, 0.25, True)
    assert len(manifest["recipe_sha256"]) == 64
    assert {"web/train.bin", "web/train.idx", "tokenizer.json"} <= set(manifest["files"])


def test_a_text_that_gives_no_token_is_counted(run, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "x.jsonl", [{"text": "the cat"}, {"text": "gone"}, {"text": "the mat"}])
    encode = Tokenizer.encode_documents

    def encode_but(self, texts):
        return [[] if t == "gone" else ids for t, ids in zip(texts, encode(self, texts), strict=True)]

    monkeypatch.setattr(Tokenizer, "encode_documents", encode_but)
    about = run(web=[path], recipe={"held_out": 0}).info("web")
    assert (about["read"], about["kept"], about["dropped"]) == (3, 2, {"no tokens": 1})
    assert about["examples"] == {"no tokens": [f"{path}:2"]}
    assert about["train"]["documents"] == 2


# --- the split ---------------------------------------------------------------------------------------------


def test_pieces_of_a_file_share_a_side(run, tmp_path):
    dataset = run(
        a=[pieces(tmp_path / "a.jsonl")], b=[pieces(tmp_path / "b.jsonl", 40, 2)], recipe={"held_out": 0.3}
    )
    sides = {
        name: {s: {i.split("#")[0] for i in documents(dataset, name, s)} for s in ("train", "held_out")}
        for name in "ab"
    }
    assert sides["a"]["train"].isdisjoint(sides["a"]["held_out"])
    assert len(sides["a"]["train"]) + len(sides["a"]["held_out"]) == 60
    assert 8 <= len(sides["a"]["held_out"]) <= 28
    assert sides["a"]["train"].isdisjoint(sides["b"]["held_out"]), "also across sources"
    assert sides["b"]["train"].isdisjoint(sides["a"]["held_out"])


def test_the_split_does_not_depend_on_the_order_or_the_company(run, tmp_path):
    path = pieces(tmp_path / "x.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    reverse = tmp_path / "reverse.jsonl"
    reverse.write_text("".join(reversed(lines)))
    half = tmp_path / "half.jsonl"
    half.write_text("".join(lines[::2]))
    recipe = {"held_out": 0.2}
    whole = set(documents(run(out="1", web=[path], recipe=recipe), "web", "held_out"))
    assert set(documents(run(out="2", web=[reverse], recipe=recipe), "web", "held_out")) == whole
    assert set(documents(run(out="3", other=[half], recipe=recipe), "other", "held_out")) == {
        name for name in whole if f'"{name}"' in half.read_text()
    }
    more = set(documents(run(out="4", web=[path], recipe={"held_out": 0.4}), "web", "held_out"))
    assert whole < more, "a larger share only adds"
    assert set(documents(run(out="5", web=[path], recipe={**recipe, "seed": 5}), "web", "held_out")) != whole


@pytest.mark.parametrize("share", [0, 0.999999])
def test_nothing_or_everything_held_out(run, tmp_path, share):
    dataset = run(web=[pieces(tmp_path / "x.jsonl", 5)], recipe={"held_out": share})
    assert (dataset.held_out("web") is None) == (share == 0)
    assert dataset.train("web").num_documents == (20 if share == 0 else 0)
    assert (dataset.path / "web/held_out.bin").exists() == (share != 0)
    dataset.verify()


# --- the shuffle -------------------------------------------------------------------------------------------


def test_the_result_does_not_depend_on_the_order_of_reading(run, tmp_path):
    lines = pieces(tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "parts").mkdir()
    for i in range(7):
        (tmp_path / f"parts/{i}.jsonl").write_text("".join(lines[6 - i :: 7]))
    (tmp_path / "whole.jsonl").write_text("".join(lines))
    one = run(out="one", web=[tmp_path / "whole.jsonl"], recipe={"held_out": 0.1})
    two = run(out="two", web=[tmp_path / "parts"], recipe={"held_out": 0.1})
    for name in ("train.bin", "train.idx", "train.ids", "held_out.bin", "held_out.idx", "held_out.ids"):
        assert (one.path / "web" / name).read_bytes() == (two.path / "web" / name).read_bytes(), name
    assert one.fingerprint == two.fingerprint


def test_doubled_ids_do_not_let_the_order_of_reading_in(run, tmp_path):
    records = [{"id": f"same{i % 3}", "text": f"the cat {i}"} for i in range(60)]
    results = []
    for number, order in enumerate((records, records[::-1])):
        path = write_lines(tmp_path / f"{number}.jsonl", order)
        results.append(run(out=f"out{number}", web=[path], recipe={"held_out": 0}).fingerprint)
    assert results[0] == results[1]


def test_the_result_does_not_depend_on_batches_and_shards(run, tmp_path, monkeypatch):
    path = pieces(tmp_path / "x.jsonl")
    base = run(out="base", web=[path])
    settings = {
        "tokenizing.BATCH_DOCUMENTS": 7, "tokenizing.BATCH_BYTES": 50, "reading.SHARD_BYTES": 100,
        "reading.PIECE_BYTES": 500,
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setattr(f"stablelm.data.stages.{name}", value)
        other = run(out=name, web=[path])
        assert other.fingerprint == base.fingerprint
        assert (other.path / "web/train.ids").read_bytes() == (base.path / "web/train.ids").read_bytes()
        names = {p.name for p in (other.path / "web").iterdir()}
        assert all(n.startswith(("train.", "held_out.")) for n in names), "no bucket is left"


def test_documents_are_shuffled_and_by_the_seed(run, tmp_path):
    path = pieces(tmp_path / "x.jsonl", 100, 3)
    orders = [
        list(documents(run(out=str(s), web=[path], recipe={"held_out": 0, "seed": s}), "web")) for s in (1, 2)
    ]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    place = {name: i for i, name in enumerate(orders[0])}
    read_order = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    places = [place[name] for name in read_order]
    assert abs(np.corrcoef(places, np.arange(300))[0, 1]) < 5 / 300**0.5
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 5 / 300**0.5


def test_the_same_recipe_gives_the_same_bytes(run, tmp_path):
    path = pieces(tmp_path / "x.jsonl")
    one, two = run(out="one", web=[path]), run(out="two", web=[path])
    files = [p.relative_to(one.path) for p in one.path.rglob("*") if p.is_file()]
    assert len(files) >= 8
    for name in files:
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes(), name


# --- whole or absent ---------------------------------------------------------------------------------------


def test_an_existing_directory_is_refused_before_anything_is_read(run, tmp_path):
    path = pieces(tmp_path / "x.jsonl", 2)
    before = run(web=[path]).fingerprint
    path.write_text("broken")
    with pytest.raises(
        InputError, match=r"out: already exists, and .*changed since:\n  web: .*x\.jsonl changed: "
    ):
        run(web=[path])
    assert Dataset(tmp_path / "out").fingerprint == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(InputError, match=r"other: already exists\. Choose another name"):
        run(out="other", web=[path])


def test_what_can_be_refused_early_leaves_nothing(run, tmp_path):
    path = pieces(tmp_path / "x.jsonl", 2)
    with pytest.raises(InputError, match="no such file or folder"):
        run(web=[path], gone=[tmp_path / "gone"])
    with pytest.raises(InputError, match=r"tokenizer\.json|no such file"):
        run(web=[path], tokenizer=tmp_path / "no-tokenizer")
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_full_disk_is_foreseen(run, tmp_path, monkeypatch):
    path = pieces(tmp_path / "x.jsonl", 50)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(
        DiskFullError, match=r"preparing this recipe needs [\d,]+ bytes, the disk has 100 free"
    ):
        run(web=[path])
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_disk_that_fills_up_on_the_way(run, tmp_path, monkeypatch):
    path = pieces(tmp_path / "x.jsonl", 50)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stablelm.data.token_files.TokenFileWriter.add", full)
    with pytest.raises(DiskFullError, match="the disk is full; nothing incomplete was kept"):
        run(web=[path])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.work", "x.jsonl"]


def test_progress_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr("stablelm.data.progress._SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setattr("stablelm.data.stages.reading.PIECE_BYTES", 5000)
    lines = []
    run(web=[pieces(tmp_path / "x.jsonl")], progress=lines.append)
    told = [line.split(",")[0] for line in lines if line.startswith("read: ")]
    tasks = len(told) - 1  # and the sum
    assert tasks > 2 and told[:-1] == [f"read: {n} of {tasks} tasks" for n in range(1, tasks + 1)]
    assert [line for line in lines if line.startswith("assemble: 2 tasks in ") and line.endswith("MB/s")]
    assert lines[-1].startswith(f"{tmp_path}/out.work: ")


def test_a_broken_progress_report_does_not_leave_half_a_directory(run, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(web=[pieces(tmp_path / "x.jsonl", 3)], progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.work", "x.jsonl"]


def test_relative_paths_start_where_the_command_runs(run, tmp_path, monkeypatch):
    pieces(tmp_path / "x.jsonl", 2)
    monkeypatch.chdir(tmp_path)
    dataset = run(web=["x.jsonl"], recipe={"out": "here"})
    assert dataset.info("web")["inputs"][0]["path"] == "x.jsonl"
    assert (tmp_path / "here/manifest.json").is_file()
