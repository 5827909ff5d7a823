"""The whole pipeline, from raw files to token files, on 1 and 2 workers of the local pool: MB/s of text.

    python benchmarks/data_scaling.py TOKENIZER FILE… [--rounds 5] [--workers 1,2]

Each round prepares the same sources from nothing, into a fresh folder, with every number of workers in turn.
The start of the workers, the shuffle and the final hashes are in the time. Less than `SMALL` bytes would be
done by one process whatever was asked for, and is refused."""

import argparse
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

from measure import interleave, ratio, summary, write_result

from stablelm.config.recipe import DataRecipe
from stablelm.data import Dataset
from stablelm.data.executors.local import SMALL, Local
from stablelm.data.preparation import prepare


def prepared(options: argparse.Namespace, workers: int, folder: Path) -> float:
    """Seconds of one preparation; its bytes of text are left in `options`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sources = [{"name": f"source{n}", "paths": [path]} for n, path in enumerate(options.files)]
    recipe = DataRecipe(out=str(folder / "out"), tokenizer=options.tokenizer, sources=sources)
    began = time.perf_counter()
    prepare(recipe, executor=Local(workers))
    seconds = time.perf_counter() - began
    dataset = Dataset(folder / "out")
    sides = [dataset.info(name)[side] for name in dataset.sources for side in ("train", "held_out")]
    options.text_bytes = sum(side["bytes"] for side in sides)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", default="1,2")
    options = parser.parse_args()
    counts = [int(word) for word in options.workers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        prepared(options, counts[0], Path(folder) / "work")  # what a process loads once
        if options.text_bytes < 2 * SMALL:
            raise SystemExit(f"{options.text_bytes:,} bytes of text: give at least {2 * SMALL:,}.")
        sides = {str(n): lambda n=n: prepared(options, n, Path(folder) / "work") for n in counts}
        seconds = interleave(sides, options.rounds)
    megabytes = options.text_bytes / 1e6
    speeds = {name: summary([megabytes / second for second in values]) for name, values in seconds.items()}
    first, last = str(counts[0]), str(counts[-1])
    result = {
        "text_bytes": options.text_bytes,
        "rounds": options.rounds,
        "megabytes_a_second_by_workers": speeds,
        "speedup_of_most_workers": ratio(seconds[last], seconds[first]),
    }
    hardware = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(write_result("data_scaling", result, hardware))


if __name__ == "__main__":
    main()
