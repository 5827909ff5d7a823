"""Windows: each token a target once an epoch, the remainder named, ids a function of the number alone."""

from collections import Counter

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.config.mixture import DataConfig
from stablelm.data import Loader

LENGTHS = [7, 1, 30, 2, 2, 41, 17]  # 100 tokens


def loader(dataset, epochs, length=8, seed=1, **data):
    return Loader(dataset, DataConfig(path=str(dataset.path), epochs=epochs, **data), length, seed)


def rows(made):
    return made.samples(0, made.num_samples)


@pytest.mark.parametrize("length", [2, 3, 7, 8, 10, 49, 50, 51, 99, 100])
@pytest.mark.parametrize("epochs", [1, 4])
def test_every_token_is_a_target_once_an_epoch(make_dataset, split, length, epochs):
    dataset = make_dataset(a=split(1000, LENGTHS))
    made = loader(dataset, {"a": epochs}, length)
    batch = rows(made)
    windows = 100 // length
    assert batch.shape == (epochs * windows, length + 1)
    assert batch.dtype == np.int64
    following = {token: 1000 + (token - 1000 + 1) % 100 for token in range(1000, 1100)}
    entries = made.accounting()["a"]["epochs"]
    assert len(entries) == epochs
    for epoch, entry in enumerate(entries):
        part = batch[epoch * windows : (epoch + 1) * windows]
        for row in part.tolist():
            assert [following[token] for token in row[:-1]] == row[1:], (
                "the stream, its end joined to its beginning"
            )
        targets, inputs = Counter(part[:, 1:].ravel().tolist()), Counter(part[:, :-1].ravel().tolist())
        assert max(targets.values()) == max(inputs.values()) == 1
        assert len(targets) == len(inputs) == windows * length
        missing = Counter()
        for token in set(range(1000, 1100)) - set(targets):
            missing[dataset.train("a").document_at(token - 1000)] += 1
        listed = Counter()
        for about in entry["documents"]:
            listed[about["document"]] += about["tokens"]
            assert about["id"] == f"a-train-{about['document']}"
        assert listed == missing
        assert entry["remainder"] == sum(missing.values()) == 100 - windows * length < length
        assert (entry["windows"], entry["unread_windows"]) == (windows, 0)


def test_epochs_are_cut_at_different_places(make_dataset, split):
    made = loader(make_dataset(a=split(1000, LENGTHS)), {"a": 6}, 16)
    starts = [frozenset(made.samples(6 * epoch, 6)[:, 0].tolist()) for epoch in range(6)]
    assert len(set(starts)) > 3
    unused = [
        [(d["document"], d["tokens"]) for d in e["documents"]] for e in made.accounting()["a"]["epochs"]
    ]
    assert len(set(map(tuple, unused))) > 1


def test_a_mixture_of_whole_and_broken_epochs(make_dataset, split):
    dataset = make_dataset(
        prose=split(1000, LENGTHS), code=split(5000, [400, 3]), web=split(9000, [60, 60, 5])
    )
    made = loader(dataset, {"web": 1.5, "prose": 4, "code": 1}, 10)
    batch = rows(made)
    owner = np.where(batch[:, 0] < 5000, "prose", np.where(batch[:, 0] < 9000, "code", "web"))
    assert Counter(owner.tolist()) == {"prose": 40, "code": 40, "web": 18}
    assert ((batch // 1000) == (batch[:, :1] // 1000)).all(), "a window holds one source"
    targets = Counter(batch[owner == "prose"][:, 1:].ravel().tolist())
    assert targets == dict.fromkeys(range(1000, 1100), 4)
    web = Counter(batch[owner == "web"][:, 1:].ravel().tolist())
    assert set(web.values()) <= {1, 2}
    assert sum(web.values()) == 180
    entry = made.accounting()["web"]["epochs"][1]
    assert (entry["windows"], entry["unread_windows"], entry["remainder"]) == (6, 6, 5)
    assert made.table() == {
        "code": {"epochs": "1", "windows": 40, "samples": 40},
        "prose": {"epochs": "4", "windows": 10, "samples": 40},
        "web": {"epochs": "1.5", "windows": 12, "samples": 18},
    }


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 8])
def test_the_ids_of_a_step_do_not_depend_on_how_the_batch_is_factored(make_dataset, split, micro):
    made = loader(make_dataset(a=split(1000, LENGTHS), b=split(5000, [333])), {"a": 4, "b": "7/3"})
    again = loader(made.dataset, {"b": "7/3", "a": 4})
    step = 24
    for first in range(0, made.num_samples - step, step):
        whole = made.samples(first, step)
        pieces = [again.samples(first + i, min(micro, step - i)) for i in range(0, step, micro)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_longer_runs_and_other_companions_keep_a_source_s_order(make_dataset, split):
    dataset = make_dataset(a=split(1000, LENGTHS), b=split(5000, [333]))

    def order(epochs):
        batch = rows(loader(dataset, epochs))
        return batch[batch[:, 0] < 5000].tolist()

    assert order({"a": 4})[:12] == order({"a": 1})
    assert order({"a": 4}) == order({"b": 3, "a": 4})


def test_the_state_is_one_number(make_dataset, split):
    made = loader(make_dataset(a=split(1000, LENGTHS), b=split(5000, [333])), {"a": 4, "b": 1})
    whole = rows(made)
    for first in range(0, made.num_samples + 1, 11):
        assert np.array_equal(
            loader(made.dataset, {"a": 4, "b": 1}).samples(first, made.num_samples - first), whole[first:]
        )


def test_seen(make_dataset, split):
    made = loader(make_dataset(a=split(1000, LENGTHS), b=split(5000, [333])), {"a": 4, "b": 1.5})
    whole = rows(made)
    for n in (0, 1, 13, 50, made.num_samples):
        a = int((whole[:n, 0] < 5000).sum())
        assert made.seen(n) == {
            "a": {"samples": a, "epochs": a / 12, "tokens": 8 * a},
            "b": {"samples": n - a, "epochs": (n - a) / 41, "tokens": 8 * (n - a)},
        }
    assert made.seen(made.num_samples + 5) == made.seen(made.num_samples), "a last step may be part empty"
    assert made.seen(made.num_samples)["a"]["epochs"] == 4.0


def test_windows_limit_a_source_to_its_beginning(make_dataset, split):
    dataset = make_dataset(a=split(1000, LENGTHS), b=split(5000, [50]))
    made = loader(dataset, {"a": 3, "b": 1}, windows={"a": 5})
    batch = rows(made)
    targets = Counter(batch[batch[:, 0] < 5000][:, 1:].ravel().tolist())
    assert targets == dict.fromkeys(range(1000, 1040), 3), (
        "the first 5 × 8 tokens, each three times, nothing left over"
    )
    account = made.accounting()
    assert account["a"]["tokens"] == 100
    assert (account["a"]["stream"], account["a"]["beyond_windows"], account["a"]["from_document"]) == (
        40,
        60,
        4,
    )
    assert [entry["remainder"] for entry in account["a"]["epochs"]] == [0, 0, 0]
    assert account["b"]["beyond_windows"] == 0
    assert account["b"]["from_document"] is None
    assert loader(dataset, {"a": 1}, windows={"a": 12}).fingerprint != loader(dataset, {"a": 1}).fingerprint


@pytest.mark.parametrize(
    ("epochs", "length", "data", "message"),
    [
        ({"a": 1}, 101, {}, "source 'a': 100 training tokens are fewer than one window of 101"),
        ({"none": 1}, 8, {}, "source 'none': 0 training tokens"),
        ({"aa": 1}, 8, {}, "no source 'aa'; did you mean 'a'"),
        ({"a": 1}, 8, {"windows": {"a": 13}}, "13 windows of 'a' are asked for; its 100 tokens make 1 to 12"),
        ({"a": 1}, 8, {"windows": {"a": 0}}, "0 windows of 'a'"),
        ({"a": 0.01}, 8, {}, "source 'a': 1/100 epochs of 12 windows are not half a window"),
    ],
)
def test_refusals(make_dataset, split, epochs, length, data, message):
    dataset = make_dataset(a=split(1000, LENGTHS), none=[])
    with pytest.raises(InputError, match=message):
        loader(dataset, epochs, length, **data)


def test_one_window_that_is_the_whole_stream(make_dataset, split):
    made = loader(make_dataset(a=split(0, [8])), {"a": 3}, 8)
    for row in rows(made).tolist():
        assert row[0] == row[-1]
        assert sorted(row[:-1]) == list(range(8))


def test_samples_that_do_not_exist(make_dataset, split):
    made = loader(make_dataset(a=split(1000, LENGTHS)), {"a": 1})
    for first, count in ((-1, 1), (0, 13), (12, 1), (3, -1)):
        with pytest.raises(IndexError, match="of 12"):
            made.samples(first, count)
    assert made.samples(12, 0).shape == (0, 9)


def test_the_fingerprint_is_of_all_that_decides_a_sample(make_dataset, split):
    dataset = make_dataset(a=split(1000, LENGTHS), b=split(5000, [333]))
    base = loader(dataset, {"a": 4, "b": 1.5}).fingerprint
    assert loader(dataset, {"b": "3/2", "a": "4"}).fingerprint == base
    same = make_dataset(folder="copy", a=split(1000, LENGTHS), b=split(5000, [333]))
    assert loader(same, {"a": 4, "b": 1.5}).fingerprint == base
    other = make_dataset(folder="other", a=split(1000, LENGTHS), b=split(5001, [333]))
    different = [
        loader(other, {"a": 4, "b": 1.5}), loader(dataset, {"a": 4, "b": 1}), loader(dataset, {"a": 4}),
        loader(dataset, {"a": 4, "b": 1.5}, length=9), loader(dataset, {"a": 4, "b": 1.5}, seed=2),
        loader(dataset, {"a": 4, "b": 1.5}, windows={"b": 40}),
    ]  # fmt: skip
    assert len({base, *(made.fingerprint for made in different)}) == 7
