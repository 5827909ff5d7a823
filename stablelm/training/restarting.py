"""A run that torchrun starts again continues by itself: no one is there to say --resume.

After a failure torchrun counts restarts in the environment (`--max-restarts`). When machines come or go
(`--nnodes 2:4`) it starts all processes anew without counting; then its run id (`--rdzv-id`, such as the
number of a Slurm job) is that which the run's directory has noted. "none", torchrun's default, is no id."""

import os
from collections.abc import Mapping
from pathlib import Path

from stablelm.storage import write_text

NOTE = "torchrun-id"
"""In a run's directory, who started it."""


def restarted(run: Path, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this run before, and starts it again."""
    if environment.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0"):
        return True
    name, noted = environment.get("TORCHELASTIC_RUN_ID", ""), run / NOTE
    return name not in ("", "none") and noted.is_file() and noted.read_text("utf-8").strip() == name


def note_start(run: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Notes torchrun's run id, by which `restarted` knows it again."""
    if name := environment.get("TORCHELASTIC_RUN_ID", ""):
        write_text(run / NOTE, name + "\n")
