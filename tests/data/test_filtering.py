"""Filters in a recipe: dropped and changed, counted to the byte; decided anew without reading text."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from stablelm.config import InputError
from stablelm.config.filter_set import FilterSet
from stablelm.config.recipe import DataRecipe
from stablelm.config.schema import validate
from stablelm.data import Dataset
from stablelm.data.preparation import prepare
from stablelm.tokenizer import Tokenizer

GOOD = (
    "The river runs past the old mill, and in the evening people from the town come to sit with their "
    "children on a low wall that stands beside it. They have been doing so for as long as anybody can "
    "say. Boats used to bring flour down to the harbour; now there are only swans, which nobody feeds "
    "any more, because of a sign. My grandmother worked at this place when she was young. Every "
    "morning, before it was light, she carried water up four flights of stairs, lit five stoves, and "
    "then went to school with cold hands. "
)
DOCUMENTS = [
    {"id": "good", "text": GOOD},
    {"id": "short", "text": "Too short to be of any use."},
    {"id": "mail", "text": GOOD + "Write to john.smith@somewhere.co.uk and ask about it."},
    {"id": "repeated", "text": "the same of the and that line again\n" * 60},
    {"id": "banned", "text": GOOD + "Here is the word xyzzyx which is on the list."},
]


class Watch:
    """What ran, by stage."""

    def __init__(self):
        self.ran = {}

    def message(self, text):
        pass

    def start(self, stage, tasks, size):
        self.ran[stage] = tasks

    def advance(self, size):
        pass

    def finish(self):
        pass


@pytest.fixture
def make(tmp_path, small_tokenizer):
    """`make(filters, out=…, **keys)` prepares DOCUMENTS and returns the dataset and what ran."""
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    (tmp_path / "words.txt").write_text("xyzzyx\n")

    def prepared(filters, out="out", **keys):
        source = {"name": "web", "paths": [str(tmp_path / "x.jsonl")], "filters": filters}
        values = {
            "out": str(tmp_path / out), "work": str(tmp_path / "work"), "tokenizer": str(small_tokenizer),
            "held_out": 0, "sources": [source], **keys,
        }  # fmt: skip
        watch = Watch()
        return Dataset(prepare(validate(DataRecipe, values, "recipe"), progress=watch)), watch.ran

    return prepared


def kept(dataset):
    train = dataset.train("web")
    return {dataset.document_ids("web", [n])[n]: train.document(n) for n in range(train.num_documents)}


def test_each_group_drops_its_documents_and_every_byte_is_accounted_for(make, tmp_path):
    dataset, _ = make({
        "gopher_quality": True, "gopher_repetition": True, "pii": True,
        "word_blocklist": {"words": [str(tmp_path / "words.txt")]},
    })  # fmt: skip
    about = dataset.info("web")
    assert set(kept(dataset)) == {"good", "mail"}
    assert about["read"] == 5 and about["kept"] == 2 and about["errors"] == {}
    reasons = about["dropped"]
    assert sum(reasons.values()) == 3
    assert reasons == {  # of a very short text one pair of words is a large share, as datatrove counts
        "gopher repetition: duplicate lines": 1, "gopher repetition: top 2-gram": 1, "words: listed word": 1,
    }  # fmt: skip
    (file,) = about["inputs"]
    sizes = {d["id"]: len(json.dumps(d)) + 1 for d in DOCUMENTS}
    assert file["read_bytes"] == sum(sizes.values())
    assert file["kept_bytes"] == sizes["good"] + sizes["mail"]
    assert file["read_bytes"] == file["kept_bytes"] + sum(file["dropped_bytes"].values())
    assert all(place.split(":")[0].endswith("x.jsonl") for p in about["examples"].values() for place in p)


def test_what_is_replaced_is_gone_from_the_tokens_and_counted(make):
    dataset, _ = make({"pii": True})
    tokenizer = Tokenizer.from_file(dataset.tokenizer_path)
    text = tokenizer.decode(kept(dataset)["mail"], skip_special_tokens=True)
    assert "john.smith" not in text and text.startswith(GOOD) and "and ask about it." in text
    about = dataset.info("web")
    changed, raw = about["changed"], sum(len(d["text"].encode()) for d in DOCUMENTS)
    assert changed["documents"] == 1 and changed["before"] == raw
    assert changed["after"] == about["train"]["bytes"] != raw


def test_a_changed_threshold_reads_no_text(make, tmp_path):
    _, first = make({"gopher_quality": {"min_words": 50, "min_word_length": None}})
    assert first["read"] == first["signals"] == first["decide"] == 1
    loose, again = make({"gopher_quality": {"min_words": 2, "min_word_length": None}}, out="loose")
    assert "read" not in again and "signals" not in again and again["decide"] == 1
    assert "short" in kept(loose)
    _, same = make({"gopher_quality": {"min_words": 3, "min_word_length": None}}, out="same")
    assert same["decide"] == 1 and "tokenize" not in same, "a threshold that changes no decision"
    _, listed = make({"gopher_quality": {"stop_words": ["river"]}}, out="words")
    assert listed["signals"] == 1, "what the numbers depend on is measured again"


def test_a_changed_list_is_noticed(make, tmp_path):
    filters = {"word_blocklist": {"words": [str(tmp_path / "words.txt")]}}
    assert "banned" not in kept(make(filters)[0])
    (tmp_path / "words.txt").write_text("mill\n")
    dataset, ran = make(filters, out="other")
    assert ran["signals"] == 1 and set(kept(dataset)) == {"short", "repeated"}


def test_signals_are_a_table_for_anybody(make, tmp_path):
    make({"gopher_quality": True, "language": None, "line_corrections": True})
    (path,) = (tmp_path / "work" / "signals").glob("*/signals.parquet")
    table = pq.read_table(path)
    assert table["id"].to_pylist() == [d["id"] for d in DOCUMENTS]
    words = next(name for name in table.column_names if name.endswith(".words") and "gopher" in name)
    assert np.all(table[words].to_numpy() > 0)


def test_removed_lines_leave_the_document(make):
    dataset, _ = make({"line_corrections": {"max_share": 1}})
    assert dataset.info("web")["train"]["documents"] == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_processes(make, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("stablelm.data.executors.local.SMALL", 0)
    monkeypatch.setattr("stablelm.data.stages.reading.SHARD_BYTES", 500)
    dataset, _ = make({"gopher_quality": True, "pii": True}, out=f"w{workers}", workers=workers)
    dataset.verify()
    other, _ = make({"gopher_quality": True, "pii": True}, out="one", workers=1)
    assert dataset.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"gopher": True}, "unknown key; did you mean 'gopher_"),
        ({"gopher_quality": {"min_word": 3}}, "did you mean 'min_words'"),
        ({"gopher_quality": 5}, "gopher_quality"),
        ({"word_blocklist": {"words": ["nowhere.txt"]}}, "nowhere.txt"),
    ],
)
def test_filters_that_are_none(make, tmp_path, filters, said):
    with pytest.raises(InputError, match=said):
        make(filters)
    assert not (tmp_path / "out").exists()


def test_switches():
    given = FilterSet.model_validate({"code": True, "pii": False, "c4": {"end_mark": False}})
    assert given.code is not None and given.pii is None and given.c4.end_mark is False
    assert given.active() and not FilterSet().active() and FilterSet().heuristics() is None


def test_a_recipe_in_yaml_round_trips(tmp_path):
    text = "filters: {gopher_quality: true, c4: {end_mark: false}}"
    filters = validate(FilterSet, yaml.safe_load(text)["filters"], "x")
    assert FilterSet.model_validate(json.loads(filters.model_dump_json())) == filters
    assert Path(tmp_path).is_dir()
