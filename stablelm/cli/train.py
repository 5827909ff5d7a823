"""`stablelm train` and `stablelm report`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML run; configs/reference.yml documents every key.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key: --set optimizer.lr=1e-4")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run, instead of the configuration's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
) -> None:
    """Train a model: checkpoints, metrics.jsonl and held-out bits per byte land in the run's directory.

    Example: stablelm train configs/small.yml --set batch.micro_sequences=8 --resume
    """
    from stablelm.config import load_run_config
    from stablelm.training import train as run_training

    overrides = [*(set_ or []), *([f"out={str(out)!r}"] if out is not None else [])]
    run = run_training(load_run_config(config, overrides), resume=resume)
    typer.echo(f"{run}: done. Next: stablelm report {run}, or stablelm generate {run} 'Once upon a time'")


def report(
    run: Annotated[Path, typer.Argument(help="Directory of a run, also one that is still going on.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write, by default RUN/report.html.")] = None,
) -> None:
    """Write one self-contained page about a run: curves, throughput, what was read.

    Example: stablelm report runs/small
    """
    from stablelm.training.report import run_page

    target = out or run / "report.html"
    run_page(run).write(target)
    typer.echo(str(target))
