"""`stablelm watch`."""

from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(help="Directory of a run; it may not have begun yet.")],
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port on 127.0.0.1.", show_default="the first free from 8765 on"),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show the page of `stablelm report` live on this machine, until Ctrl-C. Only reads.

    Example: stablelm watch runs/small (from another machine: ssh -L 8765:127.0.0.1:8765 HOST first)
    """
    from stablelm.training.watching import dashboard

    with dashboard(run, port) as server:
        there = "" if (run / "metrics.jsonl").is_file() else " (no step yet; the page waits for the first)"
        typer.echo(f"{run}: live at {server.address}{there}. Ctrl-C ends it; the run does not notice.")
        if open_:
            import webbrowser

            webbrowser.open(server.address)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            typer.echo("stopped watching; the run, if it goes on, goes on.")
