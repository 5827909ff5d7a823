"""Prepares what must travel to a machine with a GPU and no network: wheels of what it lacks, and a script.

    make bundle                                     # all that the tests and benchmarks import, but PyTorch
    make bundle BUNDLE_ARGS="--have packages.txt"   # less what `pip freeze` printed on that machine

Then copy the checkout with its folder `.bundle` there and run `bash .bundle/run.sh`: the tests of `tests/gpu`
and both GPU benchmarks, results in `benchmarks/results`. They make their inputs there."""

import argparse
import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
NEEDED = ("stablelm", "pytest", "pytest-xdist", "hypothesis", "transformers", "torchao")
"""What `tests/gpu` and the benchmarks import; with what these need."""
THERE = re.compile(r"torch|triton|nvidia-.*|cuda-.*|setuptools")
"""Comes with PyTorch for CUDA."""
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m pip install -q --no-index --no-deps --upgrade --target .bundle/site .bundle/wheels/*.whl
export PYTHONPATH=$PWD/.bundle/site:$PWD
python3 -m pytest -p no:cacheprovider tests/gpu
python3 benchmarks/kernels_gpu.py
python3 benchmarks/train_step_gpu.py "$@"
"""


def plain(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: tuple[str, ...]) -> dict[str, str]:
    """Name → version of these packages and all that they require, as installed here."""
    found: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = plain(waiting.pop())
        if name in found or THERE.fullmatch(name):
            continue
        try:
            about = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another environment: newest that the index has
            found[name] = ""
            continue
        found[name] = about.version
        for line in about.requires or []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(wanted.name)
    found.pop("stablelm", None)
    return found


def main() -> int:
    """Fills the folder; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--have", type=Path, help="names or `pip freeze` lines of what is there already")
    parser.add_argument("--python", default="3.12", help="Python of that machine (default 3.12)")
    parser.add_argument("--out", type=Path, default=ROOT / ".bundle")
    options = parser.parse_args()
    wanted = closure(NEEDED)
    if options.have:
        lines = options.have.read_text(encoding="utf-8").splitlines()
        for name in (re.split(r"[=<>@ ]", line.strip())[0] for line in lines):
            wanted.pop(plain(name), None)
    wheels = options.out / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(wheels),
    ]
    command += ["--python-version", options.python, "--implementation", "cp"]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    if wanted:
        pins = [f"{name}=={version}" if version else name for name, version in sorted(wanted.items())]
        if (status := subprocess.run([*command, *pins]).returncode) != 0:
            print(
                "bundle: pip found no wheel; give --have, or --python of the other machine.", file=sys.stderr
            )
            return status
    (options.out / "run.sh").write_text(SCRIPT, encoding="utf-8")
    size = sum(path.stat().st_size for path in wheels.iterdir())
    print(f"{options.out}: {len(wanted)} packages, {size / 1e6:.1f} MB, and run.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
