"""Near-deduplication beside datatrove: signatures of the same documents on one core, and peak memory.

Signatures: 14 bands of 8 rows, word 5-grams, from texts in memory to sorted files on the disk, both sides,
taking turns. Memory: the whole of our near-deduplication (signatures, bands, buckets, clusters) in a process
of its own, over made-up documents of 4 kB in shards of 2 MB, of which every tenth is an edited copy of an
earlier one. Needs the oracle environment:

    .venv-oracle/bin/python benchmarks/minhash.py --documents 200 --megabytes 10 100
"""

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import in_fresh_process, interleave, peak_memory, ratio, summary, write_result

from stablelm.config.deduplication import NearDeduplication
from stablelm.data.deduplication.components import components, dropped, write_edges
from stablelm.data.deduplication.near import bands_of, bucket_edges, signatures, spill_bands
from stablelm.data.deduplication.spill import bucket_count
from stablelm.data.texts import Texts

SETTINGS = NearDeduplication(threshold=0.72, hashes=112, bands=14, rows=8)
SHARD, DOCUMENT = 2_000_000, 4_000  # bytes
WORDS = 570  # of a document of 4 kB


def ours(texts: list[str], folder: str) -> float:
    began = time.perf_counter()
    batch = Texts.of(texts)
    numbers = np.arange(len(batch), dtype=np.uint64)
    spill_bands(folder, "0", numbers, signatures(batch, SETTINGS), SETTINGS, 14)
    return time.perf_counter() - began


def theirs(texts: list[str], folder: str) -> float:
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    step = MinhashDedupSignature(folder, MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8))
    digest = step._hash_func  # its xxhash gets a string, which xxhash 4 no longer takes
    step._hash_func = lambda gram: digest(gram.encode())
    began = time.perf_counter()
    step.run(documents)
    return time.perf_counter() - began


def made_up(first: int, count: int) -> list[str]:
    """Documents first … first + count − 1, each from its number alone; number 10 k + 9 is 10 k, edited."""
    texts = []
    for number in range(first, first + count):
        copy = number % 10 == 9
        words = np.random.default_rng(number - 9 * copy).integers(0, 50_000, WORDS)
        if copy:
            words[:: WORDS // 8] += 1
        texts.append(" ".join(f"w{word:05d}" for word in words.tolist()))
    return texts


def near_deduplication(megabytes: int) -> dict[str, int]:
    """Peak memory of all steps over `megabytes` of text, and how many documents went."""
    settings = NearDeduplication(threshold=0.7)
    documents, per_shard = megabytes * 1_000_000 // DOCUMENT, SHARD // DOCUMENT
    buckets = bucket_count(documents * bands_of(settings)[0], memory=4 << 20)
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, documents, per_shard):
            texts = Texts.of(made_up(first, min(per_shard, documents - first)))
            numbers = np.arange(first, first + len(texts), dtype=np.uint64)
            spill_bands(folder, f"{first:09d}", numbers, signatures(texts, settings), settings, buckets)
            del texts  # or two shards would be in memory while the next is made up
        edges = []
        for bucket in range(buckets):
            edges.append(Path(folder) / f"{bucket}.edges")
            write_edges(edges[-1], bucket_edges(folder, bucket, settings))
        gone = dropped(*components(edges))
    return {"bytes": peak_memory(), "documents": documents, "dropped": len(gone), "buckets": buckets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=50, help="how many of the sample are signed")
    parser.add_argument(
        "--sample", type=Path, default=Path("../shared/data/corpus/raw/docs.jsonl.gz"), help="JSON lines, .gz"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--memory", type=int, help="internal: one measurement of memory")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(near_deduplication(options.memory)))
        return
    with gzip.open(options.sample, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(options.documents), strict=False)]
    size = sum(len(text.encode()) for text in texts)

    def timed(side):
        def run() -> float:
            with tempfile.TemporaryDirectory() as folder:
                return side(texts, folder)

        return run

    sides = {"stablelm": timed(ours), "datatrove": timed(theirs)}
    for side in sides.values():  # once, to compile and to load
        side()
    seconds = interleave(sides, options.rounds)
    memory = {str(m): in_fresh_process("--memory", str(m)) for m in options.megabytes}
    result = {
        "documents": len(texts),
        "bytes": size,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "megabytes_per_second": {n: size / 1e6 / summary(v)["median"] for n, v in seconds.items()},
        "speed_ratio": ratio(seconds["stablelm"], seconds["datatrove"]),
        "near_deduplication_by_megabytes": memory,
    }
    print(json.dumps(result, indent=2))

    import torch

    from stablelm.planning import hardware

    print(write_result("minhash", result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
