"""Lines and paragraphs that many documents share: found across shards, cut out in one piece."""

import re
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.deduplication import LineDeduplication
from stablelm.data.deduplication.lines import (
    Repeated,
    bucket_lines,
    line_numbers,
    removals,
    spill_lines,
    write_repeated,
)
from stablelm.data.texts import Texts

NOTICE = "Subscribe to our newsletter and never miss a story"


def chosen(**values):
    return LineDeduplication(**{"min_characters": 1, "max_documents": 1, "min_left": 0, **values})


def segments(text, **values):
    """The lines or paragraphs of a text, as they stand in it."""
    found = line_numbers(Texts.of([text]), chosen(**values))
    return [text.encode()[a:b].decode() for a, b in zip(found.starts, found.ends, strict=True)]


def cut(text, starts, ends):
    data, kept, at = text.encode(), b"", 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        kept, at = kept + data[at:start], end
    return (kept + data[at:]).decode()


def cleaned(folder, shards, rules, buckets=3, scopes=None):
    """{shard: {number: text}} → {number: what is left, None if dropped}."""
    scopes, result, written = scopes or {}, {}, []
    for name, documents in shards.items():
        lines = line_numbers(Texts.of(list(documents.values())), rules, scopes.get(name, ""))
        spill_lines(folder, name, np.array(list(documents), np.uint64), lines, buckets)
    for bucket in range(buckets):
        written.append(folder / f"{bucket}.repeated")
        write_repeated(written[-1], bucket_lines(folder, bucket, rules)[0])
    repeated = Repeated(reversed(written))
    for name, documents in shards.items():
        texts = Texts.of(list(documents.values()))
        lines = line_numbers(texts, rules, scopes.get(name, ""))
        found = removals(texts, np.array(list(documents), np.uint64), lines, repeated, rules)
        for row, (number, text) in enumerate(documents.items()):
            its = found.rows == row
            result[number] = None if found.dropped[row] else cut(text, found.starts[its], found.ends[its])
    return result


@pytest.mark.parametrize(
    ("text", "lines", "paragraphs"),
    [
        ("", [], []),
        ("\n\n \n", [], []),
        ("one", ["one"], ["one"]),
        ("one\ntwo\n", ["one\n", "two\n"], ["one\ntwo\n"]),
        ("a\n\nb\n \t\n\nc", ["a\n", "b\n", "c"], ["a\n\n", "b\n \t\n\n", "c"]),
        ("\n  \n  a\r\nb\r\n\r\nc\r\n", ["  a\r\n", "b\r\n", "c\r\n"], ["  a\r\nb\r\n\r\n", "c\r\n"]),
        ("a\n\n   b\n", ["a\n", "   b\n"], ["a\n\n", "   b\n"]),
        ("日本\n\u3000\n語", ["日本\n", "語"], ["日本\n\u3000\n", "語"]),
        ("a\n\n\n", ["a\n"], ["a\n\n\n"]),
        ("a\n  ", ["a\n"], ["a\n  "]),
        ("\ufeffx\u2028y\n", ["\ufeffx\u2028y\n"], ["\ufeffx\u2028y\n"]),
    ],
)
def test_where_they_begin_and_end(text, lines, paragraphs):
    assert segments(text) == lines
    assert segments(text, unit="paragraph") == paragraphs


@given(st.text("ab \n\té", max_size=60))
def test_lines_against_python(text):
    assert segments(text) == [line for line in re.findall(r"[^\n]*\n|[^\n]+$", text) if line.strip()]
    expected = re.findall(r"(?:[^\n]*\S[^\n]*(?:\n|$))+(?:[^\S\n]*\n|[^\S\n]+$)*", text)
    assert segments(text, unit="paragraph") == expected


def test_lines_that_are_equal():
    texts = [
        "Hello  World\n",
        "hello world",
        "\tHELLO world \r\n",
        "ｈｅｌｌｏ world",
        "hello, world",
        "helloworld",
    ]
    numbers = line_numbers(Texts.of(texts), chosen()).numbers
    assert len(set(numbers[:4].tolist())) == 1 and len(set(numbers.tolist())) == 3


def test_short_lines_stay():
    """Length is that of the folded text: `  a   b  ` has 3 characters."""
    texts = Texts.of(["  a   b  \nabc\nabcd\nßß"])
    assert line_numbers(texts, chosen(min_characters=4)).starts.tolist() == [14, 19]
    assert len(line_numbers(texts, chosen(min_characters=3)).starts) == 4


def test_boilerplate_is_cut_out_of_all_but_the_first(tmp_path):
    shards = {
        "b": {n: f"Story {n}\n{NOTICE}\nThe end of {n}." for n in range(10, 14)},
        "a": {n: f"{NOTICE.upper()} \nTale {n}" for n in range(3)},
    }
    found = cleaned(tmp_path / "1", shards, chosen(max_documents=6))
    assert found[0] == f"{NOTICE.upper()} \nTale 0"
    assert [found[n] for n in (1, 2)] == ["Tale 1", "Tale 2"]
    assert found[12] == "Story 12\nThe end of 12."
    everywhere = cleaned(tmp_path / "2", shards, chosen(max_documents=6, keep="none"))
    assert everywhere[0] == "Tale 0" and everywhere[13] == found[13]
    untouched = cleaned(tmp_path / "3", shards, chosen(max_documents=7))
    assert untouched == {**shards["a"], **shards["b"]}


def test_repetition_within_a_document_does_not_count(tmp_path):
    shards = {"a": {1: f"{NOTICE}\n" * 50 + "x", 2: f"{NOTICE}\ny"}}
    assert cleaned(tmp_path / "1", shards, chosen(max_documents=2)) == shards["a"]
    assert cleaned(tmp_path / "2", shards, chosen()) == {1: shards["a"][1], 2: "y"}
    assert cleaned(tmp_path / "3", shards, chosen(keep="none")) == {1: "x", 2: "y"}


def test_a_document_of_which_too_little_is_left_goes(tmp_path):
    texts = {1: NOTICE, 2: NOTICE + "\n" + "x" * 10, 3: f"{NOTICE}\n\n \n", 4: NOTICE + "\n" + "y" * 60}
    assert cleaned(tmp_path / "1", {"a": texts}, chosen()) == {1: NOTICE, 2: "x" * 10, 3: None, 4: "y" * 60}
    assert cleaned(tmp_path / "2", {"a": texts}, chosen(min_left=0.5)) == {
        1: NOTICE,
        2: None,
        3: None,
        4: "y" * 60,
    }


def test_paragraphs(tmp_path):
    paragraph = "All rights reserved.\nNo part may be copied.\n\n"
    texts = {n: f"Chapter {n}\n\n{paragraph}Once upon a time {n}\nAll rights reserved." for n in range(3)}
    found = cleaned(tmp_path, {"a": texts}, chosen(unit="paragraph", min_characters=30))
    assert found[0] == texts[0]
    assert found[2] == "Chapter 2\n\nOnce upon a time 2\nAll rights reserved."


def test_scopes_do_not_meet(tmp_path):
    shards = {"web": {1: f"{NOTICE}\na"}, "books": {2: f"{NOTICE}\nb"}}
    assert cleaned(tmp_path / "1", shards, chosen())[2] == "b"
    within = cleaned(tmp_path / "2", shards, chosen(), scopes={"web": "web", "books": "books"})
    assert within == {1: f"{NOTICE}\na", 2: f"{NOTICE}\nb"}


@settings(max_examples=40)  # each writes files
@given(
    st.lists(st.lists(st.sampled_from(["aa", "bb", "é c", "d", ""]), max_size=5).map("\n".join), max_size=12),
    st.integers(1, 4),
    st.sampled_from(["first", "none"]),
    st.integers(1, 5),
)
def test_against_a_dictionary(tmp_path_factory, texts, most, keep, buckets):
    folder = tmp_path_factory.mktemp("lines")
    rules = chosen(min_characters=2, max_documents=most, keep=keep)
    where = defaultdict(set)
    for number, text in enumerate(texts):
        for line in text.split("\n"):
            if len(line) >= 2:
                where[line].add(number)
    expected = {}
    for number, text in enumerate(texts):
        kept = [
            line
            for line in re.findall(r"[^\n]*\n|[^\n]+$", text)
            if len(where[key := line.rstrip("\n")]) <= most or (keep == "first" and min(where[key]) == number)
        ]
        whole = "".join(kept)
        expected[number] = None if whole != text and not whole.strip() else whole
    if texts:
        halves = {"1": dict(list(enumerate(texts))[1::2]), "0": dict(list(enumerate(texts))[::2])}
        assert cleaned(folder, halves, rules, buckets) == expected


def test_damaged_and_foreign_files(tmp_path):
    cleaned(tmp_path, {"web": {1: NOTICE, 2: NOTICE}}, chosen(), buckets=1)
    with pytest.raises(InputError, match="two files hold the same line"):
        Repeated([tmp_path / "0.repeated", tmp_path / "0.repeated"])
    for name in ("0.repeated", "web.lines"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-3])
    with pytest.raises(InputError, match=r"0\.repeated: truncated"):
        Repeated([tmp_path / "0.repeated"])
    with pytest.raises(InputError, match=r"web\.lines: truncated"):
        bucket_lines(tmp_path, 0, chosen())


def test_nothing_repeated():
    assert len(Repeated([])) == 0
    texts = Texts.of(["a\nb", ""])
    found = removals(
        texts, np.arange(2, dtype=np.uint64), line_numbers(texts, chosen()), Repeated([]), chosen()
    )
    assert len(found.rows) == 0 and not found.dropped.any()
