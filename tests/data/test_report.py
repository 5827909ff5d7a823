"""The page about a prepared directory: every number from the account, hostile texts inert, gaps said to be
gaps."""

import json
import re
import shutil

import pytest

from stablelm.config import InputError
from stablelm.config.recipe import DataRecipe
from stablelm.data import Dataset
from stablelm.data.preparation import prepare
from stablelm.data.report import dataset_page, share
from tests.reporting.test_page import EVIL, Reader

MENU = "home, about us, contact, the mat and the hat\n"
ITEM = "which of the two cats that sat on the mat had a hat and who was it that saw that"


def long(number):
    return f"the cat number {number} sat on the mat with hat {number * number}, and told nobody of {number}. "


@pytest.fixture
def recipe(tmp_path, small_tokenizer, json_lines):
    """Every kind of step, on hostile texts."""
    evil = EVIL.replace("\ud800", "")
    web = [{"id": f"w{n}", "text": (MENU if n < 5 else "") + long(n) * 4, "url": "https://a.org/?<x>"}
           for n in range(12)]  # fmt: skip
    web += [
        {"id": "evil", "text": f"{evil} {long(99)}", "label": "<b>"},
        {"id": "mail", "text": long(50) + "write to a.cat@mats.org or b.cat@mats.org"},
        {"id": "twice", "text": long(51) + "write to c.cat@mats.org"},
        {"id": "twice again", "text": long(51) + "write to c.cat@mats.org"},
        {"id": "leak", "text": long(52) + ITEM.upper()},
        {"id": "short", "text": "a cat"},
        {"id": "banned", "text": "a whole book", "label": "Books3"},
    ]
    words = [f"w{n}" for n in range(200)]
    books = [
        {"id": "b1", "text": web[14]["text"].upper()}, {"id": "b2", "text": " ".join(words)},
        {"id": "b3", "text": " ".join([*words[:199], "x"])},
    ]  # fmt: skip
    json_lines(tmp_path / "web.jsonl", *web, b"{broken\n", b'{"id": "none"}\n')
    json_lines(tmp_path / "books.jsonl", *books)
    json_lines(tmp_path / "empty.jsonl")
    json_lines(tmp_path / "test.jsonl", {"question": ITEM}, {"question": "too short"})
    off = {"min_word_length": 0, "min_stop_words": 0, "min_alphabetic_words": 0, "max_word_length": 100}
    return {
        "out": str(tmp_path / "out"), "tokenizer": str(small_tokenizer), "workers": 1, "held_out": 0,
        "on_error": "skip", "max_error_rate": 1,
        "sources": [
            {"name": "web", "paths": [str(tmp_path / "web.jsonl")], "licence": "CC0-1.0", "url": "https://a.org",
             "label_key": "label", "exclude": ["books3"],
             "filters": {"gopher_quality": {"min_words": 9, **off}, "pii": True}},
            {"name": "books", "paths": [str(tmp_path / "books.jsonl"), str(tmp_path / "empty.jsonl")]},
        ],
        "deduplication": {"precedence": ["books"], "lines": {"max_documents": 3}},
        "decontamination": {"sets": {"cats": {"path": str(tmp_path / "test.jsonl")}}},
    }  # fmt: skip


@pytest.fixture
def full(recipe):
    """A directory prepared by it."""
    return Dataset(prepare(DataRecipe.model_validate(recipe)))


def cells(page, header):
    """The rows of the first table with a column `header`, as text."""
    for table in re.findall(r"<table>(.*?)</table>", page.replace("<wbr>", ""), re.S):
        if re.search(f"<th[^>]*>{header}</th>", table):
            rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.S)
            return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    raise AssertionError(header)


def test_everything_that_happened_is_on_the_page(full, tmp_path):
    page = dataset_page(full).html()
    web, books = tmp_path / "web.jsonl", tmp_path / "books.jsonl"
    dropped = {
        "near duplicate": 1, "exact duplicate": 2, "decontamination: cats": 1, "excluded: books3": 1,
        "gopher quality: too few words": 1,
    }  # fmt: skip
    told = {row[0]: row for row in cells(page, "reason, all sources")}
    assert {name: int(row[2]) for name, row in told.items() if row[1] == "dropped"} == dropped
    assert {name: int(row[2]) for name, row in told.items() if row[1] == "error"} == {
        "broken JSON": 1, "missing key": 1,
    }  # fmt: skip
    assert cells(page, "documents") == [
        ["web", "21", "14", "5", "2", "66.67 %"], ["books", "3", "2", "1", "0", "66.67 %"],
        ["all", "24", "16", "6", "2", "66.67 %"],
    ]  # fmt: skip
    for row in cells(page, "bytes of input"):
        read, kept, lost, errors = (int(cell.replace(",", "")) for cell in row[1:5])
        assert read == kept + lost + errors > 0
    assert int(cells(page, "bytes of input")[0][1].replace(",", "")) == web.stat().st_size
    assert cells(page, "source")[0] == ["web", "CC0-1.0", "https://a.org", "1"]
    assert cells(page, "source")[1] == ["books", "not stated", "not stated", "1"]
    text = Reader(page).text
    for place in (f"{web}:20", f"{web}:21", f"{books.parent}/empty.jsonl (empty)", f"{web}:19"):
        assert place in text
    # equal documents across sources: the book stays, as the recipe says
    assert cells(page, "dropped from") == [["web", "books", "2"]]
    assert f"kept: books · {books}:1 · b1" in text and f"dropped: web · {web}:15 · twice" in text
    assert f"books · {books}:3 · b3" in text, "nearly equal"
    assert cells(page, "evaluation set") == [["cats", "2", "1", "1", "1", "1"]]
    assert f"web · {web}:17 · leak: item 1, found “WHICH OF THE TWO" in text
    assert f"{MENU.strip()}In 5 documents, as {web}:1" in text
    pii = {tuple(row[:2]): row[2:4] for row in cells(page, "kind")}
    assert pii["web", "email"] == ["4", "2"] and pii["web", "ip"] == ["0", "0"] and len(pii) == 4


def test_shards_and_pieces_make_no_difference(recipe, full, tmp_path, monkeypatch):
    monkeypatch.setattr("stablelm.data.stages.reading.PIECE_BYTES", 600)
    monkeypatch.setattr("stablelm.data.stages.reading.SHARD_BYTES", 300)
    other = Dataset(prepare(DataRecipe.model_validate({**recipe, "out": str(tmp_path / "other")})))
    assert len(list((tmp_path / "other.work/tokenize").iterdir())) > 10
    for name in ("report.json", "decontamination.json", "clusters-exact.jsonl", "clusters-near.jsonl"):
        assert (other.path / name).read_bytes() == (full.path / name).read_bytes(), name
    assert dataset_page(other, "T").html().replace("/other", "/out") == dataset_page(full, "T").html()


def test_hostile_texts_do_nothing(full):
    reader = Reader(dataset_page(full, title=EVIL).html())
    assert reader.open == []
    assert not {"script", "img", "iframe", "object", "link"} & set(reader.tags)
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert reader.text.count("<script>alert(1)</script>") >= 2, "shown as text"
    assert all(
        value.startswith("#section-") for _, name, value in reader.attributes if name in ("href", "src")
    )


def test_what_was_not_done_is_said_and_not_counted_as_none(run, json_lines, tmp_path):
    json_lines(tmp_path / "x.jsonl", {"text": "the cat sat"})
    json_lines(tmp_path / "none.jsonl")
    page = dataset_page(run(web=[tmp_path / "x.jsonl"], none=[tmp_path / "none.jsonl"])).html()
    text = Reader(page).text
    for said in (
        "Nothing was left out.", "the recipe has no deduplication", "names no evaluation set",
        "no source has the filter pii", "the source has no filters", "Every document could be read",
    ):  # fmt: skip
        assert said in text.replace("`", ""), said
    assert cells(page, "documents")[1] == ["none", "0", "0", "0", "0", "–"], "no share of nothing"
    assert "NaN" not in page and "nan" not in Reader(page).text.split()


def test_steps_that_found_nothing(run, json_lines, tmp_path):
    json_lines(tmp_path / "x.jsonl", {"text": "the cat sat on the mat"}, {"text": "a.cat@mats.org"})
    sources = {"web": {"paths": [str(tmp_path / "x.jsonl")], "filters": {"pii": True}}}
    rules = {"lines": {}, "near": None, "scope": "within"}
    text = Reader(dataset_page(run(recipe={"deduplication": rules}, **sources)).html()).text
    assert "a.cat@mats.org" in text and "email@example.comThe same after changes: 17 bytes" in text
    assert "None: no two documents are equal up to case" in text and "within each source" in text
    assert "the recipe leaves this step out" in text and "None: no line is in more than 6 documents" in text


def test_a_directory_without_a_report(full):
    path = full.path / "report.json"
    whole = path.read_text()
    manifest = json.loads((full.path / "manifest.json").read_text())
    del manifest["files"]["report.json"]
    (full.path / "manifest.json").write_text(json.dumps(manifest))
    path.unlink()
    with pytest.raises(InputError, match=r"has no report\.json: an older version .* prepare"):
        dataset_page(Dataset(full.path))
    about = json.loads(whole)
    for text, says in (
        (json.dumps({**about, "version": 1}), "version 1, this one shows version"),
        ("[]", "version None"),
        (whole[:-200], r"report\.json, line \d+: not valid JSON"),
        (json.dumps({**about, "sources": {}}), "damaged: .*not the manifest's"),
        (json.dumps({**about, "repetitions": {}}), "damaged"),
        (whole.replace('"reason": "exact duplicate"', '"reasons": ""'), "damaged"),
        (re.sub(r'"read": \d+', '"read": 7', whole), "another preparation"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            dataset_page(Dataset(full.path))


def test_the_page_is_no_part_of_the_dataset(full, tmp_path):
    before = full.fingerprint
    dataset_page(full).write(full.path / "report.html")
    again = Dataset(full.path)
    assert again.fingerprint == before and "report.html" not in again.verify()
    moved = shutil.copytree(full.path, tmp_path / "elsewhere/copy")
    assert "Prepared data: copy" in dataset_page(Dataset(moved)).html(), "sources need not be there any more"


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 0, "–"), (0, 9, "0 %"), (9, 9, "100 %"), (1, 3, "33.33 %"), (1, 10**6, "< 0.01 %"),
     (10**6 - 1, 10**6, "> 99.99 %")],
)  # fmt: skip
def test_shares(part, whole, shown):
    assert share(part, whole) == shown
