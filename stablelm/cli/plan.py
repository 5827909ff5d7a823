"""`stablelm plan`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stablelm.cli.options import Overrides, architecture_of


def plan(
    config: Annotated[Path, typer.Argument(help="YAML run, ours or GPT-NeoX's; its data need not be there.")],
    gpus: Annotated[int, typer.Option(min=1, help="How many.")],
    gpu: Annotated[
        str,
        typer.Option(help="Which: a100-40gb, a100-80gb, h100, h200, b200, mi300x, or cpu (measured now)."),
    ],
    set_: Overrides = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(help="What one GPU trains, measured; else a speed is assumed, and said to be."),
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Share of the peak, as 0.4, counted by 6N + 12·L·h·s.")
    ] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="For the cost.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Also run one fake step on that many ranks; no GPU is needed.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Everything as JSON; sizes in bytes.")] = False,
) -> None:
    """Say what a run needs and costs before any GPU starts: memory, speed, days, money, network, advice.

    Example: stablelm plan configs/stablelm-3b-4e1t.yml --gpus 256 --gpu a100-40gb --tokens-per-second 6028
    """
    from stablelm.config import load_run_config

    # a mistake is told before PyTorch is loaded
    run = load_run_config(config, set_ or [], gpus=gpus, architecture=architecture_of)
    from stablelm.planning import device_named, estimate_lines, estimate_run

    estimate = estimate_run(
        run, gpus, device_named(gpu), tokens_per_second=tokens_per_second, mfu=mfu,
        price_per_gpu_hour=price_per_gpu_hour,
    )  # fmt: skip
    done = None
    if dry_run:
        from stablelm.training.dry_run import dry_run as run_dry

        done = run_dry(run, gpus)
    if json_:
        about = {"config": str(config), **estimate.as_dict(), "dry_run": done and done.as_dict()}
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join([*estimate_lines(estimate), *(["", *done.lines()] if done else [])]))
    if done and done.faults:
        raise typer.Exit(1)
