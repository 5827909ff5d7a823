"""`stablelm adapter …`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Merge, take out or list low-rank adapters (LoRA).", no_args_is_help=True)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter in PEFT's format, or a run that trained one.")],
    out: Annotated[Path, typer.Argument(help="Directory to write: the whole model.")],
    base: Annotated[
        str | None,
        typer.Option(help="Its base model; what packed weights were made from.", show_default="as recorded"),
    ] = None,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Precision; auto is the base model's.")
    ] = "auto",
) -> None:
    """Write the base model of ADAPTER with the adapter in its weights, as any other model.

    Example: stablelm adapter merge runs/tuned models/tuned --dtype bf16
    """
    from stablelm.cli.options import precision
    from stablelm.interchange.adapters import merge_adapter

    for line in merge_adapter(adapter, out, base, None if dtype == "auto" else precision(dtype)):
        typer.echo(line)


@app.command()
def extract(
    tuned: Annotated[str, typer.Argument(help="A model that was tuned as a whole.")],
    base: Annotated[str, typer.Argument(help="The model that it was tuned from.")],
    out: Annotated[Path, typer.Argument(help="Directory to write: an adapter on BASE in PEFT's format.")],
    rank: Annotated[int, typer.Option(min=1, help="More keeps more.")] = 16,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A matrix, as q_proj or lm_head; may be repeated.", show_default="all but lm_head"),
    ] = None,
) -> None:
    """Take what tuning changed in the matrices of TUNED out, as an adapter, and say how much it keeps.

    Example: stablelm adapter extract runs/tuned models/base adapters/tuned --rank 32
    """
    from stablelm.interchange.adapters import extract_adapter

    for line in extract_adapter(tuned, base, out, rank, target or ()):
        typer.echo(line)


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(help="Where to look, three levels deep.")] = Path("."),
) -> None:
    """List adapters: method, rank, alpha, matrices, base model, size.

    Example: stablelm adapter list runs
    """
    from stablelm.interchange.adapters import list_adapters

    rows = list_adapters(folder)
    for row in rows:
        if row.fault:
            typer.echo(f"{row.path}  cannot be used: {row.fault}")
            continue
        typer.echo(
            f"{row.path}  {row.method}  rank {row.rank}  alpha {row.alpha:g}  {row.targets}  on {row.base}  "
            f"{row.numbers:,} numbers, {row.bytes:,} bytes"
        )
    if not rows:
        typer.echo(f"{folder}: no adapter")
