"""Deduplication and decontamination in a recipe: the planted pairs, precedence, scope, cuts, and one answer
for any number of processes and shards."""

import hashlib
import json
import shutil

import pytest

from stablelm.config import InputError
from stablelm.config.recipe import DataRecipe
from stablelm.config.schema import validate
from stablelm.data import Dataset
from stablelm.data.preparation import prepare
from stablelm.tokenizer import Tokenizer


@pytest.fixture
def make(tmp_path, small_tokenizer):
    """`make({source: [paths]}, …keys)` prepares and opens."""

    def prepared(sources, out="out", **keys):
        values = {
            "out": str(tmp_path / out), "work": str(tmp_path / "work"), "tokenizer": str(small_tokenizer),
            "held_out": 0, "workers": 1, **keys,
            "sources": [{"name": name, "paths": list(map(str, paths))} for name, paths in sources.items()],
        }  # fmt: skip
        return Dataset(prepare(validate(DataRecipe, values, "recipe")))

    return prepared


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("stablelm.data.stages.reading.SHARD_BYTES", 200_000)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(dataset, name):
    """Id → text of the training documents."""
    file = dataset.train(name)
    tokenizer = Tokenizer.from_file(dataset.tokenizer_path)
    ids = dataset.document_ids(name, range(file.num_documents))
    return {ids[n]: tokenizer.decode(file.document(n)[:-1]) for n in range(file.num_documents)}


def bytes_of(dataset):
    return {
        p.relative_to(dataset.path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(dataset.path.rglob("*")) if p.is_file()
    }  # fmt: skip


def clusters(dataset, step):
    lines = (dataset.path / f"clusters-{step}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- documents ---------------------------------------------------------------------------------------------

NEAR = {"near": {"threshold": 0.6}}


def test_the_planted_pairs(make, shared, small_shards):
    raw = shared / "data/corpus/raw"
    truth = [json.loads(line) for line in (raw / "near_duplicates.pairs.jsonl").read_text().splitlines()]
    dataset = make({"web": [raw / "near_duplicates.jsonl"]}, deduplication=NEAR)
    about = dataset.info("web")
    assert about["read"] == 350
    assert about["dropped"]["exact duplicate"] == 50
    assert 95 <= about["dropped"]["near duplicate"] <= 102
    assert about["kept"] == 350 - sum(about["dropped"].values())
    assert about["read_bytes"] == about["kept_bytes"] + sum(about["dropped_bytes"].values())
    exact = {frozenset((pair["a"], pair["b"])) for pair in truth if pair["kind"] == "exact"}
    found = {}
    for line in clusters(dataset, "exact"):
        found.setdefault(line["cluster"], []).append(line)
    assert {frozenset(line["id"] for line in group) for group in found.values()} == exact
    assert all([line["kept"] for line in group] == [True, False] for group in found.values())
    kept = {frozenset((p["a"], p["b"])) & set(dataset.document_ids("web", range(about["kept"])).values())
            for p in truth}  # fmt: skip
    assert all(kept), "of every pair at least one stays"
    assert dataset.manifest["clusters"]["clusters-exact"] == {"clusters": 50, "documents": 100, "dropped": 50}


def test_processes_and_shards_make_no_difference(make, shared, tmp_path, monkeypatch, small_shards):
    raw = shared / "data/corpus/raw"
    sources = {"web": [raw / "near_duplicates.jsonl"], "docs": [raw / "docs.jsonl.gz"]}
    rules = {"deduplication": {**NEAR, "lines": {"max_documents": 2}}}
    one = bytes_of(make(sources, **rules))
    monkeypatch.setattr("stablelm.data.stages.reading.SHARD_BYTES", 1 << 30)
    shutil.rmtree(tmp_path / "work")
    two = bytes_of(make(sources, out="two", **rules))
    assert {k: v for k, v in one.items() if k != "manifest.json"} == {
        k: v for k, v in two.items() if k != "manifest.json"
    }
    monkeypatch.setattr("stablelm.data.stages.reading.SHARD_BYTES", 200_000)
    monkeypatch.setattr("stablelm.data.executors.local.SMALL", 0)
    monkeypatch.setattr("stablelm.data.deduplication.spill.MOST_BUCKETS", 4)
    monkeypatch.setattr("stablelm.data.stages.deduplicating.bucket_count", lambda *_: 4)
    shutil.rmtree(tmp_path / "work")
    assert {k: v for k, v in bytes_of(make(sources, out="three", workers=2, **rules)).items()
            if k != "manifest.json"} == {k: v for k, v in one.items() if k != "manifest.json"}  # fmt: skip


def copies(tmp_path):
    text = "the cat sat on the mat with a hat and that was that for the cat on the mat "
    one = write(tmp_path / "one.jsonl", [{"id": "a", "text": text}, {"id": "b", "text": "one " + text[::-1]}])
    two = write(tmp_path / "two.jsonl", [{"id": "c", "text": text.upper()}, {"id": "d", "text": "the hat"}])
    return {"one": [one], "two": [two]}


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({}, {"one": {"a", "b"}, "two": {"d"}}),
        ({"precedence": ["two"]}, {"one": {"b"}, "two": {"c", "d"}}),
        ({"scope": "within"}, {"one": {"a", "b"}, "two": {"c", "d"}}),
        ({"exact": None}, {"one": {"a", "b"}, "two": {"d"}}),
        ({"exact": None, "near": None}, {"one": {"a", "b"}, "two": {"c", "d"}}),
    ],
)
def test_precedence_and_scope(make, tmp_path, rules, kept):
    dataset = make(copies(tmp_path), deduplication=rules)
    assert {name: set(texts(dataset, name)) for name in ("one", "two")} == kept


def test_a_change_of_the_threshold_reads_and_signs_nothing_that_it_does_not_concern(make, tmp_path, shared):
    raw = shared / "data/corpus/raw"
    sources = {"web": [raw / "near_duplicates.jsonl"]}
    make(sources, deduplication={"near": None})
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("done.json")}
    make(sources, out="two", deduplication={"near": {"threshold": 0.6}})
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("done.json")}
    same = {p.parent.parent.name for p in before if after.get(p) == before[p]}
    assert {"plan", "read", "exact-spill", "exact-find", "clusters-exact", "exact"} <= same


def test_a_source_without_documents_and_a_filter_before(make, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    sources = {**copies(tmp_path), "none": [tmp_path / "empty.jsonl"]}
    dataset = make(sources, deduplication={"precedence": ["none", "two"]})
    assert dataset.info("none")["read"] == 0
    assert dataset.info("one")["dropped"] == {"exact duplicate": 1}
    everything_empty = make({"none": [tmp_path / "empty.jsonl"]}, out="empty", deduplication={})
    assert everything_empty.info("none")["kept"] == 0


# --- lines -------------------------------------------------------------------------------------------------


def test_repeated_lines_are_cut_and_counted(make, tmp_path):
    menu = "home about contact the mat and the hat, all of that\n"
    records = [
        {"id": str(i), "text": f"{menu}the cat number {i} sat on the mat number {i * i}\n"} for i in range(9)
    ]
    records.append({"id": "menu", "text": menu * 2})
    rules = {"exact": None, "near": None, "lines": {"max_documents": 3}}
    dataset = make({"web": [write(tmp_path / "x.jsonl", records)]}, deduplication=rules)
    about = dataset.info("web")
    assert about["dropped"] == {"repeated lines: too little left": 1}
    found = texts(dataset, "web")
    assert found["0"] == records[0]["text"], "the first keeps it"
    assert all(found[str(i)] == records[i]["text"].removeprefix(menu) for i in range(1, 9))
    sizes = sum(len(record["text"]) for record in records[:-1])
    assert about["changed"] == {"documents": 8, "before": sizes, "after": sizes - 8 * len(menu)}


# --- evaluation sets ---------------------------------------------------------------------------------------

ITEM = "which of the two cats that sat on the mat had a hat and who was it that saw that"


def leaky(tmp_path):
    filler = "a cat and a hat and some mats that sit there with nobody about to see any of them at all "
    return write(tmp_path / "x.jsonl", [
        {"id": "clean", "text": filler},
        {"id": "leak", "text": f"{filler * 6}{ITEM.upper()}! {filler * 6}"},
    ])  # fmt: skip


@pytest.mark.parametrize("action", ["drop", "cut", "report"])
def test_leaks_are_found_by_set(make, tmp_path, action):
    test = write(tmp_path / "test.jsonl", [{"question": ITEM}, {"question": "too short"}])
    rules = {"sets": {"cats": {"path": str(test)}}, "action": action}
    dataset = make({"web": [leaky(tmp_path)]}, decontamination=rules)
    report = json.loads((dataset.path / "decontamination.json").read_text())
    assert (report["documents"], report["action"]) == (1, action)
    cats = report["sets"]["cats"]
    assert (cats["documents"], cats["items_hit"], cats["too_short"]) == (1, [1], 1)
    assert cats["examples"][0]["id"] == "leak"
    about, found = dataset.info("web"), texts(dataset, "web")
    assert about["dropped"] == ({"decontamination: cats": 1} if action == "drop" else {})
    assert set(found) == ({"clean"} if action == "drop" else {"clean", "leak"})
    assert ("TWO CATS" in found.get("leak", "")) == (action == "report")
    assert about["changed"]["documents"] == (action == "cut")


def test_a_changed_evaluation_file_is_noticed(make, tmp_path):
    test = write(tmp_path / "test.jsonl", [{"question": ITEM}])
    rules = {"sets": {"cats": {"path": str(test)}}}
    make({"web": [leaky(tmp_path)]}, decontamination=rules)
    make({"web": [leaky(tmp_path)]}, decontamination=rules)
    write(test, [{"question": ITEM + " cat"}])
    with pytest.raises(InputError, match=r"changed since:\n  decontamination\.sets\.cats: its files changed"):
        make({"web": [tmp_path / "x.jsonl"]}, decontamination=rules)
    test.unlink()
    with pytest.raises(InputError, match=r"decontamination\.sets\.cats: .*test\.jsonl: cannot be read"):
        make({"web": [tmp_path / "x.jsonl"]}, out="other", decontamination=rules)


def test_the_nine_sets_of_the_model_card(make, shared, tmp_path):
    folder = shared / "data/eval"
    sets = {path.stem: {"path": str(path)} for path in sorted(folder.glob("*.jsonl*"))}
    assert len(sets) >= 9
    first = json.loads((folder / "lambada_openai.jsonl").read_text(encoding="utf-8").splitlines()[7])
    leak = write(tmp_path / "y.jsonl", [{"id": "l", "text": f"From a book: {first['text']} And so on."}])
    dataset = make({"web": [leaky(tmp_path), leak]}, decontamination={"sets": sets})
    assert dataset.info("web")["dropped"] == {"decontamination: lambada_openai": 1}
