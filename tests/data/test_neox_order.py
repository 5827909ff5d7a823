"""GPT-NeoX's order bit for bit, beside an implementation that shares no line with ours."""

import shutil

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.config.mixture import DataConfig
from stablelm.config.run import run_config
from stablelm.data import TokenFileWriter
from stablelm.data.mixture import BLOCK
from stablelm.data.neox_files import NeoxFiles
from stablelm.data.neox_order import NeoxLoader, _split
from stablelm.data.run_data import open_data
from tests.data import neox_reference

CORPORA = {
    "many": [7, 1, 30, 2, 2, 41, 17, 5, 5, 64],
    "one document": [100],
    "long documents": [300, 3, 250, 1],
    "tiny": [3],
    "empty documents": [0, 4, 0, 0, 31, 0],
}


@pytest.fixture
def corpus(tmp_path, small_tokenizer):
    """`corpus(lengths, …)` writes token files and returns (paths, documents); ids tell every place apart."""

    def write(*all_lengths):
        paths, datasets, token = [], [], 1
        for number, lengths in enumerate(all_lengths):
            documents = []
            for length in lengths:
                documents.append(list(range(token, token + length)))
                token += length
            with TokenFileWriter(tmp_path / f"part{number}", vocab_size=100_000) as writer:
                for document in documents:
                    writer.add(document)
            paths.append(str(tmp_path / f"part{number}"))
            datasets.append(documents)
        return paths, datasets

    return write


@pytest.fixture
def loader(tmp_path, small_tokenizer):
    def make(paths, iterations, length=8, sequences=1, seed=1234, weights=(), split=None, **keys):
        data = DataConfig(
            order="neox",
            neox={"paths": paths, "weights": list(weights), "train_iters": iterations, "split": split,
                  "tokenizer": str(small_tokenizer)},
            **keys,
        )  # fmt: skip
        return NeoxLoader(NeoxFiles(data.neox), data, length, seed, sequences, tmp_path / "index")

    return make


def same(ours, theirs):
    return np.array_equal(ours, theirs) and ours.dtype == theirs.dtype


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize(
    ("length", "iterations", "seed"), [(8, 40, 1234), (5, 3, 7), (64, 11, 0), (2, 150, 1)]
)
def test_the_indices_of_one_source(corpus, loader, name, length, iterations, seed):
    paths, [documents] = corpus(CORPORA[name])
    made = loader(paths, iterations, length, seed=seed)
    wanted = int(np.ceil(iterations * 1.005))
    order, rows, shuffled = neox_reference.indices(
        [len(d) for d in documents], range(len(documents)), wanted, length, seed
    )
    [index] = made.indices
    assert same(index.doc_idx, order)
    assert same(index.sample_idx, rows)
    assert same(index.shuffle_idx, shuffled)
    assert index.epochs == len(order) / len(documents)
    expected = neox_reference.blended([documents], [1.0], iterations, length, seed)
    assert made.samples(0, made.num_samples).tolist() == [tokens for _, _, tokens in expected]


@pytest.mark.parametrize(
    "weights", [(), (1, 1, 1, 1), (0.5, 0.25, 0.125, 0.125), (3, 0.1, 7.7, 1), (0.3, 0.3, 0.3, 0.1)]
)
@pytest.mark.parametrize(("iterations", "sequences"), [(50, 4), (333, 1), (1, 2)])
def test_several_sources(corpus, loader, weights, iterations, sequences):
    lengths = [CORPORA[name] for name in ("many", "one document", "long documents", "tiny")]
    paths, datasets = corpus(*lengths)
    made = loader(paths, iterations, sequences=sequences, weights=weights)
    expected = neox_reference.blended(datasets, weights or [1.0] * 4, iterations * sequences, 8, 1234)
    assert made.num_samples == len(expected)
    assert made.samples(0, made.num_samples).tolist() == [tokens for _, _, tokens in expected]
    for first in (0, len(expected) // 2, len(expected)):
        counts = [sum(source == number for source, _, _ in expected[:first]) for number in range(4)]
        assert list(made.drawn(first).values()) == counts
    assert {name: about["samples"] for name, about in made.table().items()} == made.drawn(made.num_samples)


def test_blending_over_several_blocks(corpus, loader):
    """Equal weights tie at each step; the first wins, also where a block begins."""
    paths, _ = corpus([40], [41], [43])
    made = loader(paths, 2 * BLOCK + 100, length=2, weights=(1, 1, 0.7))
    steps = neox_reference.blending([1 / 2.7, 1 / 2.7, 0.7 / 2.7], 2 * BLOCK + 100)
    for first in (0, BLOCK - 50, 2 * BLOCK - 50):
        numbers = np.arange(first, first + 100)
        source, row = made.address(numbers)
        assert source.tolist() == [s for s, _ in steps[first : first + 100]]
        ranks = [made.indices[s].shuffle_idx[n] for s, n in steps[first : first + 100]]
        assert row.tolist() == ranks


@pytest.mark.parametrize(
    ("text", "size"),
    [("969, 30, 1", 1000), ("969,30,1", 7), ("8/1/1", 10), ("1", 13), ("995,5", 101), ("1,1,1", 5)],
)
def test_the_train_part_of_a_split(text, size):
    assert _split(text, size) == neox_reference.split_of(text, size)[1]


def test_a_single_path_with_a_split(corpus, loader):
    paths, [documents] = corpus(CORPORA["many"])
    made = loader(paths, 60, split="7,2,1")
    sizes = [len(d) for d in documents]
    arrays = neox_reference.indices(sizes, range(7), 60, 8, 1234)  # no 0.5 % more, no blending
    assert same(made.indices[0].doc_idx, arrays[0])
    expected = [neox_reference.sample(documents, *arrays, number) for number in range(made.num_samples)]
    assert made.samples(0, made.num_samples).tolist() == expected
    predicted = {n: list(made.predicted(np.array([n]))) for n in range(made.num_samples)}
    assert all(sum(count for *_, count in found) == 8 for found in predicted.values())
    for document in range(7):
        seen = {s.sample: 0 for s in made.when(paths[0], document)}
        for sighting in made.when(paths[0], document):
            seen[sighting.sample] += sighting.tokens
        counts = {n: sum(c for _, d, c in found if d == document) for n, found in predicted.items()}
        assert {n: count for n, count in counts.items() if count} == seen
    account = made.accounting()[paths[0]]
    assert (account["from_document"], account["beyond_windows"]) == (7, sum(sizes[7:]))


def test_the_index_is_kept_and_tells_other_data(corpus, loader, tmp_path):
    paths, _ = corpus(CORPORA["many"])
    first = loader(paths, 30)
    before = first.samples(0, 30).tolist()
    assert len(list((tmp_path / "index").glob("blending-*.npy"))) == 1
    [folder] = (tmp_path / "index").glob("train_*")
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(written) == {"doc_idx.npy", "sample_idx.npy", "shuffle_idx.npy"}
    assert loader(paths, 30).samples(0, 30).tolist() == before
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    for change in ({"iterations": 300}, {"seed": 5}, {"length": 9}):
        other = loader(paths, **{"iterations": 30, **change})
        other.samples(0, 3)
        assert other.fingerprint != first.fingerprint
    assert len(list((tmp_path / "index").glob("train_*"))) == 4
    blendings = {*(tmp_path / "index").glob("blending-*")}
    data = bytearray((tmp_path / "part0.bin").read_bytes())
    data[10] ^= 1
    (tmp_path / "part0.bin").write_bytes(data)
    changed = loader(paths, 30)
    assert changed.fingerprint != first.fingerprint
    changed.samples(0, 1)
    assert len(list((tmp_path / "index").glob("train_*"))) == 5
    [kept] = {*(tmp_path / "index").glob("blending-*")} - blendings
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(InputError, match=r"blending-.*npy: damaged .*made again"):
        loader(paths, 30).samples(0, 1)


@pytest.mark.parametrize("damage", ["cut", "gone", "text"])
def test_a_damaged_index_is_named(corpus, loader, tmp_path, damage):
    paths, _ = corpus(CORPORA["many"])
    loader(paths, 30).samples(0, 1)
    [folder] = (tmp_path / "index").glob("train_*")
    path = folder / "sample_idx.npy"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40] if damage == "cut" else b"nothing")
    with pytest.raises(InputError, match=r"sample_idx.npy: damaged .*made again"):
        loader(paths, 30).samples(0, 1)
    shutil.rmtree(folder)
    loader(paths, 30).samples(0, 1)


def test_documents_and_when_agree_with_a_search(corpus, loader):
    paths, datasets = corpus(CORPORA["many"], CORPORA["long documents"])
    made = loader(paths, 70, sequences=2, weights=(2, 1), document_boundaries=True, skip=[(5, 9), (100, 120)])
    batch, ids = made.samples(0, made.num_samples), made.document_ids(0, made.num_samples)
    owner = {token: (s, d) for s, ds in enumerate(datasets) for d, doc in enumerate(ds) for token in doc}
    begins = {doc[0] for ds in datasets for doc in ds}
    for row, numbers in zip(batch[:, :-1].tolist(), ids.tolist(), strict=True):
        for at in range(1, len(row)):
            assert (numbers[at] != numbers[at - 1]) == (row[at] in begins)
    for source, documents in enumerate(datasets):
        for number in range(len(documents)):
            expected = []
            for position, row in enumerate(batch[:, 1:].tolist()):
                if count := sum(owner[token] == (source, number) for token in row):
                    expected.append((position, position // 2 + 1, count))
            found = made.when(paths[source], number)
            together = {}
            for sighting in found:  # a document that follows itself is two occurrences in one sample
                key = (sighting.position, sighting.step)
                together[key] = together.get(key, 0) + sighting.tokens
            assert [(*key, count) for key, count in together.items()] == expected


def test_a_run_reads_it(corpus, tmp_path, small_tokenizer):
    paths, [documents] = corpus(CORPORA["many"])
    neox = {"paths": [f"{paths[0]}.bin"], "train_iters": 9, "tokenizer": str(small_tokenizer)}
    values = {"out": str(tmp_path / "run"), "data": {"order": "neox", "neox": neox},
              "batch": {"sequences": 3, "sequence_length": 8}}  # fmt: skip
    files, samples = open_data(run_config(values))
    expected = neox_reference.blended([documents], [1.0], 27, 8, 1234)
    assert samples.samples(0, 27).tolist() == [tokens for _, _, tokens in expected]
    assert files.sources == ()
    assert files.summary()["sources"][paths[0]]["train"] == {"documents": 10, "tokens": 174}
    assert (tmp_path / "run" / "neox-order").is_dir()


@pytest.mark.parametrize(
    ("neox", "message"),
    [
        ({"paths": ["{0}", "{0}x"]}, r"part0x\.bin: no such file; data\.neox\.paths"),
        ({"tokenizer": "/nowhere"}, r"/nowhere: no such file"),
        ({"split": "0,1"}, r"data\.neox\.split: '0,1' leaves no training documents"),
        ({"split": "most"}, r"data\.neox\.split: 'most' is not a list of shares"),
        ({"paths": ["{1}"]}, r"part1: no tokens to train on"),
    ],
)
def test_refusals(corpus, tmp_path, small_tokenizer, neox, message):
    paths, _ = corpus([7, 1, 30], [0, 0])
    neox = {key: [p.format(*paths) for p in v] if key == "paths" else v for key, v in neox.items()}
    neox = {"paths": paths[:1], "train_iters": 4, "tokenizer": str(small_tokenizer), **neox}
    values = {"out": str(tmp_path / "run"), "data": {"order": "neox", "neox": neox}}
    with pytest.raises(InputError, match=message):
        open_data(run_config({**values, "batch": {"sequence_length": 8}}))
