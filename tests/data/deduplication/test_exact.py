"""Equal documents: all of them found, none else, whatever the shards."""

import json
import re
import unicodedata
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.data.deduplication.components import components, dropped, write_edges
from stablelm.data.deduplication.exact import bucket_duplicates, exact_keys, spill_keys
from stablelm.data.texts import Texts


def keys(*texts, scope=""):
    return [tuple(row) for row in exact_keys(Texts.of(texts), scope).tolist()]


def duplicates(folder, shards, buckets, scopes=None):
    """{number: text} by shard → the pairs found."""
    for name, documents in shards.items():
        numbers = np.array(list(documents), np.uint64)
        found = exact_keys(Texts.of(list(documents.values())), (scopes or {}).get(name, ""))
        spill_keys(folder, name, numbers, found, buckets)
    return [tuple(edge) for b in range(buckets) for edge in bucket_duplicates(folder, b).tolist()]


@pytest.mark.parametrize(
    "text",
    [
        "hello world",
        "Hello,  World"[:5] + " World",
        "\n\nhello\tWORLD  \r\n",
        "ｈｅｌｌｏ world",
        "hel\u00adlo world",
    ],
)
def test_documents_that_are_equal(text):
    assert keys(text) == keys("Hello World")


@pytest.mark.parametrize(
    "text", ["hello, world", "helloworld", "hello world!", "hello w0rld", "", "hello world 1"]
)
def test_documents_that_are_not(text):
    assert keys(text) != keys("hello world")


def test_accents_composed_or_not_are_equal():
    text = "Žluťoučký kůň – Ñandú, 한국어 ガ"
    assert keys(unicodedata.normalize("NFC", text)) == keys(unicodedata.normalize("NFD", text))
    assert keys(text) != keys("Zlutoucky kun – Nandu, 한국어 ガ")


def test_white_space_alone_is_one_document():
    assert len(set(keys("", " ", "\n\n", "\u3000", "\ufeff"))) == 1


def test_a_document_does_not_depend_on_its_neighbours():
    texts = ["a", "", "b" * 200_000, "日本", "a"]
    assert keys(*texts) == [keys(text)[0] for text in texts]
    assert keys(*texts)[0] == keys(*texts)[4] and len(set(keys(*texts))) == 4


def test_scopes_do_not_meet():
    assert len({*keys("a"), *keys("a", scope="web"), *keys("a", scope="books")}) == 3


def test_all_planted_duplicates_are_found(shared, tmp_path):
    raw = shared / "data" / "corpus" / "raw"
    records = [json.loads(line) for line in (raw / "near_duplicates.jsonl").read_bytes().splitlines()]
    pairs = [json.loads(line) for line in (raw / "near_duplicates.pairs.jsonl").read_bytes().splitlines()]
    number = {record["id"]: place for place, record in enumerate(records)}
    planted = {tuple(sorted((number[p["a"]], number[p["b"]]))) for p in pairs if p["kind"] == "exact"}
    texts = {place: record["text"] for place, record in enumerate(records)}
    shards = {f"{k}": {n: text for n, text in texts.items() if n % 3 == k} for k in range(3)}
    found = duplicates(tmp_path, shards, 5)
    assert len(planted) == 50 and set(found) == planted and len(found) == 50


def test_the_lowest_number_stays_across_sources(tmp_path):
    """Precedence is the number: books (0 …) before web (1000 …), whatever the order of the shards."""
    web = {1000: "the same", 1001: "web only", 1002: "The  same"}
    books = {3: "book only", 7: "the same"}
    expected = [(7, 1000), (7, 1002)]
    assert duplicates(tmp_path / "a", {"web": web, "books": books}, 4) == expected
    assert duplicates(tmp_path / "b", {"b": books, "w": web}, 4) == expected
    within = duplicates(tmp_path / "c", {"web": web, "books": books}, 4, {"web": "web", "books": "books"})
    assert within == [(1000, 1002)]


@given(
    st.lists(st.text("aB .\n", max_size=4), max_size=40),
    st.integers(1, 9),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_against_a_dictionary(tmp_path_factory, texts, buckets, shards, random):
    folder = tmp_path_factory.mktemp("exact")
    numbers = sorted(random.sample(range(1000), len(texts)))
    parts = defaultdict(dict)
    for number, text in zip(numbers, texts, strict=True):
        parts[f"s{random.randrange(shards)}"][number] = text
    groups = defaultdict(list)
    for number, text in zip(numbers, texts, strict=True):
        groups[re.sub(r"\s+", " ", text).strip().lower()].append(number)
    expected = {(group[0], other) for group in groups.values() for other in group[1:]}
    if not parts:
        return
    found = duplicates(folder, parts, buckets)
    assert set(found) == expected and len(found) == len(expected)
    write_edges(folder / "edges", np.array(found, np.uint64).reshape(-1, 2))
    gone = dropped(*components([folder / "edges"]))
    assert gone.tolist() == sorted(other for _, other in expected)


def test_a_cut_file_is_named(tmp_path):
    duplicates(tmp_path, {"web-00": {1: "a", 2: "a"}}, 2)
    path = tmp_path / "web-00.exact"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"web-00\.exact: truncated"):
        bucket_duplicates(tmp_path, 0)
