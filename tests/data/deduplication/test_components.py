"""From pairs to clusters, beside a naive search."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.data.deduplication.components import components, dropped, write_clusters, write_edges

NUMBERS = st.integers(0, 30) | st.integers((1 << 64) - 5, (1 << 64) - 1)


def naive(pairs):
    """Lowest number of each one's cluster, by walking."""
    found = {}
    for start in sorted({n for pair in pairs for n in pair}):
        seen, todo = {start}, [start]
        while todo:
            here = todo.pop()
            for a, b in pairs:
                for near in ({a: b, b: a}.get(here),):
                    if near is not None and near not in seen:
                        seen.add(near)
                        todo.append(near)
        found[start] = min(seen)
    return found


@settings(max_examples=40)  # each writes files
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40), st.integers(1, 3), st.randoms(use_true_random=False)
)
def test_against_a_naive_search(tmp_path_factory, pairs, files, random):
    folder = tmp_path_factory.mktemp("edges")
    shuffled = [pair if random.random() < 0.5 else pair[::-1] for pair in pairs]
    random.shuffle(shuffled)
    paths = [folder / f"{number}.edges" for number in range(files)]
    for number in range(files):
        write_edges(paths[number], np.array(shuffled[number::files], np.uint64).reshape(-1, 2))
    members, representatives = components(paths)
    assert dict(zip(members.tolist(), representatives.tolist(), strict=True)) == naive(pairs)
    assert members.tolist() == sorted(members.tolist())


def test_a_long_chain(tmp_path):
    order = np.random.default_rng(3).permutation(20_000).astype(np.uint64)
    write_edges(tmp_path / "e", np.column_stack([order[1:], order[:-1]]))
    members, representatives = components([tmp_path / "e"])
    assert len(members) == 20_000 and (representatives == 0).all()
    assert len(dropped(members, representatives)) == 19_999


def test_no_pairs(tmp_path):
    members, representatives = components([])
    assert len(members) == len(representatives) == 0
    assert write_clusters(tmp_path / "c.jsonl", members, representatives) == 0
    assert (tmp_path / "c.jsonl").read_text() == ""


def test_clusters_are_written_to_be_looked_at(tmp_path):
    write_edges(tmp_path / "e", np.array([[9, 4], [4, 7], [1, 3]], np.uint64))
    names = {1: "a", 3: "b", 4: "c", 7: "d", 9: "é"}
    clusters = components([tmp_path / "e"])
    assert write_clusters(tmp_path / "c.jsonl", *clusters, lambda n: {"id": names[n]}) == 2
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text("utf-8").splitlines()]
    assert [(x["cluster"], x["document"], x["kept"], x["id"]) for x in lines] == [
        (1, 1, True, "a"), (1, 3, False, "b"), (4, 4, True, "c"), (4, 7, False, "d"), (4, 9, False, "é"),
    ]  # fmt: skip


def test_a_damaged_file_of_pairs(tmp_path):
    write_edges(tmp_path / "3.edges", np.array([[9, 4]], np.uint64))
    data = (tmp_path / "3.edges").read_bytes()
    (tmp_path / "3.edges").write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"3\.edges: truncated"):
        components([tmp_path / "3.edges"])
    (tmp_path / "3.edges").write_bytes(data[:-1] + b"\x07")
    with pytest.raises(InputError, match=r"3\.edges: corrupt: bucket 0"):
        components([tmp_path / "3.edges"])
    with pytest.raises(InputError, match=r"4\.edges: cannot be read"):
        components([tmp_path / "4.edges"])
