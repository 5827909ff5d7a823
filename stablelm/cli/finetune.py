"""`stablelm finetune`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stablelm.cli.options import Overrides


def finetune(
    model: Annotated[
        str, typer.Argument(help="A model in any form that opens (also a Hub id); or a YAML run, alone.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Examples: .jsonl, .json, .parquet, .txt, or what `datasets` reads."),
    ] = None,
    set_: Overrides = None,
    out: Annotated[str | None, typer.Option(help="Directory of the run and of the tuned model.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="How often each example is read.", show_default="3")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate.", show_default="2e-5, of an adapter 2e-4; for preferences 1e-6, 1e-5"
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a row.", show_default="the model's context, at most 2,048"),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train an adapter of this rank instead of the whole model: LoRA, or what --set "
            "adapter.method says.",
        ),
    ] = None,
    quantize: Annotated[
        int | None,
        typer.Option(help="With --lora: keep the model under the adapter in 4 or 8 bits (QLoRA)."),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="Examples to measure on; may be repeated.", show_default="5 % of DATA"),
    ] = None,
    preference: Annotated[
        Literal["dpo", "ipo", "kto"] | None,
        typer.Option(
            help="Learn from preferences: pairs of answers, or (kto) judged ones; docs/preference.md."
        ),
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Stop when N evaluations in a row were no better; keeps the best."
        ),
    ] = None,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="OUT opens as the checkpoint with the lowest held-out loss.")
    ] = False,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Show tokens, trained and not, of three examples; train nothing."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
) -> None:
    """Tune MODEL on examples: texts, prompts with completions, or conversations. The loss is on the answers;
    with --preference, on which of two answers is better.

    What OUT then holds opens as a model: generate, chat, evaluate, export. configs/finetune.yml has every
    key, for --set or for a file: stablelm finetune CONFIG.yml.

    Example: stablelm finetune runs/demo/model chats.jsonl --out runs/tuned --lr 5e-4 --epochs 3
    """
    from stablelm.config import InputError
    from stablelm.config.finetune import finetune_config, load_finetune_config

    flags: dict[str, Any] = {
        "out": out,
        "epochs": epochs,
        "optimizer.lr": lr,
        "batch.sequence_length": sequence_length,
        "preference.loss": preference,
        "adapter.rank": lora,
        "quantize": quantize,
        "evaluation.patience": early_stopping,
    }
    if keep_best and not any(change.startswith("evaluation.best=") for change in set_ or []):
        flags["evaluation.best"] = "loss"
    flags["data.held_out"] = held_out or None
    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    if data:
        if out is None and not preview:
            raise InputError("--out is missing: the directory of the run, and of the tuned model.")
        values: dict[str, Any] = {"model": model, "data": {"paths": list(data)}}
        config = finetune_config(values, [*(set_ or []), *given])
    elif model.lower().endswith((".yml", ".yaml")):
        config = load_finetune_config(Path(model), [*(set_ or []), *given])
    else:
        raise InputError(
            f"{model}: no examples are given. Add a file of them (stablelm finetune MODEL DATA.jsonl --out "
            "DIR), or give a YAML run alone."
        )
    from stablelm.finetuning import finetune as tune
    from stablelm.training.parallel.launch import discover

    if preview:
        from stablelm.finetuning.preview import preview as show
        from stablelm.finetuning.tuner import prepare

        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        for line in show(prepare(config)[1], 3, colour=colour):
            typer.echo(line)
        return
    run = tune(config, resume=resume)
    if discover(os.environ).rank == 0:
        if config.adapter.rank:
            typer.echo(f"{run / 'adapter'}: the adapter alone, in PEFT's format")
        typer.echo(f"{run}: done. Next: stablelm chat {run}, or stablelm export {run} MODEL_DIR --dtype bf16")
