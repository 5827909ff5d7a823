"""`stablelm data …`: from raw sources to token files."""

from pathlib import Path
from typing import Annotated

import typer

from stablelm.cli.find import find
from stablelm.cli.options import Overrides

app = typer.Typer(help="Prepare raw text for training.", no_args_is_help=True)
app.command()(find)


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; configs/data/example.yml shows every key.")],
    set_: Overrides = None,
) -> None:
    """Read, split, tokenise and shuffle the sources of RECIPE into token files with a manifest.

    Example: stablelm data prepare configs/data/example.yml --set on_error=skip
    """
    from stablelm.config.recipe import load_recipe

    wanted = load_recipe(recipe, set_ or [])
    from stablelm.data import Dataset
    from stablelm.data.preparation import prepare as prepare_recipe

    out = prepare_recipe(wanted, progress=lambda line: typer.echo(line, err=True))
    typer.echo("\n".join(Dataset(out).describe()))
