"""`stablelm checkpoint …`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List, check or average the checkpoints of a run.", no_args_is_help=True)


@app.command("list")
def list_(run: Annotated[Path, typer.Argument(help="Directory of a run, its `out`.")]) -> None:
    """List a run's checkpoints: step, size, by how many processes it was written, bits per byte.

    Example: stablelm checkpoint list runs/small
    """
    from stablelm.interchange.checkpoints import list_checkpoints

    rows = list_checkpoints(run)
    for row in rows:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in row.bits_per_byte.items())
        processes = f"{row.processes:>4} process{'' if row.processes == 1 else 'es'}" if row.processes else ""
        when = f"{row.written:%Y-%m-%d %H:%M}"
        typer.echo(f"{row.name}  {when}  {row.bytes:>15,} bytes {processes}  {shown}  {row.note}".rstrip())
    if not rows:
        typer.echo(f"{run}: no checkpoint yet")


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="A checkpoint, or a run: all of its.")]) -> None:
    """Read every byte of a checkpoint: hashes, pieces, shapes, finite values.

    Example: stablelm checkpoint verify runs/small/checkpoints/step-000500
    """
    from stablelm.interchange.checkpoints import verify as verify_path

    for line in verify_path(path):
        typer.echo(line)


@app.command()
def average(
    out: Annotated[Path, typer.Argument(help="Directory to write: a checkpoint without optimizer state.")],
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more; a run means its best or newest.")],
) -> None:
    """Average the weights of checkpoints, as of the last steps of a run, into one that often reads better.

    Example: stablelm checkpoint average runs/mean runs/small/checkpoints/step-000[89]00
    """
    from stablelm.interchange.checkpoints import average as average_paths

    for line in average_paths(out, checkpoints):
        typer.echo(line)


@app.command()
def ema(
    out: Annotated[Path, typer.Argument(help="Directory to write: a checkpoint without optimizer state.")],
    checkpoint: Annotated[Path, typer.Argument(help="One that keeps an average; a run means its newest.")],
) -> None:
    """Make a model of the moving average that a run with ema.decay keeps beside its weights.

    It opens, evaluates and exports like any checkpoint; the run's own weights stay what they are.
    Example: stablelm checkpoint ema runs/smooth runs/small
    """
    from stablelm.interchange.checkpoints import moving_average

    for line in moving_average(out, checkpoint):
        typer.echo(line)
