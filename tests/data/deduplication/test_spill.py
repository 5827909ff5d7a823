"""Numbers that wait for their bucket: what goes in comes out, and damage is noticed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.data.deduplication.spill import (
    bucket_count,
    gather_bucket,
    read_bucket,
    read_spill,
    write_spill,
)

TOP = (1 << 64) - 1


def records(*rows, columns=2):
    return np.array(rows, np.uint64).reshape(-1, columns)


@settings(max_examples=50)  # each writes a file
@given(
    st.lists(st.tuples(st.integers(0, TOP), st.integers(0, TOP)), max_size=50),
    st.one_of(st.integers(1, 20), st.just(1000)),
)
def test_every_record_is_in_one_bucket_in_order(tmp_path_factory, rows, buckets):
    path = tmp_path_factory.mktemp("spill") / "a.x"
    write_spill(path, records(*rows), buckets)
    parts = [read_bucket(path, bucket, 2) for bucket in range(buckets)]
    assert [tuple(row) for part in parts for row in part.tolist()] == sorted(rows)
    for bucket, part in enumerate(parts):
        assert all((row >> 32) * buckets >> 32 == bucket for row in part[:, 0].tolist())


def test_shards_are_put_together_whatever_their_order(tmp_path):
    rows = np.random.default_rng(1).integers(0, TOP, (1000, 3), np.uint64)
    for name, parts in (("one", [rows]), ("three", np.array_split(rows[::-1], 3))):
        for number, part in enumerate(parts):
            write_spill(tmp_path / name / f"{number}.x", part, 8)
    one, three = ([gather_bucket(tmp_path / name, ".x", b, 3) for b in range(8)] for name in ("one", "three"))
    assert all((a == b).all() for a, b in zip(one, three, strict=True)) and sum(map(len, one)) == 1000


def test_nothing_at_all(tmp_path):
    write_spill(tmp_path / "a.x", records(), 3)
    assert [len(part) for part in read_spill(tmp_path / "a.x", 2)] == [0, 0, 0]


@pytest.fixture
def damaged(tmp_path):
    """`damaged(change)` → a spill file of 5 records whose bytes `change` has replaced."""

    def make(change):
        path = tmp_path / "shard-7.x"
        write_spill(path, records(*((i << 61, i) for i in range(5))), 4)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


@pytest.mark.parametrize("left", [0, 3, 16, 31, 40, 83, 84, 100, 163])
def test_a_cut_file(damaged, left):
    path = damaged(lambda data: data[:left])
    with pytest.raises(InputError, match=r"shard-7\.x: truncated.*Remove it and run again"):
        for bucket in range(4):
            read_bucket(path, bucket, 2)
    with pytest.raises(InputError, match=r"shard-7\.x: "):
        gather_bucket(path.parent, ".x", 0, 2)


def test_any_changed_byte_is_noticed(damaged):
    size = damaged(lambda data: data).stat().st_size
    assert size == 164
    for place in range(size):
        path = damaged(lambda data, at=place: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(InputError, match=r"shard-7\.x: "):
            for bucket in range(4):
                read_bucket(path, bucket, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data + b"x", "longer than its header says"),
        (lambda data: b"something else" * 20, "not a spill file"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "corrupt: bucket 2 does not have its checksum"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "corrupt: it claims"),
    ],
)
def test_other_damage(damaged, change, message):
    path = damaged(change)
    with pytest.raises(InputError, match=message):
        for bucket in range(4):
            read_bucket(path, bucket, 2)


def test_files_of_another_run(tmp_path):
    with pytest.raises(InputError, match=r"no \*\.x files"):
        gather_bucket(tmp_path, ".x", 0, 2)
    write_spill(tmp_path / "a.x", records((1, 2)), 4)
    write_spill(tmp_path / "b.x", records((1, 2)), 5)
    with pytest.raises(InputError, match=r"b\.x: holds 5 buckets of 2 columns, not 4 of 2"):
        gather_bucket(tmp_path, ".x", 0, 2)
    with pytest.raises(InputError, match=r"a\.x: holds 4 buckets of 2 columns, not 4 of 3"):
        read_bucket(tmp_path / "a.x", 0, 3)
    with pytest.raises(InputError, match="has no bucket 4, only 0 to 3"):
        gather_bucket(tmp_path, ".x", 4, 2)
    with pytest.raises(InputError, match=r"gone\.x: cannot be read"):
        read_bucket(tmp_path / "gone.x", 0, 2)


def test_the_number_of_buckets_follows_the_memory():
    assert bucket_count(0) == bucket_count(1000) == 1
    assert bucket_count(10**9, columns=2, memory=1 << 30) == 60
    assert bucket_count(10**9, columns=2, memory=1 << 29) == 120
    assert bucket_count(1 << 60) == 1 << 20
