"""Nearly equal documents: the signatures, who is compared, who is found, whatever the shards."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.deduplication import NearDeduplication
from stablelm.data.deduplication.bands import agreements, bands_of
from stablelm.data.deduplication.components import components, dropped, write_edges
from stablelm.data.deduplication.near import (
    bucket_edges,
    hash_functions,
    signatures,
    similarity,
    spill_bands,
)
from stablelm.data.deduplication.signature_files import SignatureFiles
from stablelm.data.texts import Texts
from stablelm.kernels.text.minhash import EMPTY, lower

DEFAULT = NearDeduplication()


def shingles(text, n=5):
    """The set of word n-grams, by Python."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def jaccard(a, b, n=5):
    a, b = shingles(a, n), shingles(b, n)
    return len(a & b) / len(a | b) if a | b else 0.0


def edges(folder, shards, chosen=DEFAULT, buckets=3, scopes=None):
    """{shard: {number: text}} → the pairs found, sorted."""
    for name, documents in shards.items():
        found = signatures(Texts.of(list(documents.values())), chosen)
        numbers = np.array(list(documents), np.uint64)
        spill_bands(folder, name, numbers, found, chosen, buckets, (scopes or {}).get(name, ""))
    pairs = [tuple(edge) for b in range(buckets) for edge in bucket_edges(folder, b, chosen).tolist()]
    return sorted(set(pairs))


def prose(seed, words=200):
    return [f"w{n}" for n in np.random.default_rng(seed).integers(0, 5000, words)]


def edited(words, share, seed=1):
    """`share` of the words replaced, evenly spread."""
    words = list(words)
    for place in range(0, len(words), round(1 / share)):
        words[place] = f"x{seed}-{place}"
    return words


@pytest.fixture(scope="module")
def planted(shared):
    """(texts, {pair: kind}) of the corpus of planted duplicates; a pair is two places, ascending."""
    raw = shared / "data" / "corpus" / "raw"
    records = [json.loads(line) for line in (raw / "near_duplicates.jsonl").read_bytes().splitlines()]
    pairs = [json.loads(line) for line in (raw / "near_duplicates.pairs.jsonl").read_bytes().splitlines()]
    place = {record["id"]: number for number, record in enumerate(records)}
    kinds = {tuple(sorted((place[p["a"]], place[p["b"]]))): p["kind"] for p in pairs}
    return [record["text"] for record in records], kinds


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_pairs_at_a_threshold_of_0_6(planted, tmp_path, verify, seed):
    texts, kinds = planted
    chosen = NearDeduplication(threshold=0.6, verify=verify, seed=seed)
    shards = {f"{k}": {n: texts[n] for n in range(k * 70, k * 70 + 70)} for k in range(5)}
    found = set(edges(tmp_path, shards, chosen))
    near = {pair for pair, kind in kinds.items() if kind == "near"}
    exact = {pair for pair, kind in kinds.items() if kind == "exact"}
    assert len(near) == 100 and len(near & found) / len(near) >= 0.95
    assert exact <= found
    assert len(found & set(kinds)) / len(found) >= 0.98


def test_planted_pairs_at_other_thresholds(planted, tmp_path):
    """At 0.8, one pair in a hundred is similar enough; at 0.7, 64."""
    texts, kinds = planted
    near = {pair for pair, kind in kinds.items() if kind == "near"}
    for threshold, least, most in ((0.8, 0, 12), (0.7, 50, 75)):
        chosen = NearDeduplication(threshold=threshold, hashes=256)
        found = edges(tmp_path / str(threshold), {"0": dict(enumerate(texts))}, chosen)
        assert least <= len(near & set(found)) <= most and set(found) <= set(kinds)


def test_signatures_are_those_of_the_written_formula():
    """Pair-multiply-shift in Python's unbounded integers."""
    grams = np.array([0, 1, (1 << 64) - 1, 0x0123456789ABCDEF, 1 << 32, 77], np.uint64)
    functions = hash_functions(NearDeduplication(hashes=16))
    least = np.full(16, EMPTY, np.uint64)
    lower(grams, functions, least)
    for k, (a0, a1, b) in enumerate(functions.T.tolist()):
        hashes = [((a0 + (g & 0xFFFFFFFF)) * (a1 + (g >> 32)) + b) % (1 << 64) >> 32 for g in grams.tolist()]
        assert least[k] == min(hashes)


def test_a_hash_function_is_pairwise_independent():
    """Over random functions, two keys collide in the top 8 bits once in 256, and bits are even."""
    rng, count = np.random.default_rng(5), 100_000
    a0, a1, b = rng.integers(0, 1 << 64, (3, count), np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(56)
    for x, y in ((0, 1), (0, 1 << 32), (5, (1 << 64) - 6), (1 << 63, 3 << 62)):
        one, other = (
            ((a0 + (np.uint64(k) & low)) * (a1 + (np.uint64(k) >> np.uint64(32))) + b) >> shift
            for k in (x, y)
        )
        assert (one == other).mean() == pytest.approx(1 / 256, abs=0.001)
        assert np.bincount(one.astype(int), minlength=256).std() < 3 * np.sqrt(count / 256)


words_of_few = st.lists(st.sampled_from("abcde"), max_size=30).map(" ".join)


@settings(max_examples=60)
@given(words_of_few, words_of_few, st.integers(1, 4))
def test_the_estimate_is_the_jaccard_similarity(one, other, n):
    chosen = NearDeduplication(words=n, hashes=4096)
    a, b = signatures(Texts.of([one, other]), chosen)
    exact = jaccard(one, other, n)
    if not one and not other:
        assert (a == EMPTY).all() and (b == EMPTY).all()
        return
    assert float(similarity(a, b)) == pytest.approx(
        exact, abs=4.5 * np.sqrt(exact * (1 - exact) / 4096) + 1e-9
    )


def test_a_signature_does_not_depend_on_its_neighbours_or_the_buffer():
    texts = ["", "a b", "x " * 5000 + "end", "", "日本語の文章です", " ".join(prose(1, 3000)), "a b"]
    together = signatures(Texts.of(texts), DEFAULT)
    for text, signature in zip(texts, together, strict=True):
        assert (signatures(Texts.of([text]), DEFAULT)[0] == signature).all()
    assert (together[1] == together[6]).all() and (together[0] == EMPTY).all()
    # Three pieces of 1,004 words or fewer: every n-gram across their borders is there.
    words = prose(2, 2600)
    grams = [" ".join(words[i : i + 5]) for i in range(len(words) - 4)]
    least = signatures(Texts.of(grams), DEFAULT).min(0)
    assert (signatures(Texts.of([" ".join(words)]), DEFAULT)[0] == least).all()


def test_documents_shorter_than_an_n_gram():
    found = signatures(Texts.of(["one two", "One, TWO!", "two one", "one two three", "!!! –", ""]), DEFAULT)
    assert (
        (found[0] == found[1]).all() and not (found[0] == found[2]).any() and not (found[0] == found[3]).any()
    )
    assert (found[4:] == EMPTY).all()


def test_documents_without_words_are_nobodys_duplicates(tmp_path):
    assert edges(tmp_path, {"0": {1: "", 2: "—", 3: "!!!", 4: "\n"}}) == []
    assert edges(tmp_path / "x", {"0": {}, "1": {5: "a b c d e f", 9: "a b, c d e f."}}) == [(5, 9)]


def test_unicode_spellings_are_one(tmp_path):
    text = "Der größte Teil der naïven ﬁnanciers blieb über Nacht in der Straße am Fluß"
    other = "DER GRÖSSTE TEIL DER NAI\u0308VEN FINANCIERS BLIEB U\u0308BER NACHT IN DER STRASSE AM FLUSS"
    assert edges(tmp_path, {"0": {1: text, 2: other}}) == [(1, 2)]


def test_the_lowest_number_stays_across_sources(tmp_path):
    base = prose(1)
    books = {10: " ".join(edited(base, 0.02)), 11: " ".join(prose(9))}
    web = {500: " ".join(base), 501: " ".join(prose(8)), 502: " ".join(base)}
    found = edges(tmp_path / "a", {"web": web, "books": books})
    assert (10, 500) in found and {n for pair in found for n in pair} == {10, 500, 502}
    write_edges(tmp_path / "e", np.array(found, np.uint64))
    assert dropped(*components([tmp_path / "e"])).tolist() == [500, 502]
    within = edges(tmp_path / "b", {"web": web, "books": books}, scopes={"web": "web", "books": "books"})
    assert within == [(500, 502)]


def test_neither_shards_nor_their_order_nor_the_buckets_matter(planted, tmp_path):
    texts = planted[0]
    chosen = NearDeduplication(threshold=0.6)
    everything = dict(enumerate(texts))
    one = edges(tmp_path / "one", {"0": everything}, chosen, buckets=1)
    cuts = [0, 3, 100, 180, 350]
    parts = [{n: texts[n] for n in range(a, b)} for a, b in itertools.pairwise(cuts)]
    for buckets, names in ((7, "dbca"), (64, "abcd")):
        shards = dict(reversed(list(zip(names, parts, strict=True))))
        assert edges(tmp_path / str(buckets), shards, chosen, buckets) == one
    assert len(one) > 100


@pytest.mark.parametrize("verify", [True, False])
def test_against_brute_force(tmp_path, verify):
    """Families of edited copies: with bands that miss nothing above 0.5, the pairs are those whose estimate
    reaches the threshold, no more and no less."""
    chosen = NearDeduplication(threshold=0.6, hashes=200, bands=66, rows=3, verify=verify)
    texts = {}
    for family in range(12):
        base = prose(family, 150)
        for member, share in enumerate((None, 0.01, 0.02, 0.04, 0.07)):
            texts[family * 10 + member] = " ".join(base if share is None else edited(base, share, member))
    found = edges(tmp_path, {"0": texts}, chosen)
    signed = dict(zip(texts, signatures(Texts.of(list(texts.values())), chosen), strict=True))
    pairs = list(itertools.combinations(texts, 2))
    wanted = agreements(0.6, 200)
    estimated = {(a, b) for a, b in pairs if (signed[a] == signed[b]).sum() >= wanted}
    truly = {(a, b) for a, b in pairs if jaccard(texts[a], texts[b]) >= 0.6}
    assert len(truly ^ estimated) <= 0.25 * len(truly) and len(truly) > 40
    if verify:
        assert set(found) == estimated
    else:  # a chain, so the clusters are wider, and a family stays one
        assert all(a // 10 == b // 10 for a, b in found) and len({a // 10 for a, _ in found}) == 12


def test_a_group_beyond_its_limit_is_compared_with_its_first_members(tmp_path):
    """400 documents that share half their text: with one band of one row they meet, and none is one."""
    chosen = NearDeduplication(threshold=0.9, hashes=64, bands=64, rows=1)
    shared_part = prose(1, 150)
    texts = {n: " ".join(shared_part + prose(100 + n, 150)) for n in range(400)}
    texts[400], texts[401] = texts[0], texts[399]  # the twin of an early one, and of a late one
    found = edges(tmp_path, {"0": texts}, chosen, buckets=1)
    assert (0, 400) in found and set(found) <= {(0, 400), (399, 401)}


def test_many_equal_documents_cost_one_comparison_each(tmp_path):
    text = " ".join(prose(4, 60))
    shards = {f"{k}": dict.fromkeys(range(k * 1000, k * 1000 + 1000), text) for k in range(40)}
    found = edges(tmp_path, shards, NearDeduplication(hashes=16, bands=2, rows=8), buckets=1)
    assert found == [(0, n) for n in range(1, 40_000)]


@pytest.fixture
def spilled(tmp_path):
    """A folder with two shards of two documents each that are one; settings are the default's."""
    text = " ".join(prose(4, 60))
    assert len(edges(tmp_path, {"web-0": {1: text, 2: text}, "web-1": {5: text, 6: text}}, buckets=1)) == 3
    return tmp_path


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("web-1.signatures", lambda d: d[:-1], r"web-1\.signatures: truncated: 1,088 bytes promised, 1,087"),
        ("web-1.signatures", lambda d: d[:20], r"web-1\.signatures: truncated within its header"),
        ("web-1.signatures", lambda d: b"", r"web-1\.signatures: truncated within its header"),
        ("web-1.signatures", lambda d: d + b"1", r"web-1\.signatures: longer than its header"),
        ("web-1.signatures", lambda d: b"x" + d[1:], r"web-1\.signatures: not a signature file"),
        ("web-1.signatures", lambda d: d[:40] + b"\x04" + d[41:], r"no \*\.signatures file has document 5"),
        (
            "web-1.signatures",
            lambda d: d[:99] + b"\x04" + d[100:],
            r"web-1\.signatures: corrupt: .*document 5 ",
        ),
        ("web-1.signatures", lambda d: d[:-1] + b"\x04", r"web-1\.signatures: corrupt: .*document 6 "),
        ("web-0.bands", lambda d: d[:-1], r"web-0\.bands: truncated"),
        ("web-0.bands", lambda d: d[:-1] + b"\x77", r"web-0\.bands: corrupt: bucket 0"),
    ],
)
def test_damaged_files_are_named(spilled, name, change, message):
    path = spilled / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        bucket_edges(spilled, 0, DEFAULT)


def test_files_of_two_runs_are_refused(spilled):
    with pytest.raises(InputError, match=r"has 128 hashes a document, the settings say 64"):
        bucket_edges(spilled, 0, NearDeduplication(hashes=64))
    (spilled / "web-1.signatures").rename(spilled / "gone")
    with pytest.raises(InputError, match=r"no \*\.signatures file has document 5, which"):
        bucket_edges(spilled, 0, DEFAULT)
    (spilled / "web-0.signatures").rename(spilled / "gone")
    with pytest.raises(InputError, match=r"no \*\.signatures file has document 1, which"):
        bucket_edges(spilled, 0, DEFAULT)
    with pytest.raises(InputError, match=r"no \*\.bands files"):
        bucket_edges(spilled / "nowhere", 0, DEFAULT)


def test_a_shard_that_is_there_twice(spilled):
    (spilled / "web-2.signatures").write_bytes((spilled / "web-1.signatures").read_bytes())
    with pytest.raises(InputError, match=r"web-2\.signatures: its document 5 lies among those of web-1"):
        SignatureFiles(spilled, 128)


def test_the_numbers_of_a_shard_ascend(tmp_path):
    found = signatures(Texts.of(["a", "b"]), DEFAULT)
    with pytest.raises(AssertionError, match="ascend"):
        spill_bands(tmp_path, "0", np.array([2, 1], np.uint64), found, DEFAULT, 1)


def test_the_first_hash_functions_are_the_same_for_any_number():
    few, many = hash_functions(NearDeduplication(hashes=8)), hash_functions(NearDeduplication(hashes=99))
    assert (few == many[:, :8]).all() and len(np.unique(many)) == 3 * 99
    assert (few != hash_functions(NearDeduplication(hashes=8, seed=2))).all()
    assert bands_of(DEFAULT) == (18, 7)


def test_memory_does_not_grow_with_the_corpus(root):
    """All steps over 5 and 25 MB in processes of their own: less than a tenth of the difference more."""
    peaks = []
    for megabytes in (1, 5, 25):  # the first only compiles
        command = [sys.executable, str(root / "benchmarks" / "minhash.py"), "--memory", str(megabytes)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=_environment(root))
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["dropped"] == result["documents"] // 10
        peaks.append(result["bytes"])
    assert peaks[2] - peaks[1] < 4_000_000


def _environment(root):
    import os

    return {**os.environ, "PYTHONPATH": str(root)}
