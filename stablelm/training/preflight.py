"""`stablelm train --preflight`: what every process finds before the first step, and who differs or is slow.

Each process says what it is (versions, code, configuration, data, environment) and measures what it can do
(`machine.py`). All see what all found, so they judge alike. Where a version, the code, the configuration or
the data differ, the run would not be the one that was meant, or would end in a hang: it stops, naming who
differs from most. A slow process makes all others wait in every step: it is named beside the median, and the
run goes on unless `preflight.on_warning` is stop. Data are compared by fingerprint (the manifest's hashes)
and by 64 pieces of each token file as it lies on each machine; `stablelm data verify` reads every byte.

RUN/preflight.json holds what was found. Costs some seconds. On GPUs (NCCL) it is the same code, untried."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist

from stablelm.config import InputError, RunConfig
from stablelm.config.preflight import PreflightConfig
from stablelm.data.manifest import Dataset
from stablelm.data.replay import Joined
from stablelm.data.run_data import TrainingData, open_data
from stablelm.interchange.native import FOLDER
from stablelm.planning import hardware, make_plan
from stablelm.planning.estimate_text import columns
from stablelm.planning.plan import checkpoint_bytes
from stablelm.storage import directory_lock, fingerprint, sampled_sha256, sha256_file, write_json
from stablelm.training.agreement import Ranks
from stablelm.training.console import Console, SilentConsole, make_console
from stablelm.training.machine import all_reduce_rate, clock, disk_rates, groups_of, matmul_rate
from stablelm.training.parallel.launch import discover

PACKAGE = Path(__file__).parents[1]
REPORT = "preflight.json"
"""Of a run, what its processes found before the first step."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "bf16-pure": torch.bfloat16}
_VARIABLES = ("NCCL_", "TORCH_NCCL_", "FI_", "GLOO_", "OMP_", "MKL_", "PYTORCH_", "CUDA_LAUNCH", "UCX_")
_PACKAGES = ("numpy", "triton", "safetensors", "tokenizers", "numba")
_DISK, _PAIRS = "disk, ", "all-reduce in pairs"
_UNREAD = "not read"
_MOST = 8
"""Processes that a line names one by one."""


@dataclass(frozen=True)
class Found:
    """What one process is and can do."""

    rank: int
    host: str
    local_rank: int
    same: dict[str, str]
    """What must be equal everywhere, by name."""
    alike: dict[str, str]
    """What should be."""
    rates: dict[str, float] = field(default_factory=dict)
    """Per second: FLOP of `matrix products`, bytes of all else."""
    clock: tuple[float, float] = (0.0, 0.0)
    """Seconds that its clock is before the first process's, and how uncertain that is."""
    free: int = 0
    """Bytes free where the run writes."""
    needed: int = 0
    """Bytes that its checkpoints will take there besides."""
    checkpoint: int = 0
    """Bytes of one checkpoint."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, local rank {self.local_rank})"


@dataclass(frozen=True)
class Verdict:
    """What is wrong."""

    errors: list[str]
    """A run that must not start."""
    warnings: list[str]
    """Who is slow, or differs where it may be meant."""


def preflight(config: RunConfig, device: torch.device, console: Console | None = None) -> None:
    """Checks this run on all its processes; each of them calls it, on its `device`.

    `InputError` for what differs, with `preflight.on_warning: stop` also for a warning; the same on all."""
    run, ranks = Path(config.out), Ranks()
    shown = (console or make_console()) if ranks.first else SilentConsole()
    began = time.perf_counter()
    with contextlib.ExitStack() as held:
        ranks.at_first(lambda: held.enter_context(directory_lock(run)))
        mine = Found(
            ranks.rank, socket.gethostname(), discover(os.environ).local_rank, *identity(config, device)
        )
        everyone = ranks.together(lambda: mine)
        if all(each.same["token files"] == _UNREAD for each in everyone):
            raise InputError(everyone[0].same["data"])
        verdict = judge(everyone, config.preflight)
        if not verdict.errors:  # else they may not even measure together
            free, needed, size = ranks.together(lambda: space(config))[ranks.rank]
            rates, offset = measured(config, device, ranks), clock(ranks)
            mine = replace(mine, rates=rates, clock=offset, free=free, needed=needed, checkpoint=size)
            everyone = ranks.together(lambda: mine)
            verdict = judge(everyone, config.preflight)
        report = {
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "errors": verdict.errors, "warnings": verdict.warnings,
            "processes": [asdict(each) for each in everyone],
        }  # fmt: skip
        ranks.at_first(lambda: write_json(run / REPORT, report))
    if ranks.group is not None:
        dist.destroy_process_group(ranks.group)
    for line in table(everyone, time.perf_counter() - began):
        shown.message(line)
    for warning in verdict.warnings:
        shown.message(f"warning: {warning}")
    if verdict.errors or (verdict.warnings and config.preflight.on_warning == "stop"):
        raise InputError(
            "preflight: " + "\n".join(verdict.errors or verdict.warnings) + f"\nAll is in {run / REPORT}."
        )


def identity(config: RunConfig, device: torch.device) -> tuple[dict[str, str], dict[str, str]]:
    """What this process is: what must be equal on all, and what should be."""
    about = hardware(device)
    same = {
        "stablelm": sys.modules["stablelm"].__version__, "code": code_fingerprint(),
        "torch": str(about["torch"]),
        "python": ".".join(platform.python_version_tuple()[:2]), **dict(_packages()),
        "configuration": fingerprint(config.model_dump(mode="json")), **data_fingerprints(config),
    }  # fmt: skip
    alike = {
        "commit": _commit(), "device": str(about["name"]), "system": str(about["system"]),
        "threads": str(about["threads"]), "kernel": platform.release(), "python": str(about["python"]),
    }  # fmt: skip
    if device.type == "cuda":
        same["CUDA"] = str(torch.version.cuda)
        same["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        memory = torch.cuda.get_device_properties(device).total_memory
        alike |= {"driver": _driver(), "device memory": f"{memory / 2**30:.1f} GiB"}
    alike |= {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)}
    return same, alike


def code_fingerprint() -> str:
    """Of every source file of this package, as it is imported here."""
    files = sorted(PACKAGE.rglob("*.py"))
    return fingerprint([[path.relative_to(PACKAGE).as_posix(), sha256_file(path)] for path in files])


def data_fingerprints(config: RunConfig) -> dict[str, str]:
    """`data`: of everything that decides what is read; `token files`: of pieces of them as they lie here.

    What cannot be opened here is said in its place: perhaps only this process cannot."""
    try:
        dataset, samples = open_data(config)
        pieces = [[path.name, sampled_sha256(path)] for path in token_files(dataset)]
    except (InputError, OSError) as error:
        return {"data": str(error), "token files": _UNREAD}
    return {"data": samples.fingerprint, "token files": fingerprint(pieces)}


def token_files(dataset: TrainingData) -> list[Path]:
    """The token files of prepared data; those of a GPT-NeoX run are sampled in its fingerprint."""
    parts = [dataset.new, dataset.old] if isinstance(dataset, Joined) else [dataset]
    return [
        part.path / name
        for part in parts
        if isinstance(part, Dataset)
        for name in sorted(part.manifest["files"])
        if name.endswith((".bin", ".idx"))
    ]


def _packages() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


def _commit() -> str:
    """Of the checkout that the package is imported from; empty where there is none."""
    try:
        found = subprocess.run(
            ["git", "-C", str(PACKAGE), "rev-parse", "--short=12", "HEAD"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


def _driver() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].strip()
    return "not known"


def measured(config: RunConfig, device: torch.device, ranks: Ranks) -> dict[str, float]:
    """Rates of this process; all measure together."""
    out = Path(config.out)
    ranks.together(lambda: _seen(out))
    rates = {"matrix products": matmul_rate(device, DTYPES[config.precision])}
    degrees = config.parallel.degrees(ranks.world)
    for name, groups in groups_of(degrees).items():
        rate = all_reduce_rate(device, groups)
        over = f"all {len(groups[0])}" if name == "all" else f"{len(groups[0])} ({name})"
        what = _PAIRS if name.startswith("pairs") else f"all-reduce over {over}"
        if rate is not None:
            rates[what] = max(rate, rates.get(what, 0.0))
    written = ranks.together(lambda: disk_rates(out, ranks.rank))[ranks.rank]
    return rates | {f"{_DISK}write": written[0], f"{_DISK}read": written[1]}


def _seen(out: Path) -> None:
    if not out.is_dir():
        raise InputError(f"{socket.gethostname()}: {out} is not there; all machines must see one directory.")


def space(config: RunConfig) -> tuple[int, int, int]:
    """Bytes: free in the run's directory, needed there by its checkpoints besides, of one checkpoint."""
    run, keeping = Path(config.out), config.checkpoint
    there = sum(path.stat().st_size for path in (run / FOLDER).rglob("*") if path.is_file())
    if config.branch is None:
        _, samples = open_data(config)
        plan = make_plan(config, samples.num_samples, samples.table(), samples.skips.count)
        steps, size = plan.steps, plan.checkpoint_bytes
    else:
        steps, size = config.branch.cooldown_steps, checkpoint_bytes(config)
    permanent = steps // keeping.permanent_every if keeping.permanent_every else 0
    count = min(keeping.keep, -(-steps // keeping.every)) + permanent + 1  # one more while it is written
    return shutil.disk_usage(run).free, max(size, count * size - there), size


def judge(found: Sequence[Found], config: PreflightConfig) -> Verdict:
    """Who differs, and who is slow; the same from the same findings."""
    errors = [line for each in _names(found, "same") for line in _differing(found, each, "same")]
    warnings = [line for each in _names(found, "alike") for line in _differing(found, each, "alike")]
    for name in dict.fromkeys(name for each in found for name in each.rates):
        warnings += _slow(found, name, config.tolerance)
    middle = statistics.median(each.clock[0] for each in found)
    late = [each for each in found if abs(each.clock[0] - middle) - each.clock[1] > config.clock]
    warnings += _per(
        late, lambda e: f"its clock is {e.clock[0] - middle:+,.2f} s from the median (± {e.clock[1]:.2g} s)"
    )
    least = min(found, key=lambda each: each.free - each.needed)
    if least.free < least.checkpoint:
        errors.append(
            f"{least}: {least.free / 1e9:,.1f} GB are free, a checkpoint takes "
            f"{least.checkpoint / 1e9:,.1f} GB. Free some space, or choose another --out."
        )
    elif least.free < least.needed:
        warnings.append(
            f"{least}: {least.free / 1e9:,.1f} GB are free, the run's checkpoints will take "
            f"{least.needed / 1e9:,.1f} GB; lower checkpoint.keep, or raise checkpoint.permanent_every"
        )
    return Verdict(errors, warnings)


def _names(found: Sequence[Found], which: str) -> list[str]:
    return list(dict.fromkeys(name for each in found for name in getattr(each, which)))


def _differing(found: Sequence[Found], name: str, which: str) -> Iterator[str]:
    """One line for each value that is not most processes', with who has it."""
    values = {each.rank: getattr(each, which).get(name, "not set") for each in found}
    (most, count), *others = Counter(values.values()).most_common()
    for value, _ in others:
        have = [each for each in found if values[each.rank] == value]
        yield (
            f"{name}: {_listed(have)} {'has' if len(have) == 1 else 'have'} {_short(value)}, {count} of "
            f"{len(found)} {'has' if count == 1 else 'have'} {_short(most)}"
        )


def _slow(found: Sequence[Found], name: str, tolerance: float) -> list[str]:
    """Lines about processes, of the disk about machines, that are below a share of the median."""
    rates = {each.rank: each.rates[name] for each in found if name in each.rates}
    if name.startswith(_DISK):  # processes of one machine share it, unevenly
        hosts = {each.host: [e.rates[name] for e in found if e.host == each.host] for each in found}
        rates = {each.rank: statistics.median(hosts[each.host]) for each in found}
        middle = statistics.median(statistics.median(shares) for shares in hosts.values())
    else:
        middle = statistics.median(rates.values())
    slow = [each for each in found if rates.get(each.rank, middle) < tolerance * middle]
    return _per(slow, lambda e: f"{name}: {_rate(name, rates[e.rank])}, the median is {_rate(name, middle)}")


def _per(some: Sequence[Found], says: Callable[[Found], str]) -> list[str]:
    lines = [f"{each}: {says(each)}" for each in some[:_MOST]]
    more = [str(each.rank) for each in some[_MOST:]]
    return [*lines, *([f"the same of ranks {', '.join(more)}"] if more else [])]


def _listed(some: Sequence[Found]) -> str:
    more = f" and {len(some) - _MOST} more" if len(some) > _MOST else ""
    return ", ".join(map(str, some[:_MOST])) + more


def _short(value: str) -> str:
    """A fingerprint by its beginning, anything else as it is."""
    return value[:12] if _is_hash(value) else value or "none"


def _is_hash(value: str) -> bool:
    return len(value) == 64 and not value.strip("0123456789abcdef")


def _rate(name: str, value: float) -> str:
    unit = "GFLOP/s" if name == "matrix products" else "GB/s"
    return f"{value / 1e9:,.4g} {unit}"


def table(found: Sequence[Found], seconds: float) -> list[str]:
    """What was found, for a reader, a line each."""
    hosts, first = Counter(each.host for each in found), found[0]
    rows = [("", "median", "lowest", "of")]
    for name in dict.fromkeys(name for each in found for name in each.rates):
        have = [each for each in found if name in each.rates]
        least = min(have, key=lambda each: each.rates[name])
        median = statistics.median(each.rates[name] for each in have)
        rows.append((name, _rate(name, median), _rate(name, least.rates[name]), f"rank {least.rank}"))
    if len(found) > 1:
        off = max(found, key=lambda each: abs(each.clock[0]))
        rows.append((
            "clock, from rank 0's", "", f"{off.clock[0]:+,.4f} s ± {off.clock[1]:.1g}", f"rank {off.rank}"
        ))  # fmt: skip
    least = min(found, key=lambda each: each.free)
    need = f"{least.needed / 1e9:,.1f} GB needed"
    rows.append(("free for checkpoints", need, f"{least.free / 1e9:,.1f} GB", f"rank {least.rank}"))
    said: dict[bool, list[str]] = {False: [], True: []}
    for name, value in first.same.items():
        said[_is_hash(value)].append(f"{name} {_short(value)}")
    many = f"{len(found)} process{'' if len(found) == 1 else 'es'} on {len(hosts)} machine"
    return [
        f"preflight: {many}{'' if len(hosts) == 1 else 's'}, {first.alike['device']}, {seconds:.1f} s",
        *columns(rows),
        f"  {', '.join(said[False])}",
        f"  {', '.join(said[True])}",
    ]
