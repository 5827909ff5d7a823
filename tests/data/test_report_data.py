"""What the report shows: sums that do not depend on shards, real examples, bins with known edges."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config.recipe import DataRecipe
from stablelm.data.preparation import prepare
from stablelm.data.report_data import add_histograms, histogram, lower_edge


def place(kind, value):
    """The one bin that a value falls into."""
    dtype = np.int64 if kind == "count" else np.float32
    [found] = histogram(np.array([value], dtype))["counts"]
    return int(found)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("count", 0, 0), ("count", 1, 1), ("count", 2, 5), ("count", 3, 7), ("count", 1024, 41),
        ("ratio", 0, 0), ("ratio", 0.019, 0), ("ratio", 0.5, 25), ("ratio", 1, 50), ("ratio", 2, 55),
    ],
)  # fmt: skip
def test_bins(kind, value, expected):
    assert place(kind, value) == expected


@given(st.integers(0, 1 << 40))
def test_a_count_lies_between_the_edges_of_its_bin(value):
    bin_ = place("count", value)
    assert lower_edge("count", bin_) <= value * (1 + 1e-12)
    assert value < lower_edge("count", bin_ + 1)


@given(st.floats(0, 1e6, width=32))
def test_a_ratio_lies_between_the_edges_of_its_bin(value):
    bin_ = place("ratio", value)
    assert lower_edge("ratio", bin_) <= value * (1 + 1e-12)
    assert value <= lower_edge("ratio", bin_ + 1) or (bin_ == 50 and value == 1)


def test_sums_of_parts_are_the_whole():
    numbers = np.random.default_rng(1).integers(0, 1000, 500)
    columns = {"n": numbers, "r": (numbers / 700).astype(np.float32), "t": numbers > 400,
               "v": np.array([f"l{n % 3}" for n in numbers], object)}  # fmt: skip
    whole = add_histograms([{name: histogram(c) for name, c in columns.items()}])
    parts = [
        {name: histogram(c[s]) for name, c in columns.items()} for s in (slice(300, None), slice(0, 300))
    ]
    assert add_histograms(parts) == whole
    assert all(sum(h["counts"].values()) == 500 for h in whole.values())
    assert histogram(np.array([np.nan, -1, 0.5]))["counts"] == {"25": 1}, "what was not measured is not 0"
    assert histogram(np.array([-1, 0, 3, 900])) == {
        "kind": "count", "counts": {"0": 1, "7": 1, "40": 1}, "sum": 903,
    }  # fmt: skip


def test_the_report_of_a_preparation(tmp_path, small_tokenizer, monkeypatch):
    records = [
        {"id": f"d{i}", "text": f"the cat {i} " * (3 + 40 * (i % 2)), "url": "https://a.org"}
        for i in range(40)
    ]
    records += [{"id": "mail", "text": "the cat sat on the mat. write to a.cat@mats.org " * 20}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "\n{broken\n")
    off = {"min_word_length": 0, "min_stop_words": 0, "min_alphabetic_words": 0}
    rules = {"gopher_quality": {"min_words": 50, **off}, "pii": True}
    made = []
    for size in (1 << 30, 500):
        monkeypatch.setattr("stablelm.data.stages.reading.SHARD_BYTES", size)
        out = tmp_path / f"out{size}"
        prepare(DataRecipe.model_validate({
            "out": str(out), "tokenizer": str(small_tokenizer), "held_out": 0, "workers": 1,
            "sources": [{"name": "web", "paths": [str(path)], "filters": rules}], "on_error": "skip",
            "max_error_rate": 1,
        }))  # fmt: skip
        made.append(json.loads((out / "report.json").read_text()))
    assert made[0] == made[1], "shards make no difference"
    about = made[0]["sources"]["web"]
    reasons = {each["reason"]: each for each in about["reasons"]}
    assert [each["fate"] for each in about["reasons"]] == ["kept", "dropped", "dropped", "errors"]
    assert sum(each["documents"] for each in about["reasons"]) == about["read"] == 43
    assert sum(each["bytes"] for each in about["reasons"]) == about["read_bytes"] == path.stat().st_size
    short = reasons["gopher quality: too few words"]
    assert short["documents"] == 20 and len(short["examples"]) == 3
    texts = {record["id"]: record["text"] for record in records}
    for each in (short, reasons[""]):
        for one in each["examples"]:
            assert texts[one["id"]].startswith(one["text"]) and len(one["text"]) <= 1000
            assert one["bytes"] == len(texts[one["id"]])
    assert reasons["broken JSON"]["places"] == [f"{path}:43"]
    words = about["histograms"]["gopher.words"]
    assert sum(words["counts"].values()) == 41
