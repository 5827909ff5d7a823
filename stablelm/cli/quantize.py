"""`stablelm quantize`: a model in 4 or 8 bits, with a table of what that changed."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def quantize(
    model: Annotated[str, typer.Argument(help="A model in any form that opens (also a Hub id).")],
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    bits: Annotated[int, typer.Option(help="4 or 8.")] = 4,
    group: Annotated[int, typer.Option(help="Columns that share a scale: 32, 64 or 128.")] = 64,
    calibrate: Annotated[
        Path | None, typer.Option(help="A text file (UTF-8): its first half calibrates, its second measures.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=16, help="Tokens to calibrate with, and to measure on.")] = 4096,
) -> None:
    """Write MODEL with weights of --bits bits to OUT, and OUT/quality.json: KL to the original, perplexity.

    Without --calibrate the measure is taken on this program's own source, in place of real text.
    Example: stablelm quantize models/stablelm-3b models/stablelm-3b-int4 --bits 4 --calibrate wiki.txt
    """
    import json

    import torch

    from stablelm.auto import load
    from stablelm.config import InputError
    from stablelm.evaluation.fidelity import fidelity, hidden_of
    from stablelm.inference.quantization import Recipe, is_packed
    from stablelm.inference.quantization import quantize as round_model
    from stablelm.interchange import save_pretrained
    from stablelm.interchange.quantized import QUALITY
    from stablelm.storage import refuse_existing

    recipe = Recipe.of(bits, group)
    refuse_existing(out)
    network, tokenizer = load(model)
    if is_packed(network):
        raise InputError(f"{model}: quantised already; start from the original.")
    window = min(512, network.config.max_position_embeddings)
    ids = tokenizer.encode(_text(calibrate, 32 * tokens))[: 2 * tokens if calibrate else tokens]
    if len(ids) < 4:
        raise InputError(f"{calibrate}: {len(ids)} tokens are too few to calibrate with and to measure on.")
    half = len(ids) // 2 if calibrate else 0

    def batches(piece: list[int]) -> list[torch.Tensor]:
        return [torch.tensor([piece[at : at + window]]) for at in range(0, len(piece), window)]

    measured = batches(ids[half:])
    reference, head = hidden_of(network, measured), network.lm_head
    done = round_model(
        network, recipe, batches(ids[:half]) if calibrate else (),
        lambda name: typer.echo(f"\r{name:<60}", nl=False, err=True) if sys.stderr.isatty() else None,
    )  # fmt: skip
    if sys.stderr.isatty():
        typer.echo("\r" + " " * 60 + "\r", nl=False, err=True)
    quality: dict[str, str | float] = {"text": calibrate.name if calibrate else "source of stablelm"}
    quality |= fidelity(reference, head, network, measured).as_dict()
    text = json.dumps(quality, indent=2) + "\n"
    save_pretrained(network, tokenizer, out, files={QUALITY: text}, quantization=done.as_dict())
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    typer.echo(f"{out}: {bits} bits, group {group}, {size:,} bytes of weights")
    for name, value in quality.items():
        shown = value if isinstance(value, str) else f"{value:,}" if name == "tokens" else f"{value:.6g}"
        typer.echo(f"  {name.replace('_', ' '):<22}{shown}")


def _text(path: Path | None, characters: int) -> str:
    """The beginning of a file; without one, of this package's source."""
    import stablelm
    from stablelm.config import InputError

    if path is None:
        sources = sorted(Path(stablelm.__file__).parent.rglob("*.py"))
        return "\n".join(source.read_text(encoding="utf-8") for source in sources)[:characters]
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(characters)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start:,} is not UTF-8. Convert the text first.") from None
