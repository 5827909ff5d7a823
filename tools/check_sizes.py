"""Keeps the code small enough to read: a file, the core path and the package each have a limit (`make lint`).

Lines are counted as `wc -l` does, blank ones and docstrings too, so that nobody gains by dropping them. A
file may be longer only when it is listed in EXCEPTIONS with its limit and its reason."""

import sys
from collections.abc import Mapping
from pathlib import Path

FILE_LIMIT, CORE_LIMIT, PACKAGE_LIMIT = 400, 7_000, 50_000
PACKAGE = "stablelm"
CHECKED = (PACKAGE, "tests", "tools", "benchmarks", "examples")
# What a reader follows from a configuration to a sentence of the trained model.
CORE = (
    "config", "model", "tokenizer", "training", "inference", "data/token_files.py", "data/permutation.py",
    "data/mixture.py", "data/loader.py",
)  # fmt: skip
# Parts of those rooms that he does not meet: recipes, other systems' files, cards, pages, rehearsals, chat,
# other ways to compute the same text or another one, what a CPU without bf16 products lacks, recorded
# answers, evaluation, adaptations;
# what happens to bad steps, to runs that stand still or are started again, branches, copies elsewhere; what
# a run shows of itself and where its records go, live too; what it checks of its machines first; an average
# of its weights.
NOT_CORE = (
    "config/adaptation.py", "config/adapter.py", "config/card.py", "config/cleaning.py",
    "config/deduplication.py", "config/ema.py", "config/evaluation.py", "config/filter_set.py",
    "config/filters.py", "config/finetune.py", "config/guard.py", "config/logging.py", "config/neox.py",
    "config/neox_file.py", "config/neox_keys.py", "config/preference.py", "config/preflight.py",
    "config/recipe.py", "config/slurm.py", "config/tuning_evaluation.py", "inference/beams.py",
    "inference/cpu_cache.py", "inference/cpu_runner.py", "inference/decoding.py",
    "inference/packed_products.py", "inference/prefix.py", "inference/quantization.py",
    "inference/speculation.py", "inference/window.py", "model/adapters.py", "model/bfloat16_products.py",
    "model/fingerprint.py", "model/fused.py", "model/predictions.py", "tokenizer/chat.py",
    "tokenizer/comparison.py", "tokenizer/golden.py", "tokenizer/infilling.py", "training/adapting.py",
    "training/boards.py",
    "training/branching.py", "training/bucket.py", "training/console.py", "training/dry_run.py",
    "training/ema.py", "training/evaluating.py", "training/float8.py", "training/goodput.py",
    "training/guard.py", "training/health.py", "training/machine.py", "training/measures.py",
    "training/metrics.py", "training/parallel/meeting.py", "training/preflight.py",
    "training/profiling.py", "training/report.py", "training/report_goodput.py",
    "training/report_health.py", "training/report_tuning.py", "training/restarting.py",
    "training/rollback.py", "training/watchdog.py", "training/watching.py",
)  # fmt: skip
EXCEPTIONS: dict[str, tuple[int, str]] = {}


def lines(path: Path) -> int:
    """Newlines in a file, as `wc -l` counts them."""
    return path.read_bytes().count(b"\n")


def check(
    root: Path, exceptions: Mapping[str, tuple[int, str]] = EXCEPTIONS
) -> tuple[list[str], dict[str, int]]:
    """The faults found below `root`, one sentence each, and the totals of core path and package."""
    sizes = {
        p.relative_to(root).as_posix(): lines(p)
        for top in CHECKED
        for p in sorted((root / top).rglob("*.py"))
    }
    faults = []
    for name, size in sizes.items():
        limit, _ = exceptions.get(name, (FILE_LIMIT, ""))
        if size > limit:
            faults.append(f"{name}: {size:,} lines, the limit is {limit:,}. Split it by idea.")
    for name in exceptions:
        if sizes.get(name, 0) <= FILE_LIMIT:
            faults.append(f"{name}: needs no exception any more; remove it from tools/check_sizes.py.")
    core = tuple(f"{PACKAGE}/{part}" for part in CORE)
    apart = {f"{PACKAGE}/{part}" for part in NOT_CORE}
    in_core = {
        name: size
        for name, size in sizes.items()
        if name not in apart and (name in core or name.startswith(tuple(f"{part}/" for part in core)))
    }
    totals = {
        "core path": sum(in_core.values()),
        "package": sum(size for name, size in sizes.items() if name.startswith(f"{PACKAGE}/")),
    }
    for (what, size), limit in zip(totals.items(), (CORE_LIMIT, PACKAGE_LIMIT), strict=True):
        if size > limit:
            faults.append(f"{what}: {size:,} lines, the limit is {limit:,}.")
    return faults, totals


if __name__ == "__main__":
    found, sums = check(Path(__file__).parent.parent)
    for fault in found:
        print(fault)
    core_lines, package_lines = sums["core path"], sums["package"]
    print(
        f"Core path {core_lines:,} of {CORE_LIMIT:,} lines, package {package_lines:,} of {PACKAGE_LIMIT:,}."
    )
    sys.exit(1 if found else 0)
