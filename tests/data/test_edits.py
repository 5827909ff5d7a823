"""Edits: merged by the stated rules in any order, applied as a byte-by-byte reading of those rules would."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.data.edits import Edits, merge
from stablelm.data.texts import Texts

MARKS = ["", "", "<a>", "<b>", "…"]


@st.composite
def documents_and_spans(draw):
    documents = draw(st.lists(st.text(alphabet="ab é日😀\n", max_size=12), max_size=4))
    spans = []
    for row, document in enumerate(documents):
        offsets = np.cumsum([0, *(len(c.encode()) for c in document)]).tolist()
        for _ in range(draw(st.integers(0, 4))):
            start, end = sorted(draw(st.tuples(st.sampled_from(offsets), st.sampled_from(offsets))))
            spans.append((row, start, end, draw(st.sampled_from(MARKS))))
    return documents, spans


def naive(document: bytes, spans) -> bytes:
    """The four rules, byte by byte."""
    spans = [span for span in spans if span[0] < span[1]]
    deleted = {b for start, end, text in spans if not text for b in range(start, end)}
    rest = [s for s in spans if s[2] and not set(range(s[0], s[1])) <= deleted]
    clusters = []
    for span in sorted(rest):
        if clusters and span[0] < max(s[1] for s in clusters[-1]):
            clusters[-1].append(span)
        else:
            clusters.append([span])
    written, replaced = {}, set()
    for cluster in clusters:
        best = min(cluster, key=lambda s: (s[0] - s[1], s[0], s[2]))
        written[min(s[0] for s in cluster)] = best[2].encode()
        replaced |= {b for s in cluster for b in range(s[0], s[1])}
    out = b""
    for place in range(len(document)):
        out += written.get(place, b"")
        if place not in replaced and place not in deleted:
            out += document[place : place + 1]
    return out


@given(documents_and_spans(), st.randoms())
def test_applied_as_the_rules_say_in_any_order(case, random):
    documents, spans = case
    texts = Texts.of(documents)
    edits = Edits.of(spans)
    expected = [
        naive(document.encode(), [s[1:] for s in spans if s[0] == row])
        for row, document in enumerate(documents)
    ]
    assert [edits.of_row(row).apply(texts.raw(row)) for row in range(len(texts))] == expected
    changed = edits.apply_all(texts)
    assert [changed.raw(row) for row in range(len(texts))] == expected
    assert all(text.decode() is not None for text in expected), "spans on character boundaries keep UTF-8"
    edits.check(texts, "here")

    shuffled = random.sample(spans, len(spans))
    assert Edits.of(shuffled) == edits
    groups = [Edits.of([span]) for span in shuffled]
    assert merge(*groups) == edits == merge(*reversed(groups))
    assert merge(edits) == edits
    assert edits._fault() == ""


@given(documents_and_spans())
def test_stored_and_read_back(case):
    edits = Edits.of(case[1])
    file = io.BytesIO()
    np.savez(file, **edits.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = Edits.from_arrays(arrays, "edits.npz")
    assert again == edits and again.replacements == edits.replacements


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 4, ""), (4, 6, "")], "6789"),  # deletions touch: one
        ([(0, 8, ""), (2, 6, "<m>")], "89"),  # a deletion covers a replacement
        ([(0, 4, ""), (4, 8, ""), (2, 6, "<m>")], "89"),  # two that touch cover it together
        ([(0, 4, ""), (2, 6, "<m>")], "<m>6789"),  # in part
        ([(2, 4, ""), (0, 6, "<m>")], "<m>6789"),  # inside
        ([(2, 6, ""), (2, 6, "<m>")], "016789"),  # the same bytes
        ([(0, 3, "<a>"), (2, 7, "<b>")], "<b>789"),  # the longer one
        ([(0, 3, "<b>"), (2, 5, "<a>")], "<b>56789"),  # the first one
        ([(0, 3, "<b>"), (0, 3, "<a>")], "<a>3456789"),  # the least one
        ([(0, 3, "<a>"), (3, 5, "<a>")], "<a><a>56789"),  # replacements that touch are two
        ([(3, 3, "<a>")], "0123456789"),  # nothing is inserted
    ],
)
def test_each_rule(spans, expected):
    edits = Edits.of((0, *span) for span in spans)
    assert edits.apply(b"0123456789").decode() == expected


def test_rows_stay_apart_and_can_be_renumbered():
    edits = Edits.of([(5, 0, 1, ""), (0, 2, 3, "x"), (5, 1, 3, "y")])
    assert list(edits) == [(0, 2, 3, "x"), (5, 0, 1, ""), (5, 1, 3, "y")]
    assert list(edits.of_row(5)) == [(5, 0, 1, ""), (5, 1, 3, "y")] and len(edits.of_row(3)) == 0
    numbers = np.array([-1, 0, 1, 2, 3, 4])
    assert list(edits.renumbered(numbers)) == [(4, 0, 1, ""), (4, 1, 3, "y")]
    assert edits != Edits.none() and Edits.none() == merge() == Edits.of([])
    assert len(Edits.none().apply_all(Texts.of([]))) == 0


@pytest.mark.parametrize("spans", [[(2, 0, 1, "")], [(0, 2, 9, "")], [(1, 1, 2, "")], [(1, 0, 1, "x")]])
def test_edits_of_other_texts_are_refused(spans):
    with pytest.raises(InputError, match="work.npz: an edit of text [0-2] does not fit"):
        Edits.of(spans).check(Texts.of(["abc", "é"]), "work.npz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": None}, "rows missing"),
        ({"rows": np.zeros(1, np.int64)}, "differ in length"),
        ({"rows": np.zeros(2, np.int32)}, "not of int64"),
        ({"codes": np.array([0, 9])}, "not in the table"),
        ({"ends": np.array([1, 3])}, "empty or negative"),
        ({"starts": np.array([-1, 3])}, "empty or negative"),
        ({"rows": np.array([1, 0])}, "not in order"),
        ({"ends": np.array([4, 5])}, "overlap"),
        ({"replacements": np.array(["b", "a"])}, "not sorted"),
    ],
)
def test_damaged_arrays_are_refused(change, said):
    arrays = Edits.of([(0, 0, 1, "a"), (0, 3, 5, "b")]).to_arrays() | change
    arrays = {key: value for key, value in arrays.items() if value is not None}
    with pytest.raises(InputError, match=f"x.npz: not stored edits.*{said}"):
        Edits.from_arrays(arrays, "x.npz")


def test_a_replacement_with_nul_is_refused():
    with pytest.raises(InputError, match="NUL"):
        Edits.of([(0, 0, 1, "\0")])
