"""The whole pipeline, from raw files to token files, on 1 and 2 workers of the local pool: MB/s of text.

    python benchmarks/data_scaling.py TOKENIZER FILE… [--rounds 5] [--workers 1,2] [--cleaning]

Each round prepares the same sources from nothing, with every number of workers in turn, each in a process of
its own whose imports are not in the time; the start of the workers, loading the tokenizer, the shuffle and
the final hashes are. Every worker has one thread: else `tokenizers` would use all cores in the run of one.
With --cleaning also filters, equal and nearly equal documents. Give several files, or large ones that are
not compressed: a compressed file is read by one worker. Less than `SMALL` bytes would be done by one process
whatever was asked for, and is refused."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from typing import Any

ONE_THREAD = ("RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
os.environ |= {"TOKENIZERS_PARALLELISM": "false", **dict.fromkeys(ONE_THREAD, "1")}

from measure import in_fresh_process, interleave, ratio, summary, write_result  # noqa: E402

CLEANING = {"gopher_quality": True, "gopher_repetition": True, "fineweb": True, "pii": True}


def prepared(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one preparation, what its tasks went through, and its bytes of text as read."""
    from stablelm.config.recipe import DataRecipe
    from stablelm.data import Dataset
    from stablelm.data.executors.local import SMALL, Local
    from stablelm.data.preparation import prepare

    filters = CLEANING if options.cleaning else {}
    sources = [
        {"name": f"source{n}", "paths": [path], "filters": filters} for n, path in enumerate(options.files)
    ]
    with tempfile.TemporaryDirectory() as folder:
        values = {"out": f"{folder}/out", "tokenizer": options.tokenizer, "sources": sources}
        if options.cleaning:
            values["deduplication"] = {}
        recipe = DataRecipe.model_validate(values)
        began = time.perf_counter()
        prepare(recipe, executor=Local(options.side))
        seconds = time.perf_counter() - began
        dataset = Dataset(folder + "/out")
        read = sum(dataset.info(name)["read_bytes"] for name in dataset.sources)
        return {"seconds": seconds, "bytes": read, "least": 2 * SMALL, "fingerprint": dataset.fingerprint}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--cleaning", action="store_true")
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(prepared(options)))
        return
    counts = [int(word) for word in options.workers.split(",")]
    made: list[dict[str, Any]] = []

    def side(workers: int) -> float:
        made.append(in_fresh_process(*sys.argv[1:], "--side", str(workers)))
        return float(made[-1]["seconds"])

    side(counts[0])  # compiles what is compiled, and brings the files into memory
    if made[0]["bytes"] < made[0]["least"]:
        raise SystemExit(f"{made[0]['bytes']:,} bytes of input: give at least {made[0]['least']:,}.")
    seconds = interleave({str(n): lambda n=n: side(n) for n in counts}, options.rounds)
    assert len({one["fingerprint"] for one in made}) == 1, "the result depends on the number of workers"
    megabytes = made[0]["bytes"] / 1e6
    speeds = {name: summary([megabytes / second for second in values]) for name, values in seconds.items()}
    first, last = str(counts[0]), str(counts[-1])
    result = {
        "input_bytes": made[0]["bytes"],
        "cleaning": options.cleaning,
        "rounds": options.rounds,
        "megabytes_a_second_by_workers": speeds,
        "speedup_of_most_workers": ratio(seconds[last], seconds[first]),
    }
    hardware = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    name = "data_scaling_cleaning" if options.cleaning else "data_scaling"
    print(write_result(name, result, hardware))


if __name__ == "__main__":
    main()
