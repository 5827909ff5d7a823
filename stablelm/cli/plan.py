"""`stablelm plan`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stablelm.cli.options import Overrides, architecture_of


def plan(
    config: Annotated[
        str | None,
        typer.Argument(
            help="YAML run, ours or GPT-NeoX's; its data need not be there. With --finetune a preset, a "
            "model, or the YAML of a fine-tuning run."
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many.")] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Which: a100-40gb, a100-80gb, h100, h200, b200, mi300x, or cpu (measured now)."),
    ] = None,
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
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune",
            help="Instead: what full, LoRA and QLoRA fine-tuning need on one device; of CONFIG, else of "
            "stablelm-3b-4e1t.",
        ),
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="--finetune: of adapters.", show_default="16")
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(
            min=2, help="--finetune: tokens of a row.", show_default="the model's context, at most 2,048"
        ),
    ] = None,
    memory: Annotated[
        list[int] | None,
        typer.Option(help="--finetune: GB of a device; may be repeated.", show_default="8, 16, 24, 40"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Everything as JSON; sizes in bytes.")] = False,
) -> None:
    """Say what a run needs and costs before any GPU starts: memory, speed, days, money, network, advice.

    Example: stablelm plan configs/stablelm-3b-4e1t.yml --gpus 256 --gpu a100-40gb --tokens-per-second 6028
    Example: stablelm plan --finetune --sequence-length 1024
    """
    from stablelm.config import InputError, load_run_config

    of_tuning = {"--rank": rank, "--sequence-length": sequence_length, "--memory": memory}
    of_runs = {
        "--gpus": gpus, "--gpu": gpu, "--tokens-per-second": tokens_per_second, "--mfu": mfu,
        "--price-per-gpu-hour": price_per_gpu_hour, "--dry-run": dry_run or None,
    }  # fmt: skip
    foreign = [name for name, value in (of_runs if finetune else of_tuning).items() if value is not None]
    if foreign:
        raise InputError(f"{foreign[0]} {'does not go' if finetune else 'goes'} with --finetune.")
    if finetune:
        _tuning(config, set_ or [], rank, sequence_length, memory, json_)
        return
    if config is None or gpus is None or gpu is None:
        missing = "the YAML run" if config is None else "--gpus" if gpus is None else "--gpu"
        raise InputError(
            f"{missing} is missing: stablelm plan RUN.yml --gpus 8 --gpu h100, or stablelm plan --finetune."
        )
    # a mistake is told before PyTorch is loaded
    run = load_run_config(Path(config), set_ or [], gpus=gpus, architecture=architecture_of)
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
        about = {"config": config, **estimate.as_dict(), "dry_run": done and done.as_dict()}
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join([*estimate_lines(estimate), *(["", *done.lines()] if done else [])]))
    if done and done.faults:
        raise typer.Exit(1)


def _tuning(
    name: str | None,
    overrides: list[str],
    rank: int | None,
    length: int | None,
    memory: list[int] | None,
    json_: bool,
) -> None:
    from stablelm.config import InputError, preset
    from stablelm.config.finetune import load_finetune_config
    from stablelm.config.model import PRESETS
    from stablelm.planning.tuning import SIZES, estimate_tuning

    name = name or "stablelm-3b-4e1t"
    recompute: str | int = "full"
    chunk = 512
    if name.lower().endswith((".yml", ".yaml")):
        config = load_finetune_config(Path(name), overrides)
        name, recompute, chunk = config.model, config.recompute, config.loss_chunk
        length, rank = length or config.batch.sequence_length, rank or config.adapter.rank
    elif overrides:
        raise InputError("--set changes a YAML run; give one, or leave --set out.")
    if name not in PRESETS and "/" not in name and not Path(name).exists():
        raise InputError(f"{name}: neither a model nor a preset ({', '.join(PRESETS)}).")
    model = preset(name) if name in PRESETS else architecture_of(name)
    estimate = estimate_tuning(
        model, name, rank=rank or 16, length=length, sizes=memory or SIZES, recompute=recompute,
        loss_chunk=chunk,
    )  # fmt: skip
    if json_:
        typer.echo(json.dumps(estimate.as_dict(), indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(estimate.lines()))
