"""`stablelm init`, `inspect` and `export`: models as files."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stablelm.cli.options import CardKeys, Overrides, Precision, precision


def init(
    out: Annotated[Path, typer.Argument(help="Directory to write, in the Hugging Face layout.")],
    preset: Annotated[str, typer.Option(help="Architecture, for example stablelm-3b-4e1t or stablelm-5m.")],
    seed: Annotated[int, typer.Option(min=0, help="The weights are drawn from it.")] = 1234,
    set_: Overrides = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json to put beside them.")] = None,
    dtype: Precision = "fp32",
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
    kept = precision(dtype)
    require_space(out, config.num_parameters * kept.itemsize, "the model")
    with torch.device("meta"):
        model = StableLM(config).to(kept)
    model = model.to_empty(device="cpu")
    initialize(model, config, seed)
    save_pretrained(model, words, out)
    typer.echo(f"{out}: {model.num_parameters():,} parameters, {dtype}, seed {seed}")


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A model (also a Hub id), run, checkpoint, demo or dataset, a token file (or its name "
            "without suffix), a tokenizer, a .safetensors file."
        ),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte: hashes, finiteness.")] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Which kernels the model would use on --device, and why.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; for --kernels.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what PATH is: format, architecture, sizes, tokenizer. Refuses by name what is broken.

    Example: stablelm inspect runs/demo/model --verify
    """
    from stablelm.interchange.inspection import as_lines, describe
    from stablelm.planning import resolve_device

    facts = describe(path, verify=verify, kernels=resolve_device(device) if kernels else None)
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(as_lines(facts)))


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A model in any format: Hugging Face directory, Hub id, run, checkpoint, GPT-NeoX "
            "checkpoint, GGUF file.",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Directory to write; for gguf a file.")],
    to: Annotated[str, typer.Option(help="huggingface, huggingface-epoch, neox or gguf.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp16; for gguf also q8_0 and q4_0.", show_default="as stored"),
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="neox: tensor-parallel ranks to write.")] = 1,
    mlp_names: Annotated[
        str, typer.Option(help="neox: new (linear1, linear2) or legacy (w1, w2, w3).")
    ] = "new",
    qkv_layout: Annotated[
        str | None,
        typer.Option(
            help="Of a GPT-NeoX checkpoint that is read: interleaved, concatenated or grouped.",
            show_default="by its config",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="Architecture of a GPT-NeoX checkpoint without YAML: a preset, config.json or YAML."
        ),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read pytorch_model.bin, as data only.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Open what was written and compare forward passes.")
    ] = False,
) -> None:
    """Write a model in another format.

    Example: stablelm convert runs/demo/model demo.gguf --to gguf --dtype q8_0 --verify
    """
    from stablelm.interchange.conversion import Conversion
    from stablelm.interchange.conversion import convert as write

    wanted = Conversion(to, dtype, width, mlp_names, qkv_layout, config, allow_pickle, verify)
    for line in write(source, out, wanted):
        typer.echo(line, err=line.startswith("warning: "))


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A run (its best or newest checkpoint), a checkpoint, a model, a Hub id.")
    ],
    out: Annotated[Path, typer.Argument(help="Directory to write, ready for the Hub.")],
    dtype: Precision = "fp32",
    set_: CardKeys = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Directory of results that `stablelm evaluate` wrote, for a section of the card, as that of "
            "--suite safety; may be repeated."
        ),
    ] = None,
) -> None:
    """Write a directory that transformers and this package load unchanged, with its model card.

    The card (README.md) is filled from what the checkpoint knows; --set states what only you know.

    Example: stablelm export runs/demo/run models/demo --dtype bf16 --set licence=apache-2.0
    """
    from stablelm.interchange.export import export as write

    for line in write(checkpoint, out, precision(dtype), set_ or [], evaluation or []):
        typer.echo(line, err=line.startswith("warning: "))
