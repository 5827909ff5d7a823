"""`stablelm demo`: the whole path on the text that is already on this machine."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    minutes: Annotated[
        float | None, typer.Option(help="Training time; may be 0.5.", show_default="3")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Train exactly this many steps, without timing.")] = None,
    out: Annotated[Path, typer.Option(help="Directory; the model is OUT/model.")] = Path("runs/demo"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue a demo that was interrupted.")] = False,
) -> None:
    """Turn the Python library's own text into a small trained model that writes, and a report.

    Example: stablelm demo --minutes 1 --out runs/first
    """
    from stablelm.demo import run_demo

    try:
        run_demo(out, minutes=minutes, steps=steps, resume=resume)
    except KeyboardInterrupt:
        typer.echo(f"Continue with: stablelm demo --out {out} --resume", err=True)
        raise
