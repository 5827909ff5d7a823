"""The recipe of StableLM-3B-4E1T: the card's five names, each source's keys on records of its schema."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stablelm.config.recipe import SourceConfig, load_recipe
from stablelm.config.schema import validate

CARD = ["tiiuae/falcon-refinedweb", "togethercomputer/RedPajama-Data-1T", "CarperAI/pilev2-dev",
        "bigcode/starcoderdata", "allenai/peS2o"]  # fmt: skip


@pytest.fixture
def values(root):
    return yaml.safe_load((root / "configs/data/stablelm-3b-4e1t.yml").read_text("utf-8"))


@pytest.fixture
def readers(values):
    """name → the keys that say how its records are read."""
    found = {}
    for source in values["sources"]:
        keys = {key: source[key] for key in source if key in SourceConfig.model_fields}
        validate(SourceConfig, keys, "stablelm-3b-4e1t.yml")
        known = SourceConfig.model_fields.keys() - {"name", "paths", "licence", "url", "filters", "epochs"}
        found[source["name"]] = {key: keys[key] for key in keys.keys() & known}
    return found


def seen(result):
    return [(d.text, d.id, d.url, d.label) for d in result[0]]


def test_the_card_s_five_data_sets_four_times_each(root, values):
    hub = "https://huggingface.co/datasets/"
    assert [source["url"] for source in values["sources"]] == [hub + name for name in CARD]
    assert [source["epochs"] for source in values["sources"]] == [4] * 5
    assert set(values["deduplication"]["precedence"]) == {source["name"] for source in values["sources"]}
    assert "the weights" in (root / "configs/data/stablelm-3b-4e1t.yml").read_text("utf-8").split("out:")[0]


def test_refinedweb(read, readers, tmp_path):
    table = {"content": ["page"], "url": ["http://a"], "timestamp": [pa.scalar(0, pa.timestamp("s"))],
             "dump": ["CC-MAIN-2013-20"], "segment": ["1"],
             "image_urls": [[["http://i", "alt"]]]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "train-00000-of-05534.parquet")
    assert seen(read(tmp_path, **readers["refinedweb"])) == [
        ("page", "train-00000-of-05534.parquet:1", "http://a", "")
    ]


def test_redpajama(read, json_lines, readers, tmp_path):
    for folder in ("arxiv", "book", "common_crawl/2023-06"):
        (tmp_path / folder).mkdir(parents=True)
    json_lines(tmp_path / "arxiv/a.jsonl", {"text": "paper", "meta": {"url": "http://b", "arxiv_id": "1"}})
    json_lines(
        tmp_path / "book/book.jsonl", {"text": "b3", "meta": {"title": "t"}}, {"text": "pg", "meta": {}}
    )
    json_lines(
        tmp_path / "common_crawl/2023-06/en_head_0000.json.gz.dedup.classifier.jsonl",
        {"text": "cc", "pred_label": "__label__wiki", "source": "cc/2023-06/en_head_0000.json.gz/line1"},
    )
    (tmp_path / "urls.txt").write_text("http://c")
    result = read(tmp_path, **readers["redpajama"])
    assert [(text, url, label) for text, _, url, label in seen(result)] == [
        ("paper", "http://b", "arxiv"),
        ("cc", "", "common_crawl"),
    ]
    assert result[1]["dropped"] == {"excluded: book": 2}
    assert result[1]["ignored"] == {".txt": 1}


def test_redpajama_as_its_script_writes_it(read, json_lines, readers, tmp_path):
    records = [
        {"text": "c4", "meta": json.dumps({"url": "http://c"}), "red_pajama_subset": "c4"},
        {"text": "book", "meta": "{'title': 'x'}", "red_pajama_subset": "book"},
        {"text": "b3", "meta": {"red_pajama_subset": "Books3"}},
    ]
    result = read(json_lines(tmp_path / "x.jsonl", *records), **readers["redpajama"])
    assert [(text, url, label) for text, _, url, label in seen(result)] == [("c4", "http://c", "c4")]
    assert result[1]["dropped"] == {"excluded: book": 1, "excluded: Books3": 1}


def test_pile_v2(read, readers, tmp_path):
    (tmp_path / "pubmed").mkdir()
    meta = ["{'source': 'PubMed', 'pmid': 1}", "{'source': 'Books3'}", "broken {"]
    table = pa.table({"text": ["abstract", "planted", "other"], "meta": meta})
    pq.write_table(table, tmp_path / "pubmed/PubMed_0.parquet")
    result = read(tmp_path, **readers["pile"])
    assert [(text, label) for text, _, _, label in seen(result)] == [
        ("abstract", "PubMed"),
        ("other", "pubmed"),
    ]
    assert result[1]["dropped"] == {"excluded: Books3": 1}


def test_the_pile(read, json_lines, readers, tmp_path):
    records = [
        {"text": name, "meta": {"pile_set_name": name}} for name in ("Pile-CC", "Books3", "BookCorpus2")
    ]
    result = read(json_lines(tmp_path / "00.jsonl", *records), **{**readers["pile"], "format": "jsonl"})
    assert [label for _, _, _, label in seen(result)] == ["Pile-CC", "BookCorpus2"]
    assert result[1]["dropped"] == {"excluded: Books3": 1}


def test_starcoder(read, readers, tmp_path):
    (tmp_path / "python").mkdir()
    table = {"max_stars_repo_path": ["a.py"], "max_stars_repo_name": ["o/r"], "max_stars_count": [3],
             "id": ["17"], "content": ["import os\r\n"]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "python/train-00000-of-00059.parquet")
    assert seen(read(tmp_path, **readers["starcoder"])) == [("import os\r\n", "17", "", "python")]


def test_pes2o(read, json_lines, readers, tmp_path):
    record = {
        "added": "2022",
        "created": "1994",
        "id": "9500",
        "source": "s2orc/train",
        "text": "p",
        "version": "v3",
    }
    path = json_lines(tmp_path / "train-00000-of-00020.json", record)
    assert seen(read(path, **readers["pes2o"])) == [("p", "9500", "", "s2orc/train")]


def test_it_is_a_recipe(root):
    recipe = load_recipe(root / "configs/data/stablelm-3b-4e1t.yml")
    assert len(recipe.sources) == 5 and all(source.epochs == 4 for source in recipe.sources)
    assert recipe.deduplication.near is not None and len(recipe.decontamination.sets) == 9
    assert set(recipe.deduplication.precedence) == {source.name for source in recipe.sources}
