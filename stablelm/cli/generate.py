"""`stablelm generate`: only the text goes to standard output."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory, a run, or a checkpoint.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.75,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that sum to this.")] = 0.95,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 means all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens that are there already less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Repeat a text; without it a new one each time.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.")
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Write the prompt first.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No statistics on standard error.")] = False,
) -> None:
    """Continue PROMPT with MODEL.

    Example: stablelm generate runs/demo/model "The quick brown" --temperature 0 --stop "."
    """
    import secrets

    from stablelm.auto import load
    from stablelm.inference import stream
    from stablelm.planning import resolve_device

    text = sys.stdin.read() if prompt == "-" else prompt
    seed = secrets.randbelow(2**31) if seed is None else seed
    network, tokenizer = load(model, device=resolve_device(device))
    pieces = stream(
        network, tokenizer, text, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed, stop=stop or (),
    )  # fmt: skip
    began = time.perf_counter()
    if echo:
        print(text, end="", flush=True)
    written = []
    for piece in pieces:
        print(piece, end="", flush=True)
        written.append(piece)
    print(flush=True)
    if not quiet:
        seconds = time.perf_counter() - began
        count = len(tokenizer.encode("".join(written)))
        typer.echo(
            f"{count} tokens in {seconds:.2f} s ({count / seconds:.1f} tokens/s), seed {seed}", err=True
        )
