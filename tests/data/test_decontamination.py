"""Evaluation sets' words in training documents: what is found, counted, cut, and what is not."""

import json
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.deduplication import Decontamination, DecontaminationSet
from stablelm.data.decontamination import Index, cuts, merge_reports, report
from stablelm.data.texts import Texts

WORDS = [f"word{n}" for n in range(60)]
LONG, MIDDLE, SHORT = " ".join(WORDS[:20]), " ".join(WORDS[20:30]), " ".join(WORDS[30:37])
NAMES = [
    "arc_challenge",
    "arc_easy",
    "boolq",
    "hellaswag",
    "lambada_openai",
    "openbookqa",
    "piqa",
    "sciq",
    "winogrande",
]


@pytest.fixture
def index(tmp_path):
    """`index(name=[texts], …, settings={…})` builds one from items of one text each."""

    def build(rules=None, **sets):
        for name, items in sets.items():
            lines = "".join(json.dumps({"text": text}) + "\n" for text in items)
            (tmp_path / f"{name}.jsonl").write_text(lines, "utf-8")
        chosen = {name: DecontaminationSet(path=str(tmp_path / f"{name}.jsonl")) for name in sets}
        return Index.build(Decontamination(sets=chosen, **(rules or {})))

    return build


def hits(index, *texts):
    return index.matches(Texts.of(texts)).documents.tolist()


def around(text):
    return f"Before it there is something. {text} And after it, too."


def test_thirteen_words_in_a_row_are_found(index):
    built = index(web=[LONG])
    assert built.about["sets"]["web"]["grams"] == 8 and len(built.grams) == 8
    inside = [around(" ".join(WORDS[i : i + 13])) for i in range(8)]
    assert hits(built, *inside) == list(range(8))
    assert (
        hits(
            built, around(" ".join(WORDS[:12])), around(" ".join([*WORDS[:12], "x", *WORDS[13:19]])), "", "!"
        )
        == []
    )


@pytest.mark.parametrize(
    "change",
    [
        str.upper, lambda t: t.replace(" ", "\n\n"), lambda t: t.replace(" ", ", — "),
        lambda t: "“" + t.replace(" ", "” “") + "”", lambda t: t.replace("o", "o\u00ad"),
        lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in t),
    ],
)  # fmt: skip
def test_punctuation_case_and_white_space_make_no_difference(index, change):
    assert hits(index(web=[LONG]), change(LONG)) == [0]


def test_accents_composed_or_not_make_no_difference(index):
    text = " ".join(["Žluťoučký", "kůň", "naïve"] * 5)
    built = index(web=[unicodedata.normalize("NFC", text)])
    assert hits(built, unicodedata.normalize("NFD", text), text.replace("ů", "u")) == [0]


def test_short_texts_are_looked_for_as_a_whole(index):
    """10 words: all of them in a row; 7 words: not at all, and counted."""
    built = index(a=[MIDDLE, SHORT], b=[SHORT])
    sets = built.about["sets"]
    assert [(sets[n]["items"], sets[n]["grams"], sets[n]["too_short"]) for n in "ab"] == [
        (2, 1, 1),
        (1, 0, 1),
    ]
    assert hits(built, around(MIDDLE), around(" ".join(WORDS[20:29])), around(SHORT)) == [0]
    assert hits(index({"min_words": 7}, b=[SHORT]), around(SHORT)) == [0]


def test_scripts_without_spaces(index):
    built = index(ja=["吾輩は猫である名前はまだ無いどこで生れたか"])
    assert hits(built, "…「吾輩は猫である。名前はまだ無い」…", "吾輩は猫である") == [0]


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), min_size=1, max_size=4),
    st.lists(st.lists(st.sampled_from("abc"), max_size=20).map("-".join), max_size=4),
    st.integers(2, 5),
)
def test_against_a_search_in_strings(tmp_path_factory, items, documents, n):
    path = tmp_path_factory.mktemp("sets") / "s.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in items))
    built = Index.build(Decontamination(sets={"s": DecontaminationSet(path=str(path))}, n=n, min_words=2))
    grams = {}
    for line, text in enumerate(items, 1):
        words = text.split()
        size = min(n, len(words))
        for first in range(len(words) - size + 1 if size >= 2 else 0):
            grams.setdefault(tuple(words[first : first + size]), set()).add(line)
    expected = set()
    for row, text in enumerate(documents):
        for start in range(0, len(text), 2):
            for gram, lines in grams.items():
                if text[start:].startswith("-".join(gram)):
                    expected |= {(row, start, start + 2 * len(gram) - 1, line) for line in lines}
    found = built.matches(Texts.of(documents))
    columns = zip(
        found.rows.tolist(), found.starts.tolist(), found.ends.tolist(), found.grams.tolist(), strict=True
    )
    assert {(r, a, b, line) for r, a, b, gram in columns for _, line in built.owners(gram)} == expected


def test_the_nine_sets_of_the_model_card(shared, tmp_path):
    """Every item that is long enough is found in a page that quotes its query with the answer."""
    folder = shared / "data" / "eval"
    chosen = {name: DecontaminationSet(path=str(folder / f"{name}.jsonl")) for name in NAMES}
    built = Index.build(Decontamination(sets=chosen))
    short = {name: about["too_short"] for name, about in built.about["sets"].items()}
    assert short["boolq"] == short["hellaswag"] == short["lambada_openai"] == short["winogrande"] == 0
    piqa = [json.loads(line) for line in (folder / "piqa.jsonl").read_bytes().splitlines()]
    pages = [around(f"{i['goal']}\n\n{i['sol2' if i['label'] else 'sol1']}".upper()) for i in piqa]
    found = hits(built, *pages)
    long = [n for n, i in enumerate(piqa) if len(re.findall(r"[^\W_]+", pages[n])) - 9 >= 8]
    assert found == long and len(piqa) - len(found) == short["piqa"]
    wrong = [i["sol1" if i["label"] else "sol2"] for i in piqa]
    assert len(hits(built, *wrong)) < 0.35 * len(
        wrong
    )  # wrong answers are not looked for; some share 13 words
    built.save(tmp_path / "index")
    assert hits(Index.load(tmp_path / "index"), *pages[:50]) == [n for n in found if n < 50]


def test_ordinary_text_is_not_found(shared):
    folder = shared / "data" / "eval"
    built = Index.build(
        Decontamination(sets={"l": DecontaminationSet(path=str(folder / "lambada_openai.jsonl"))})
    )
    for name in ("bartleby.txt", "sub/modest-proposal.txt"):
        text = (shared / "data" / "corpus" / "raw" / "tree" / name).read_text("utf-8")
        assert hits(built, text) == []


def test_the_report(index):
    built = index(a=[LONG, MIDDLE], b=[LONG.title()], c=["nothing of it " * 5])
    documents = [around(LONG), "clean", around(MIDDLE), around(LONG), *[around(MIDDLE)] * 3]
    numbers = np.array([7, 8, 9, 100, 101, 102, 103], np.uint64)
    whole = Texts.of(documents)
    full = report(built, whole, numbers, built.matches(whole))
    assert full["documents"] == 6
    assert {n: (s["documents"], s["items_hit"]) for n, s in full["sets"].items()} == {
        "a": (6, [1, 2]), "b": (2, [1]), "c": (0, []),
    }  # fmt: skip
    assert full["sets"]["a"]["grams"] == 9 and full["sets"]["a"]["items"] == 2
    example = full["sets"]["a"]["examples"][0]
    assert (example["document"], example["item"], example["found"]) == (7, 1, " ".join(WORDS[:13]))
    assert example["context"].startswith("Before it") and [
        e["document"] for e in full["sets"]["a"]["examples"]
    ] == [7, 9, 100]
    parts = []
    for rows in (slice(3, 7), slice(0, 3)):
        texts = Texts.of(documents[rows])
        parts.append(report(built, texts, numbers[rows], built.matches(texts)))
    assert merge_reports(parts) == merge_reports(reversed(parts)) == full
    assert json.loads(json.dumps(full)) == full
    with pytest.raises(InputError, match="no report"):
        merge_reports([])


def test_cutting_out(index):
    built = index(a=[LONG])
    before, after = "é" * 60, "日" * 60
    texts = Texts.of([f"{before} {LONG} {after}", "clean", LONG, f"{LONG} {after * 20} {LONG}"])
    found = cuts(texts, built.matches(texts), margin=10)
    assert found.rows.tolist() == [0, 2, 3, 3] and found.dropped.tolist() == [False, False, True, False]
    left = []
    for row in (0, 3):
        data, its = texts.raw(row), found.rows == row
        spans = zip([0, *found.ends[its].tolist()], [*found.starts[its].tolist(), len(data)], strict=True)
        left.append("".join(data[a:b].decode() for a, b in spans))
    assert left[0] == "é" * 55 + "日" * 57 and set(left[1]) == {"日"} and len(left[1]) == 60 * 20 - 6
    none = cuts(Texts.of(["clean"]), built.matches(Texts.of(["clean"])), 10)
    assert len(none.rows) == 0 and none.dropped.tolist() == [False]


def test_saved_and_loaded(index, tmp_path):
    built = index(a=[LONG, LONG], b=[LONG])
    built.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index")
    assert loaded.about == built.about and loaded.fingerprint == built.fingerprint
    assert (loaded.grams == built.grams).all() and isinstance(loaded.grams, np.memmap)
    assert loaded.owners(0) == [("a", 1), ("a", 2), ("b", 1)]
    with pytest.raises(InputError, match="already exists"):
        built.save(tmp_path / "index")


def test_the_fingerprint_is_that_of_rules_and_content(index, tmp_path):
    one = index(a=[LONG])
    assert index({"n": 12}, a=[LONG]).fingerprint != one.fingerprint != index(a=[LONG + " x"]).fingerprint
    (tmp_path / "moved.jsonl").write_text(json.dumps({"text": LONG}) + "\n")
    moved = Index.build(Decontamination(sets={"a": DecontaminationSet(path=str(tmp_path / "moved.jsonl"))}))
    assert moved.fingerprint == one.fingerprint


def test_nothing_long_enough(index):
    built = index(a=[SHORT])
    assert len(built.grams) == 0 and hits(built, SHORT, LONG, "") == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "grams.npy").unlink(), r"grams\.npy: missing"),
        (lambda d: (d / "items.npy").write_bytes(b"123"), r"items\.npy: truncated or changed"),
        (lambda d: (d / "manifest.json").write_text('{"files": {}}'), "not a decontamination index"),
        (lambda d: (d / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "manifest.json").unlink(), r"manifest\.json: no such file"),
        (lambda d: (d / "sets.npy").write_bytes(b"x" * (d / "sets.npy").stat().st_size), "cannot be read"),
        (lambda d: (d / "sets.npy").write_bytes((d / "items.npy").read_bytes()[:-4] + b"abc\n"), None),
    ],
)
def test_a_damaged_index_is_named(index, tmp_path, damage, message):
    index(a=[LONG]).save(tmp_path / "index")
    damage(tmp_path / "index")
    if message is None:  # only hashes could tell
        Index.load(tmp_path / "index")
        return
    with pytest.raises(InputError, match=message):
        Index.load(tmp_path / "index")


def test_what_is_no_index(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such directory"):
        Index.load(tmp_path / "nowhere")
    (tmp_path / "empty.jsonl").write_text("\n")
    chosen = {"arc": DecontaminationSet(path=str(tmp_path / "empty.jsonl"))}
    with pytest.raises(InputError, match=r"empty\.jsonl: no evaluation item in it.*set 'arc'"):
        Index.build(Decontamination(sets=chosen))
