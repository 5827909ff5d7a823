"""Shared by every benchmark: interleaved rounds, medians with range, peak memory of a fresh process, one JSON
result.

Both sides run in the same call, A B A B, because a machine's speed drifts by more than most differences
between two programs. Memory is VmHWM (the peak resident set, Linux) of a process that does one side only."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def interleave(sides: dict[str, Callable[[], float]], rounds: int = 5) -> dict[str, list[float]]:
    """Seconds of each side in each round, the sides taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side())
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times faster ours is: ratio of medians, and the range over the rounds."""
    rounds = [t / o for o, t in zip(ours, theirs, strict=True)]
    return {
        "median": statistics.median(theirs) / statistics.median(ours),
        "min": min(rounds),
        "max": max(rounds),
    }


def peak_memory() -> int:
    """VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM: peak memory is measured on Linux only")


def in_fresh_process(*arguments: str) -> dict[str, Any]:
    """Runs the calling benchmark again with `arguments`; its last line of output is a JSON object."""
    output = subprocess.run(
        [sys.executable, sys.argv[0], *arguments], check=True, capture_output=True, text=True, env=os.environ
    ).stdout
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def write_result(name: str, values: dict[str, Any], hardware: dict[str, Any]) -> Path:
    """Writes benchmarks/results/NAME.json with hardware, commit and command."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "stablelm"], capture_output=True, text=True
    ).stdout.strip()
    record = {
        "benchmark": name,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit + (" with uncommitted changes" if changed else ""),
        "command": " ".join(["python", *sys.argv]),
        "hardware": hardware,
        **values,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
