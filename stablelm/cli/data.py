"""`stablelm data …`: from raw sources to token files."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Prepare raw text for training.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `data` a group of verbs."""


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; configs/data/example.yml shows every key.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set out=data/mine")] = None,
) -> None:
    """Read, split, tokenise and shuffle the sources of RECIPE into token files with a manifest.

    Example: stablelm data prepare configs/data/example.yml --set on_error=skip
    """
    from stablelm.config.recipe import load_recipe
    from stablelm.data import Dataset
    from stablelm.data.tokenization import prepare as prepare_recipe

    out = prepare_recipe(load_recipe(recipe, set_ or []), progress=lambda line: typer.echo(line, err=True))
    typer.echo("\n".join(Dataset(out).describe()))
