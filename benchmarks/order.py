"""The order of samples: exact counts, the time of a batch of addresses, the memory of the original run.

Three claims. (1) Fourteen sources from 777 to 10 million windows, read for whole and broken epochs: every
window comes as often as the table says, and every address inverts. (2) 1,024 addresses, in a row or
anywhere, of 977,920,000 samples in at most 1 ms; the inverse beside it. (3) That mixture in under 10 MB:
what VmHWM, the peak resident set of a fresh process, rises by after the imports. Beside them, 1,024
look-ups in a shuffled index in memory, which the order replaces: faster, but 8 bytes a sample, 7.8 GB for
the original run.

    .venv/bin/python benchmarks/order.py            some minutes; --windows 10000 tries it out
"""

import argparse
import json
import time
from fractions import Fraction

import numpy as np
import torch
from measure import in_fresh_process, interleave, peak_memory, ratio, summary, write_result

from stablelm.data.mixture import Mixture
from stablelm.planning import hardware

SAMPLES, BATCH = 977_920_000, 1_024


def sources(largest: int) -> dict[str, int]:
    """Fourteen sources from 777 windows to the largest, in equal ratios."""
    return {f"s{i:02}": round(777 * (largest / 777) ** (i / 13)) for i in range(14)}


def original() -> Mixture:
    """977,920,000 samples of fourteen sources, four epochs each."""
    windows = sources(10_000_000)
    windows["s13"] += SAMPLES // 4 - sum(windows.values())
    return Mixture(windows, dict.fromkeys(windows, Fraction(4)), 1234)


def exact(largest: int, chunk: int = 1 << 20) -> dict[str, object]:
    """Reads a whole mixture and counts every window."""
    windows = sources(largest)
    epochs = {name: Fraction(2 + i, 7) + i % 3 for i, name in enumerate(windows)}
    mixture = Mixture(windows, epochs, 1234)
    counts = [np.zeros(size, dtype=np.uint8) for size in windows.values()]
    last = np.zeros(14, dtype=np.int64)
    began = time.perf_counter()
    for first in range(0, mixture.num_samples, chunk):
        numbers = np.arange(first, min(first + chunk, mixture.num_samples))
        source, epoch, window = mixture.address(numbers)
        assert np.array_equal(mixture.sample_number(source, epoch, window), numbers)
        for i, count in enumerate(counts):
            mine = source == i
            turns = epoch[mine]
            assert turns.size == 0 or (last[i] <= turns[0] and (np.diff(turns) >= 0).all())
            last[i] = turns[-1] if turns.size else last[i]
            np.add.at(count, window[mine], 1)
    for count, wanted, size in zip(counts, epochs.values(), windows.values(), strict=True):
        total = round(wanted * size)
        whole, rest = divmod(total, size)
        assert np.array_equal(np.bincount(count, minlength=whole + 2)[whole:], [size - rest, rest])
    seconds = time.perf_counter() - began
    return {
        "windows": windows,
        "epochs": {name: str(value) for name, value in epochs.items()},
        "samples": mixture.num_samples,
        "every_window_as_often_as_asked": True,
        "every_address_inverts": True,
        "seconds_with_counting": seconds,
    }


def memory() -> dict[str, float]:
    """In a fresh process: what making the mixture and reading from it adds to the peak resident set."""
    small = Mixture({"a": 1000}, {"a": 4}, 1)  # code and libraries are loaded by now
    small.sample_number(*small.address(np.arange(BATCH)))
    before, began = peak_memory(), time.perf_counter()
    mixture = original()
    seconds = time.perf_counter() - began
    rng = np.random.default_rng(0)
    for _ in range(20):
        mixture.sample_number(*mixture.address(rng.integers(0, SAMPLES, BATCH)))
    return {"bytes": peak_memory() - before, "seconds_to_make": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--windows", type=int, default=10_000_000, help="windows of the largest source, part 1"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="internal: one measurement")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory()))
        return
    measured = [in_fresh_process("--memory") for _ in range(3)]
    mixture, rng = original(), np.random.default_rng(0)
    shuffled = rng.permutation(options.windows)
    places = {
        "in a row": np.arange(500_000_000, 500_000_000 + BATCH),
        "anywhere": rng.integers(0, SAMPLES, BATCH),
    }

    def timed(work, *arguments, calls=200):
        def run() -> float:
            began = time.perf_counter()
            for _ in range(calls):
                work(*arguments)
            return (time.perf_counter() - began) / calls

        return run

    sides = {f"addresses {name}": timed(mixture.address, numbers) for name, numbers in places.items()}
    sides["inverse anywhere"] = timed(mixture.sample_number, *mixture.address(places["anywhere"]))
    sides["shuffled index anywhere"] = timed(shuffled.take, rng.integers(0, options.windows, BATCH))
    for side in sides.values():
        side()
    seconds = interleave(sides, options.rounds)
    slowest = max(summary(values)["median"] for name, values in seconds.items() if name.startswith("addr"))
    added = summary([each["bytes"] for each in measured])
    result = {
        "exact": exact(options.windows),
        "batch": BATCH,
        "samples": SAMPLES,
        "seconds_a_batch": {name: summary(values) for name, values in seconds.items()},
        "index_over_address": ratio(seconds["addresses anywhere"], seconds["shuffled index anywhere"]),
        "batch_within_1_ms": slowest <= 1e-3,
        "bytes_of_the_original_run": added,
        "within_10_MB": added["max"] < 10e6,
        "seconds_to_make": summary([each["seconds_to_make"] for each in measured]),
        "bytes_of_a_shuffled_index": 8 * SAMPLES,
    }
    print(json.dumps(result, indent=2))
    print(write_result("order", result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
