"""A run from first to last: its device, its processes, the lock on its directory, then the trainer."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from stablelm.config import InputError, RunConfig
from stablelm.interchange.native import finished_checkpoints
from stablelm.planning import resolve_device
from stablelm.storage import directory_lock
from stablelm.training.adapting import refuse_packed
from stablelm.training.console import Console
from stablelm.training.float8 import check_float8
from stablelm.training.parallel import finish, start
from stablelm.training.parallel.apply import check
from stablelm.training.parallel.launch import world_size
from stablelm.training.preflight import preflight
from stablelm.training.profiling import Profiler
from stablelm.training.restarting import note_start, restarted
from stablelm.training.trainer import Trainer

Checks = Literal["none", "first", "only"]


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    force_data: bool = False,
    console: Console | None = None,
    checks: Checks = "none",
    profile: int = 0,
) -> Path:
    """Trains as configured and returns the run's directory.

    With `resume`, continues from the newest checkpoint in `config.out`, or from the start when there is none;
    with `force_data` also on other data than it was trained on. With `checks` "first" all processes are
    measured and compared before the first step (preflight.py), with "only" that is all. With `profile` a
    trace of so many steps is written.
    Raises `InputError` for a configuration that does not fit its data or a run that is already there,
    `RunError` when the training itself cannot go on. Started by torchrun or srun it is one run over all
    processes, of which the first writes and speaks."""
    if config.init is not None and config.branch is None:
        refuse_packed(config.init)
    return train_by(
        Trainer, config, resume=resume, force_data=force_data, console=console, checks=checks, profile=profile
    )


def train_by(
    make: Callable[..., Trainer],
    config: RunConfig,
    *,
    resume: bool = False,
    force_data: bool = False,
    console: Console | None = None,
    checks: Checks = "none",
    profile: int = 0,
) -> Path:
    """`train` with the trainer that `make` gives for (config, console, device=…)."""
    run, began = Path(config.out), time.perf_counter()
    resume = resume or restarted(run)
    saved = finished_checkpoints(run)
    if saved and not resume and checks != "only":
        raise InputError(
            f"{run}: already holds a run ({saved[-1].name}). Continue it with --resume, or choose another "
            "--out."
        )
    device = resolve_device(config.device)
    check(config, world_size(), device.type)
    check_float8(config, device.type)
    device, started = start(device, config.parallel.timeout)
    try:
        if checks != "none":
            preflight(config, device, console)
        if checks == "only":
            return run
        trainer = make(config, console, device=device)  # refuses before anything is written
        trainer.clock.since(began)
        with contextlib.ExitStack() as held:
            trainer.ranks.at_first(lambda: held.enter_context(directory_lock(run)))
            trainer.ranks.at_first(lambda: note_start(run))
            if profile and trainer.ranks.first:
                tell = trainer.console.message
                trainer.profiler = held.enter_context(Profiler(profile, run, device, tell))
            return trainer.train(resume, force_data)
    finally:
        finish(started)
