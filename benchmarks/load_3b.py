"""Opening the 2.8B model in bf16 and writing one token, beside `transformers`: peak memory and time.

The weights are made with `stablelm init` (random, 5.59 GB) unless a directory is given. Each measurement is a
process of its own, the sides take turns, and the file is in the page cache for both. Needs the oracle
environment:

    .venv-oracle/bin/python benchmarks/load_3b.py --model /tmp/stablelm-3b
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import in_fresh_process, interleave, peak_memory, ratio, summary, write_result

from stablelm.planning import hardware

IDS = [[12092, 13, 253, 8588, 310, 1900, 9386]]


def ours(model: str) -> None:
    from stablelm import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, torch_dtype="auto")
    network.generate(torch.tensor(IDS), max_new_tokens=1)


def theirs(model: str) -> None:
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    network.generate(torch.tensor(IDS), max_new_tokens=1, do_sample=False)


SIDES = {"stablelm": ours, "transformers": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, default=Path("/tmp/stablelm-3b"), help="made there when missing"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help="internal: one measurement")
    options = parser.parse_args()
    if options.side:
        began = time.perf_counter()
        SIDES[options.side](str(options.model))
        print(json.dumps({"seconds": time.perf_counter() - began, "bytes": peak_memory()}))
        return
    if not options.model.is_dir():
        command = ["init", str(options.model), "--preset", "stablelm-3b-4e1t", "--dtype", "bf16"]
        subprocess.run([sys.executable, "-m", "stablelm", *command], check=True)
    weights = sum(file.stat().st_size for file in options.model.glob("*.safetensors"))
    memory: dict[str, list[int]] = {name: [] for name in SIDES}

    def measured(name: str):
        def run() -> float:
            found = in_fresh_process("--side", name, "--model", str(options.model))
            memory[name].append(found["bytes"])
            return found["seconds"]

        return run

    for name in SIDES:  # once for the page cache
        measured(name)()
    for values in memory.values():
        values.clear()
    seconds = interleave({name: measured(name) for name in SIDES}, options.rounds)
    result = {
        "weight_bytes": weights,
        "seconds_to_first_token": {name: summary(values) for name, values in seconds.items()},
        "speed_ratio": ratio(seconds["stablelm"], seconds["transformers"]),
        "peak_memory_bytes": {name: summary(values) for name, values in memory.items()},
        "above_weights_bytes": summary(memory["stablelm"])["median"] - weights,
    }
    print(json.dumps(result, indent=2))
    print(write_result("load_3b", result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
