"""What the quality rules cost: Gopher's two, C4's and FineWeb's on one core, ours and datatrove's.

The same documents, drawn from each source of the corpus by hash, in the same process and run, in turns;
both keep or drop every document by each filter alone. datatrove shares the words of a document among its
filters (its own cache), as in a chain. Ours includes the bytes → numbers → decisions and the spans of C4's
edits.

    .venv-oracle/bin/python benchmarks/filters.py            (needs datatrove 0.10 and spaCy)
"""

import argparse
import hashlib
import io
import json
import os
import time
from pathlib import Path

import torch
import zstandard
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import get_filter_result
from measure import interleave, ratio, summary, write_result

from stablelm.config.filters import C4, FineWeb, GopherQuality, GopherRepetition, Heuristics
from stablelm.data import heuristics
from stablelm.data.texts import Texts
from stablelm.planning import hardware

CORPUS = Path(os.environ.get("STABLELM_TEST_DATA", Path(__file__).parents[2] / "shared")) / "data" / "corpus"
SOURCES = ("web", "papers", "books", "encyclopedic", "technical")


def sample(source: str, characters: int) -> list[str]:
    """Documents in the order of their hash, until there are enough characters; those longer than all are
    left out."""
    with (CORPUS / f"{source}.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        texts = [json.loads(line)["text"] for line in lines]
    texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    chosen: list[str] = []
    for text in texts:
        if sum(map(len, chosen)) + len(text) <= characters:
            chosen.append(text)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--characters", type=int, default=600_000, help="of each source")
    options = parser.parse_args()
    texts = [text for source in SOURCES for text in sample(source, options.characters)]
    data = Texts.of(texts)
    rules = Heuristics(
        gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality(), c4=C4(), fineweb=FineWeb()
    )
    filters = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
    kept: dict[str, list[list[bool]]] = {}

    def ours() -> float:
        began = time.perf_counter()
        columns = heuristics.measure(data, rules)
        heuristics.edits(data, rules)
        reasons = (
            heuristics.gopher_repetition(columns, rules.gopher_repetition),
            heuristics.gopher_quality(columns, rules.gopher_quality),
            heuristics.c4(columns, rules.c4),
            heuristics.fineweb(columns, rules.fineweb),
        )
        seconds = time.perf_counter() - began
        kept["ours"] = [(found == "").tolist() for found in reasons]
        return seconds

    def theirs() -> float:
        began = time.perf_counter()
        rows = [
            [bool(get_filter_result(one.filter(Document(text=text, id="0")))[0]) for one in filters]
            for text in texts
        ]
        seconds = time.perf_counter() - began
        kept["datatrove"] = [list(column) for column in zip(*rows, strict=True)]
        return seconds

    ours()  # compiled, or read from Numba's cache
    filters[1].filter(Document(text="The spaCy pipeline is built now.", id="0"))
    seconds = interleave({"ours": ours, "datatrove": theirs}, options.rounds)
    pairs = [
        pair
        for ours_, theirs_ in zip(*kept.values(), strict=True)
        for pair in zip(ours_, theirs_, strict=True)
    ]
    result = {
        "documents": len(texts),
        "megabytes": len(data.data) / 1e6,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "documents_per_second": {n: len(texts) / summary(v)["median"] for n, v in seconds.items()},
        "megabytes_per_second": {n: len(data.data) / 1e6 / summary(v)["median"] for n, v in seconds.items()},
        "speed_ratio": ratio(seconds["ours"], seconds["datatrove"]),
        "decisions": len(pairs),
        "decisions_that_differ": sum(a != b for a, b in pairs),
    }
    print(json.dumps(result, indent=2))
    print(write_result("filters", result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
