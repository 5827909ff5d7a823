"""Text files to token files, reading and writing included, beside `encode_batch` of tokenizers 0.23 alone.

    python benchmarks/tokenization.py [--megabytes 16] [--rounds 5] [--corpus FOLDER] [--tokenizer FILE]

Ours is `prepare` from JSON lines to .bin/.idx/.ids and manifest, its processes started anew in every round.
Theirs gets the texts as strings in memory and leaves lists of ids there, on as many threads as there are
cores. Both in a fresh process, A B A B. With tokenizers 1.x installed, only ours is run, and the result is
`tokenization_1x`: give it --megabytes 400, so that starting the processes does not count for more than the
work (the corpus is repeated until there is so much)."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import in_fresh_process, interleave, ratio, summary, write_result


def texts_of(corpus: Path, megabytes: float) -> list[str]:
    """Documents of every corpus file in turns, about so many megabytes."""
    import itertools

    from stablelm.config.recipe import SourceConfig
    from stablelm.data.sources import read_texts

    files = sorted(corpus.glob("*.jsonl*"))
    texts: list[str] = []
    size = 0
    while size <= megabytes * 1e6:
        readers = [read_texts(SourceConfig(name="x", paths=[str(path)])) for path in files]
        for group in itertools.zip_longest(*readers):
            for text in filter(None, group):
                texts.append(text)
                size += len(text.encode())
            if size > megabytes * 1e6:
                break
    return texts


def ours(path: str, tokenizer: str) -> float:
    """Seconds of a preparation."""
    from stablelm.config.recipe import DataRecipe
    from stablelm.data.preparation import prepare

    with tempfile.TemporaryDirectory() as folder:
        sources: list[Any] = [{"name": "text", "paths": [path]}]
        recipe = DataRecipe(out=f"{folder}/out", tokenizer=tokenizer, sources=sources)
        began = time.perf_counter()
        prepare(recipe)
        return time.perf_counter() - began


def theirs(path: str, tokenizer: str) -> float:
    """Seconds of `encode_batch`."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    encoder.encode_special_tokens = True
    with open(path, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    began = time.perf_counter()
    ids = [encoding.ids for encoding in encoder.encode_batch(texts, add_special_tokens=False)]
    seconds = time.perf_counter() - began
    assert len(ids) == len(texts)
    return seconds


def main() -> None:
    """The benchmark, or one round of one side."""
    options = argparse.ArgumentParser()
    options.add_argument("--megabytes", type=float, default=16)
    options.add_argument("--rounds", type=int, default=5)
    data = Path(os.environ.get("STABLELM_TEST_DATA", Path(__file__).parents[2] / "shared")) / "data"
    options.add_argument("--corpus", type=Path, default=data / "corpus")
    options.add_argument("--tokenizer", default=str(data / "neox-tokenizer/tokenizer.json"))
    options.add_argument("--side", nargs=2)
    chosen = options.parse_args()
    if chosen.side:
        name, path = chosen.side
        seconds = {"ours": ours, "theirs": theirs}[name](path, chosen.tokenizer)
        print(json.dumps({"seconds": seconds}))
        return
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "text.jsonl"
        texts = texts_of(chosen.corpus, chosen.megabytes)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        size = sum(len(text.encode()) for text in texts)

        def side(name: str) -> Any:
            arguments = ("--tokenizer", chosen.tokenizer, "--side", name, str(path))
            return lambda: in_fresh_process(*arguments)["seconds"]

        names = ["ours"] if version("tokenizers").startswith("1.") else ["ours", "theirs"]
        seconds = interleave({name: side(name) for name in names}, chosen.rounds)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        result: dict[str, Any] = {
            "tokenizers": version("tokenizers"), "documents": len(texts), "bytes": size,
            "seconds": {name: summary(values) for name, values in seconds.items()},
            "megabytes_per_second": {
                name: size / 1e6 / summary(values)["median"] for name, values in seconds.items()
            },
        }  # fmt: skip
        if "theirs" in seconds:
            result["ratio"] = ratio(seconds["ours"], seconds["theirs"])
        print(json.dumps(result, indent=2))
        name = "tokenization" if "theirs" in seconds else "tokenization_1x"
        print(write_result(name, result, {"cores": cores, "python": sys.version.split()[0]}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
