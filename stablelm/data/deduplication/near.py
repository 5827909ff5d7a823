"""Nearly equal documents: MinHash signatures, bands that meet in a bucket, whole signatures compared.

    signatures   one pass over each text                                k × 4 bytes a document
    spill_bands  SHARD.signatures, SHARD.bands                          16 bytes a document and band
    bucket_edges documents with an equal band, compared → pairs         one bucket in memory
    components   pairs → clusters                                       documents with a partner in memory

A pair is compared once for every band it shares: some 50 ns, and 3 µs to read each of the two signatures. In
a group of equal bands all pairs are compared as long as the group has at most 256 different signatures;
beyond, which only boilerplate reaches, the later ones are compared with the first 256, so a group of m costs
256 m and not m². A document without words has no signature and no duplicates.
Rejected: a chain from each document to the first of its group without comparison (what FineWeb's pipeline
does; `verify: false` does it too) – unlike documents that share one band pull clusters together; similarity
from the texts themselves (exact, and reads the corpus again in random order)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stablelm.config.deduplication import NearDeduplication
from stablelm.data.deduplication.bands import agreements, bands_of
from stablelm.data.deduplication.signature_files import SUFFIX as SIGNATURES
from stablelm.data.deduplication.signature_files import SignatureFiles, write_signatures
from stablelm.data.deduplication.spill import Folders, UInt64, gather_bucket, write_spill
from stablelm.data.texts import Texts
from stablelm.storage import keyed_uint64

SUFFIX = ".bands"
_ACTIVE, _BLOCK, _EDGES = 256, 1 << 12, 1 << 14


def signatures(texts: Texts, settings: NearDeduplication) -> NDArray[np.uint32]:
    """uint32 [n, hashes]; all 2³² − 1 for a text without words."""
    from stablelm.kernels.text.folding import folding
    from stablelm.kernels.text.minhash import sign

    out = np.empty((len(texts), settings.hashes), np.uint32)
    sign(texts.data, texts.ends, settings.words, hash_functions(settings), *folding(), out)
    return out


def hash_functions(settings: NearDeduplication) -> UInt64:
    """uint64 [3, hashes], drawn by name: the first functions are the same for any number of hashes."""
    draw = [
        [keyed_uint64("minhash", settings.seed, part, k) for k in range(settings.hashes)] for part in range(3)
    ]
    return np.array(draw, np.uint64)


def similarity(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of signatures [..., hashes]."""
    return np.asarray((a == b).mean(-1))


def spill_bands(
    folder: str | Path,
    shard: str,
    numbers: NDArray[np.uint64],
    signatures: NDArray[np.uint32],
    settings: NearDeduplication,
    buckets: int,
    scope: str = "",
) -> Path:
    """Writes one shard's FOLDER/SHARD.signatures (with `verify`), then its SHARD.bands; returns the latter.

    numbers [n] ascend, and lie apart from those of other shards: between the lowest and the highest number of
    a shard there is none of another. Only documents of one `scope` can be duplicates ("" for all, or a
    source's name)."""
    from stablelm.kernels.text.minhash import EMPTY, band_numbers

    numbers = numbers.astype(np.uint64)
    assert signatures.shape == (len(numbers), settings.hashes)
    assert (numbers[1:] > numbers[:-1]).all(), "the numbers of a shard ascend"
    present = (signatures != EMPTY).any(1)
    numbers, signatures = numbers[present], np.ascontiguousarray(signatures[present])
    if settings.verify:
        write_signatures(Path(folder) / f"{shard}{SIGNATURES}", numbers, signatures)
    bands, rows = bands_of(settings)
    bands_out = np.empty((len(numbers), bands), np.uint64)
    band_numbers(signatures, rows, np.uint64(keyed_uint64("bands", settings.seed, scope)), bands_out)
    path = Path(folder) / f"{shard}{SUFFIX}"
    write_spill(path, np.column_stack([bands_out.reshape(-1), np.repeat(numbers, bands)]), buckets)
    return path


def bucket_edges(folder: Folders, bucket: int, settings: NearDeduplication) -> UInt64:
    """Pairs [k, 2], lower number first, sorted, of the documents that one bucket finds to be one."""
    from stablelm.kernels.text.minhash import link

    records = gather_bucket(folder, SUFFIX, bucket, 2)  # by band, then number
    same = records[1:, 0] == records[:-1, 0]
    met = np.zeros(len(records), bool)
    met[1:] = same
    met[:-1] |= same
    records = records[met]
    if not settings.verify:
        new = np.ones(len(records), bool)
        new[1:] = records[1:, 0] != records[:-1, 0]
        firsts = records[new, 1][np.cumsum(new) - 1] if len(records) else records[:, 1]
        return _unique(np.column_stack([firsts, records[:, 1]])[~new])
    known = SignatureFiles(folder, settings.hashes)
    found, edges = [], np.empty((_EDGES, 2), np.uint64)
    active, active_numbers = np.empty((_ACTIVE, settings.hashes), np.uint32), np.empty(_ACTIVE, np.uint64)
    state, wanted = np.zeros(2, np.uint64), agreements(settings.threshold, settings.hashes)
    for first in range(0, len(records), _BLOCK):
        block = np.ascontiguousarray(records[first : first + _BLOCK].T)
        rows, done = known.read(block[1]), 0
        while done < len(rows):
            made, done = link(block[0], block[1], rows, wanted, done, active, active_numbers, state, edges)
            found.append(_unique(edges[:made].copy()))
    return _unique(np.concatenate([np.empty((0, 2), np.uint64), *found]))


def _unique(edges: UInt64) -> UInt64:
    """Pairs without repetition, sorted."""
    edges = edges[np.lexsort(edges.T[::-1])]
    new = np.ones(len(edges), bool)
    new[1:] = (edges[1:] != edges[:-1]).any(1)
    return edges[new]
