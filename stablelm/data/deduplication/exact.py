"""Equal documents: one normalised hash each, compared bucket by bucket.

Two documents are equal when their folded texts are (`kernels/text/folding.py`): case, white space (how much,
which, at the ends), composed or decomposed accents, ligatures and full-width forms and invisible characters
make no difference; punctuation and numbers do. Texts of white space alone are all equal. The key is
BLAKE2b-128, keyed by the scope: among 10¹² documents, two unlike ones share a key with probability 10⁻¹⁵.
Costs about 10 ns a byte and 24 bytes a document on the disk.
Rejected: a Bloom filter (drops documents that have no twin), 64-bit keys (10¹² documents collide)."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stablelm.data.deduplication.spill import Folders, UInt64, gather_bucket, write_spill
from stablelm.data.texts import Texts

SUFFIX = ".exact"
_BUFFER = 1 << 16


def exact_keys(texts: Texts, scope: str = "") -> UInt64:
    """uint64 [n, 2]: equal for equal documents of one `scope` ("" for all, or a source's name)."""
    from stablelm.kernels.text.folding import fold, folding

    tables = folding()
    out, state = np.empty(_BUFFER, np.uint8), np.zeros(2, np.int64)
    keyed = hashlib.blake2b(digest_size=16, key=hashlib.blake2b(scope.encode(), digest_size=32).digest())
    keys = np.empty((len(texts), 2), np.uint64)
    place = 0
    for row, end in enumerate(texts.ends.tolist()):
        digest = keyed.copy()
        state[:] = 0
        while place < end:
            written, place = fold(texts.data, place, end, *tables, state, out)
            digest.update(out[:written].data)
        keys[row] = np.frombuffer(digest.digest(), "<u8")
    return keys


def spill_keys(
    folder: str | Path, shard: str, numbers: NDArray[np.uint64], keys: UInt64, buckets: int
) -> Path:
    """Writes the keys [n, 2] of one shard's documents to FOLDER/SHARD.exact; returns the file."""
    assert len(numbers) == len(keys)
    path = Path(folder) / f"{shard}{SUFFIX}"
    write_spill(path, np.column_stack([keys, numbers.astype(np.uint64)]), buckets)
    return path


def bucket_duplicates(folder: Folders, bucket: int) -> UInt64:
    """Edges [k, 2] of one bucket: (lowest number of equal documents, another of them), sorted.

    The second column is what to drop; `components` makes clusters of them as of near duplicates."""
    records = gather_bucket(folder, SUFFIX, bucket, 3)  # by key, then number
    if not len(records):
        return np.empty((0, 2), np.uint64)
    new = np.ones(len(records), bool)
    new[1:] = (records[1:, :2] != records[:-1, :2]).any(1)
    firsts = records[new, 2][np.cumsum(new) - 1]
    edges = np.column_stack([firsts, records[:, 2]])[~new]
    return edges[np.lexsort(edges.T[::-1])]
