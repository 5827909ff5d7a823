"""What checkpoints rely on: the order and the fingerprints of runs that began before phases existed.

The numbers were written down by the first version of the order. They may change only with a new format."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest

from stablelm.config.mixture import DataConfig
from stablelm.data import Loader, Mixture

TABLES = {
    "one": ({"a": 10}, {"a": 7}, 1234),
    "three": ({"code": 333, "prose": 100, "web": 77}, {"code": 1, "prose": 4, "web": Fraction(3, 2)}, 1),
    "many blocks": (
        {"a": 150_000, "b": 3, "c": 2, "d": 1, "e": 4000},
        {"a": 2, "b": 1, "c": Fraction(1, 2), "d": 1, "e": 5},
        1234,
    ),
    "fourteen": (
        {f"s{i:02}": 777 + 997 * i * i for i in range(14)},
        {f"s{i:02}": Fraction(2 + i, 3) for i in range(14)},
        99,
    ),
}
DIGESTS = {
    "one": "33981556d7a7660c",
    "three": "6ab6ae0ae4cf0805",
    "many blocks": "43d66363c05d6946",
    "fourteen": "2acd616a3a273e83",
}
SAMPLES, FINGERPRINT = "7804ad5188208dbb", "a094de89d23d662e"


@pytest.mark.parametrize(("name", "digest"), DIGESTS.items())
def test_the_order_of_one_table(name, digest):
    mixture = Mixture(*TABLES[name])
    order = np.stack(mixture.address(np.arange(mixture.num_samples)))
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_the_samples_and_the_fingerprint_of_a_loader(make_dataset, split):
    dataset = make_dataset(a=split(1000, [7, 1, 30, 2, 2, 41, 17]), b=split(5000, [333, 50]))
    data = DataConfig(path=str(dataset.path), epochs={"b": "7/3", "a": 4}, windows={"b": 40})
    loader = Loader(dataset, data, 8, 1234)
    samples = loader.samples(0, loader.num_samples)
    assert hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()[:16] == SAMPLES
    assert loader.fingerprint[:16] == FINGERPRINT
