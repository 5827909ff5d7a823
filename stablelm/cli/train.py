"""`stablelm train` and `stablelm report`."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from stablelm.cli.options import Overrides, architecture_of


def train(
    config: Annotated[Path, typer.Argument(help="YAML run; configs/reference.yml documents every key.")],
    set_: Overrides = None,
    out: Annotated[
        str | None, typer.Option(help="Directory of the run.", show_default="CONFIG's out")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    force_data: Annotated[
        bool, typer.Option("--force-data", help="With --resume: go on with other data than before.")
    ] = False,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight",
            help="First measure and compare all processes (speed, network, disk, clocks, versions, data) and "
            "name who is slow or differs.",
        ),
    ] = False,
    preflight_only: Annotated[
        bool, typer.Option("--preflight-only", help="The same, and do not train.")
    ] = False,
    profile: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Write a trace of N steps to RUN/profile; on CUDA also of memory.",
        ),
    ] = 0,
) -> None:
    """Train a model: checkpoints, metrics.jsonl and held-out bits per byte land in the run's directory.

    Example: stablelm train configs/small.yml --set batch.micro_sequences=8 --resume
    """
    from stablelm.config import load_run_config

    place = [] if out is None else [f"out={json.dumps(out)}"]
    # a mistake is told before PyTorch is loaded
    wanted = load_run_config(config, [*(set_ or []), *place], architecture=architecture_of)
    from stablelm.training import train as run_training
    from stablelm.training.parallel.launch import discover

    checks: Literal["none", "first", "only"] = "only" if preflight_only else "first" if preflight else "none"
    run = run_training(wanted, resume=resume, force_data=force_data, checks=checks, profile=profile)
    if preflight_only:
        return
    if discover(os.environ).rank == 0:
        typer.echo(f"{run}: done. Next: stablelm report {run}, or stablelm generate {run} 'Once upon a time'")


def report(
    run: Annotated[Path, typer.Argument(help="Directory of a run, also one that is still going on.")],
    out: Annotated[Path | None, typer.Option(help="HTML to write.", show_default="RUN/report.html")] = None,
) -> None:
    """Write one self-contained page about a run: curves, throughput, what was read.

    Example: stablelm report runs/small
    """
    from stablelm.config import InputError
    from stablelm.training.report import run_page

    if not run.is_dir():
        raise InputError(f"{run}: no such directory; give that of a run, its `out`.")
    if (run / "run" / "run.json").is_file():
        raise InputError(f"{run}: holds a demo; its run is {run / 'run'}, its report {run / 'report.html'}.")
    target = out or run / "report.html"
    run_page(run).write(target)
    typer.echo(str(target))
