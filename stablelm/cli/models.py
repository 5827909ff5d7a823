"""`stablelm init`, `inspect` and `export`: models as files."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Precision(str, Enum):
    """Precision of saved weights."""

    fp32 = "fp32"
    bf16 = "bf16"


def init(
    out: Annotated[Path, typer.Argument(help="Directory to write, in the Hugging Face layout.")],
    preset: Annotated[str, typer.Option(help="Architecture, for example stablelm-3b-4e1t or stablelm-5m.")],
    seed: Annotated[int, typer.Option(help="The weights are drawn from it.")] = 1234,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a size: --set num_hidden_layers=2")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json to put beside the weights.")] = None,
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights.")] = Precision.fp32,
) -> None:
    """Write a model with fresh random weights.

    Example: stablelm init models/tiny --preset stablelm-1m --set vocab_size=8192
    """
    import torch

    from stablelm.config import ModelConfig
    from stablelm.config.schema import apply_overrides, validate
    from stablelm.interchange.huggingface import save_pretrained
    from stablelm.model import StableLM, initialize
    from stablelm.storage import refuse_existing, require_space
    from stablelm.tokenizer import Tokenizer

    refuse_existing(out)
    config = validate(ModelConfig, apply_overrides({"preset": preset}, set_ or []), "init")
    words = Tokenizer.from_file(tokenizer) if tokenizer else None
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype.value]
    require_space(out, config.num_parameters * kept.itemsize, "the model")
    with torch.device("meta"):
        model = StableLM(config).to(kept)
    model = model.to_empty(device="cpu")
    initialize(model, config, seed)
    save_pretrained(model, words, out)
    typer.echo(f"{out}: {model.num_parameters():,} parameters, {dtype.value}, seed {seed}")


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="A model, a run, a checkpoint, a prepared dataset, a token file or a tokenizer."),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read every byte: hashes, tensors, finiteness.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what PATH is: format, architecture, sizes, tokenizer.

    Example: stablelm inspect runs/demo/model --verify
    """
    from stablelm.interchange.inspection import describe

    facts = describe(path, verify=verify)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        typer.echo(f"{name:<{width}}  {shown}")


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run (its newest checkpoint), a checkpoint, or a model directory.")
    ],
    out: Annotated[Path, typer.Argument(help="Directory to write, in the Hugging Face layout.")],
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights.")] = Precision.fp32,
) -> None:
    """Write a directory that transformers and this package load unchanged.

    Example: stablelm export runs/demo/run models/demo --dtype bf16
    """
    import torch

    from stablelm.interchange import open_path
    from stablelm.interchange.huggingface import save_pretrained
    from stablelm.storage import refuse_existing

    refuse_existing(out)
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype.value]
    model, tokenizer = open_path(checkpoint, dtype=kept)
    save_pretrained(model, tokenizer, out)
    typer.echo(f"{out}: {model.num_parameters():,} parameters, {dtype.value}")
