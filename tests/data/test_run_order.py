"""What a run reads when its mixture changes, samples are skipped, or documents are kept apart; and when."""

from collections import Counter

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.config.mixture import DataConfig
from stablelm.data import Loader

LENGTHS = [7, 1, 30, 2, 2, 41, 17]  # 100 tokens


@pytest.fixture
def dataset(make_dataset, split):
    return make_dataset(a=split(1000, LENGTHS), b=split(5000, [333]), c=split(9000, [60, 60, 5]))


@pytest.fixture
def loader(dataset):
    def make(length=8, sequences=1, seed=1, **data):
        return Loader(dataset, DataConfig(path=str(dataset.path), **data), length, seed, sequences)

    return make


def rows(made):
    return made.samples(0, made.num_samples)


def test_phases_go_on_where_the_sources_stopped(loader):
    first = {"epochs": {"b": 1, "a": "3/2"}}
    made = loader(phases=[first, {"epochs": {"a": "5/2", "c": 2}}], sequences=4)
    batch = rows(made)
    assert np.array_equal(batch[:59], rows(loader(epochs=first["epochs"])))
    owner = batch[:, 0] // 4000
    assert Counter(owner.tolist()) == {0: 48, 1: 41, 2: 30}
    assert Counter(owner[:59].tolist()) == {0: 18, 1: 41}
    targets = Counter(batch[owner == 0][:, 1:].ravel().tolist())
    assert max(targets.values()) == 4, "no token comes a fifth time; the remainder moves"
    assert sum(targets.values()) == 4 * 96
    assert made.table()["a"] == {"epochs": "4", "windows": 12, "samples": 48}
    assert [e["windows"] for e in made.accounting()["a"]["epochs"]] == [12, 12, 12, 12]


def test_a_phase_that_ends_at_a_step(loader):
    table = {"a": 4, "b": 1}
    one = rows(loader(epochs=table))
    made = loader(phases=[{"epochs": table, "until_step": 10}, {"epochs": {"c": 1, "a": 1}}], sequences=4)
    batch = rows(made)
    assert np.array_equal(batch[:40], one[:40])
    assert not np.array_equal(batch[40:60], one[40:60])
    read = int((one[:40, 0] < 5000).sum())
    assert made.num_samples == 40 + 12 + 15
    assert made.table()["a"]["samples"] == read + 12
    windows = [e["windows"] for e in made.accounting()["a"]["epochs"]]
    assert windows == [12] * ((read + 12) // 12) + [(read + 12) % 12] * ((read + 12) % 12 > 0)
    for step, message in (
        (23, "before sample 92; it begins at sample 0 and its epochs hold 89"),
        (100, "400"),
    ):
        with pytest.raises(InputError, match=rf"data.phases \(a step is 4 samples\): phase 1: .*{message}"):
            loader(phases=[{"epochs": table, "until_step": step}, {"epochs": {"c": 1}}], sequences=4)


def test_a_skipped_range_is_left_out_and_accounted(loader):
    whole = loader(epochs={"a": 4, "b": 1})
    made = loader(epochs={"a": 4, "b": 1}, skip=[[20, 29], [30, 31], [70, 88]])
    kept = [n for n in range(89) if not (20 <= n <= 31 or n >= 70)]
    assert made.num_samples == len(kept) == 58
    assert made.numbers(0, 58).tolist() == kept
    assert np.array_equal(rows(made), rows(whole)[kept])
    assert np.array_equal(made.samples(18, 5), rows(whole)[kept[18:23]])
    owner = np.where(rows(whole)[:, 0] < 5000, "a", "b")
    for n in (0, 5, 20, 21, 57, 58, 99):
        counts = Counter(owner[kept[:n]].tolist())
        assert {k: v["samples"] for k, v in made.seen(n).items()} == {k: counts[k] for k in ("a", "b")}
    account, skipped = made.accounting(), Counter(owner[[n for n in range(89) if n not in kept]].tolist())
    for name in ("a", "b"):
        entries = account[name]["epochs"]
        assert sum(e["skipped_windows"] for e in entries) == skipped[name]
        assert sum(e["windows"] for e in entries) == made.table()[name]["samples"]
        for entry in entries:
            parts = entry["windows"] + entry["skipped_windows"] + entry["unread_windows"]
            assert parts == whole.mixture.windows[name]


def test_a_step_boundary_counts_what_is_consumed(loader):
    phases = [{"epochs": {"a": 4, "b": 1}, "until_step": 10}, {"epochs": {"c": 2}}]
    plain, made = (
        loader(phases=phases, sequences=4),
        loader(phases=phases, sequences=4, skip=[[5, 7], [30, 60]]),
    )
    assert plain.mixture.phases[1].first == 40
    assert made.mixture.phases[1].first == 74, "forty samples consumed, 34 skipped"
    assert made.samples(39, 1)[0, 0] < 9000 <= made.samples(40, 1)[0, 0]


@pytest.mark.parametrize(
    ("skip", "message"),
    [([[80, 89]], r"\[80, 89\] goes beyond the last sample, 88"), ([[0, 88]], "leaves out every sample")],
)
def test_ranges_that_are_refused(loader, skip, message):
    with pytest.raises(InputError, match=message):
        loader(epochs={"a": 4, "b": 1}, skip=skip)


@pytest.mark.parametrize("length", [2, 8, 33, 50, 99, 100])
@pytest.mark.parametrize("limit", [{}, {"a": 1}])
def test_document_ids_change_where_documents_begin(loader, length, limit):
    made = loader(length, epochs={"a": 4}, windows=limit, document_boundaries=True)
    batch, ids = rows(made), made.document_ids(0, made.num_samples)
    assert ids.shape == (made.num_samples, length)
    begins = {1000 + int(n) for n in np.cumsum([0, *LENGTHS[:-1]])}
    for row, numbers in zip(batch.tolist(), ids.tolist(), strict=True):
        for at in range(1, length):
            assert (numbers[at] != numbers[at - 1]) == (row[at] in begins), "also where the stream is joined"


def test_a_source_of_one_document_has_a_boundary_where_it_is_joined(make_dataset, split):
    dataset = make_dataset(a=split(0, [10]))
    made = Loader(dataset, DataConfig(path="x", epochs={"a": 3}, document_boundaries=True), 10, 1)
    for row, ids in zip(rows(made).tolist(), made.document_ids(0, 3).tolist(), strict=True):
        turn = (10 - row[0]) % 10
        assert ids == [0] * 10 if turn == 0 else [0] * turn + [1] * (10 - turn)


def test_empty_documents_are_no_boundaries(make_dataset):
    dataset = make_dataset(a=[[], [1, 2, 3], [], [], [4, 5], []])
    made = Loader(dataset, DataConfig(path="x", epochs={"a": 9}, document_boundaries=True), 4, 1)
    for row, ids in zip(rows(made).tolist(), made.document_ids(0, 9).tolist(), strict=True):
        assert [row[i] in (1, 4) for i in range(1, 4)] == [ids[i] != ids[i - 1] for i in range(1, 4)]


def test_an_end_of_document_inside_a_text_makes_no_boundary(make_dataset):
    dataset = make_dataset(a=[[5, 0, 0, 7, 0, 6], [8, 0, 9, 3, 0]])
    made = Loader(dataset, DataConfig(path="x", epochs={"a": 5}, document_boundaries=True), 5, 1)
    for row, ids in zip(rows(made).tolist(), made.document_ids(0, 10).tolist(), strict=True):
        assert [row[i] in (5, 8) for i in range(1, 5)] == [ids[i] != ids[i - 1] for i in range(1, 5)]


def test_boundaries_belong_to_a_phase(loader):
    phases = [{"epochs": {"a": 1}}, {"epochs": {"a": 1}, "document_boundaries": True}]
    made = loader(phases=phases)
    assert made.document_ids(0, 12) is None
    mixed = made.document_ids(6, 12)
    assert (mixed[:6] == 0).all()
    assert mixed[6:].any()
    assert loader(epochs={"a": 1}).document_ids(0, 12) is None


def brute(made, batch, low, high, tokens=None):
    """(position, tokens) of every sample that predicts ids low … high − 1."""
    hits = ((batch[:, 1:] >= low) & (batch[:, 1:] < high)).sum(axis=1)
    return [(position, int(n)) for position, n in enumerate(hits) if n]


@pytest.mark.parametrize("length", [2, 7, 8, 33, 64, 100])
@pytest.mark.parametrize(
    "data",
    [
        {"epochs": {"a": "10/3", "b": 1}},
        {"epochs": {"a": 3, "b": 1}, "windows": {"a": 1}},
        {"epochs": {"a": 4, "b": 1}, "skip": [[2, 3], [5, 5]]},
        {"phases": [{"epochs": {"a": 2, "b": 1}, "until_step": 1}, {"epochs": {"c": 1, "a": "3/2"}}]},
    ],
)
def test_when_a_document_is_seen(dataset, loader, length, data):
    made = loader(length, sequences=2, **data)
    batch = rows(made)
    for name in made.mixture.sources:
        file = dataset.train(name)
        for number in range(file.num_documents):
            ids = file.document(number)
            found = made.when(name, number)
            low, high = int(ids[0]), int(ids[-1]) + 1
            assert [(s.position, s.tokens) for s in found] == brute(made, batch, low, high)
            assert [s.step for s in found] == [s.position // 2 + 1 for s in found]
            assert [s.sample for s in found] == made.numbers(0, made.num_samples)[
                [s.position for s in found]
            ].tolist()
            for epoch in range(4):
                assert made.when(name, number, epoch) == [s for s in found if s.epoch == epoch]
            middle = (len(ids) // 3, 2 * len(ids) // 3 + 1)
            part = made.when(name, number, tokens=middle)
            assert [(s.position, s.tokens) for s in part] == brute(
                made, batch, low + middle[0], low + middle[1]
            )


def test_every_token_of_a_document_is_seen_once_an_epoch(loader):
    made = loader(10, epochs={"a": 4})
    for number, size in enumerate(LENGTHS):
        for epoch in range(4):
            assert sum(s.tokens for s in made.when("a", number, epoch)) == size


def test_documents_that_do_not_exist(loader):
    made = loader(epochs={"a": 1})
    with pytest.raises(InputError, match="no source 'b' in this run; valid: a"):
        made.when("b", 0)
    for number in (-1, 7):
        with pytest.raises(InputError, match=f"source 'a' has no document {number}; it has 7"):
            made.when("a", number)


def test_fingerprints(loader):
    base = {"epochs": {"a": 4, "b": 1}}
    made = [
        loader(**base), loader(**base, skip=[[3, 4]]), loader(**base, document_boundaries=True),
        loader(phases=[{"epochs": {"a": 4, "b": 1}, "until_step": 3}]),
        loader(phases=[{"epochs": {"a": 4}}, {"epochs": {"b": 1}}]),
        loader(phases=[{"epochs": {"b": 1}}, {"epochs": {"a": 4}}]),
        loader(phases=[{"epochs": {"b": 1}}, {"epochs": {"a": 4}, "document_boundaries": True}]),
    ]  # fmt: skip
    assert len({each.fingerprint for each in made}) == len(made)
    assert loader(phases=[base]).fingerprint == made[0].fingerprint
    assert loader(**base, skip=[[3, 3], [4, 4]]).fingerprint == made[1].fingerprint


def test_the_prefix_tells_the_past_from_the_future(loader):
    table = {"a": 4, "b": 1}
    one = loader(epochs=table, sequences=4)
    same_past = [
        loader(epochs=table, sequences=4, skip=[[40, 50]]),
        loader(phases=[{"epochs": table, "until_step": 10}, {"epochs": {"c": 1}}], sequences=4),
        loader(phases=[{"epochs": table}, {"epochs": {"c": 1}}], sequences=4, windows={"c": 3}),
    ]
    other_past = [
        loader(epochs=table, sequences=4, skip=[[39, 50]]),
        loader(phases=[{"epochs": table, "until_step": 9}, {"epochs": {"c": 1}}], sequences=4),
        loader(epochs=table, sequences=4, document_boundaries=True),
        loader(epochs=table, sequences=4, windows={"a": 3}),
    ]
    for made in same_past:
        assert made.prefix(40) == one.prefix(40)
        assert np.array_equal(made.samples(0, 40), one.samples(0, 40))
    for made in other_past:
        assert made.prefix(40) != one.prefix(40)
