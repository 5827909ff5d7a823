"""`stablelm config …`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stablelm.cli.options import Overrides

app = typer.Typer(help="Explain a run's configuration, or spell it otherwise.", no_args_is_help=True)


@app.command()
def explain(
    config: Annotated[Path, typer.Argument(help="YAML run, in our keys or GPT-NeoX's.")],
    gpus: Annotated[
        int | None, typer.Option(min=1, help="For a GPT-NeoX YAML that does not say on how many it ran.")
    ] = None,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what becomes of every key: used, mapped to ours, ignored and why, or refused and what to do.

    Example: stablelm config explain configs/stablelm-3b-4e1t.yml
    """
    from stablelm.cli.explanation import explain_config

    about = explain_config(config, set_ or [], gpus)
    if as_json:
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False, default=str))
        return
    _print_table(about["keys"])
    for fault in about["faults"]:
        typer.echo(f"refused: {fault}")
    if not about["faults"]:
        given = sum(row["given"] for row in about["keys"])
        typer.echo(f"{config}: {given} keys are given, none is refused")


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"used": "green", "mapped": "green", "ignored": "yellow", "refused": "red", "default": "dim"}
    table = Table(box=None, pad_edge=False, header_style="bold", row_styles=["", "on default"])
    for title in ("key", "value", "verdict", "ours", "why"):
        table.add_column(title, overflow="fold")
    for row in rows:
        ours = row["ours"] if row["ours_value"] is None else f"{row['ours']} = {_short(row['ours_value'])}"
        table.add_row(
            Text(row["key"]), Text(_short(row["value"])),
            Text(row["verdict"], style=colours[row["verdict"]]), Text(ours), Text(row["why"]),
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="YAML run, in our keys or GPT-NeoX's.")],
    out: Annotated[Path, typer.Argument(help="YAML to write, in the other's keys.")],
    set_: Overrides = None,
) -> None:
    """Spell a run in GPT-NeoX's keys, or a GPT-NeoX run in ours. It reads back as the same run.

    Example: stablelm config convert configs/stablelm-3b-4e1t.yml my-run.yml
    """
    from stablelm.interchange.neox_run import converted
    from stablelm.storage import refuse_existing, write_text

    refuse_existing(out)
    text, kept = converted(source, set_ or [])
    write_text(out, text)
    typer.echo(f"{out}: written")
    if kept:
        typer.echo(
            "GPT-NeoX has no key for these; they are in the section `stablelm`, which it must be given "
            f"without: {', '.join(kept)}"
        )
