"""`stablelm generate`: only the text goes to standard output."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory, a run, a checkpoint or a demo.")],
    prompt: Annotated[
        str, typer.Argument(help="The text; - reads standard input, its last line end dropped.")
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.75,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that sum to this.")] = 0.95,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 means all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids what is there already.")] = 1.0,
    typical_p: Annotated[float, typer.Option(help="Keep the typical tokens up to this sum.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Off the logits of tokens in the new text.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, for each time one came.")] = 0.0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=VALUE", help="Added to a logit; may be repeated.")
    ] = None,
    ban_id: Annotated[list[int] | None, typer.Option(help="Never choose this id; may be repeated.")] = None,
    allow_id: Annotated[list[int] | None, typer.Option(help="Choose from these only; repeated.")] = None,
    min_new_tokens: Annotated[int, typer.Option(help="No end of text before so many tokens.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Fixes the text.", show_default="random")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Write the prompt first.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No statistics on standard error.")] = False,
) -> None:
    """Continue PROMPT with MODEL. A PROMPT that begins with a dash comes last, after --.

    Example: stablelm generate runs/demo/model "The quick brown" --temperature 0 --stop "."
    """
    import secrets

    from stablelm.auto import load
    from stablelm.inference import Sampling, stream
    from stablelm.planning import resolve_device

    text = _read(prompt)
    seed = secrets.randbelow(2**31) if seed is None else seed
    sampling = Sampling(
        temperature, top_k, top_p, min_p, repetition_penalty, seed, typical_p, presence_penalty,
        frequency_penalty, _bias(logit_bias or ()), ban_id or (), allow_id or None, min_new_tokens,
    )  # fmt: skip
    network, tokenizer = load(model, device=resolve_device(device))
    drawn: list[int] = []
    pieces = stream(
        network, tokenizer, text, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop or (),
        on_token=drawn.append,
    )  # fmt: skip
    began = time.perf_counter()
    if echo:
        typer.echo(text, nl=False)
    try:
        for piece in pieces:
            typer.echo(piece, nl=False)
    finally:
        typer.echo(nl=echo or bool(drawn))
    if not quiet:
        seconds = time.perf_counter() - began
        ended = drawn[-1] in (tokenizer.eos_id, network.config.eos_token_id)
        why = "end of text" if ended else "stop text" if len(drawn) < max_new_tokens else "the limit"
        how = "greedy" if temperature == 0 else f"seed {seed}"
        speed = f"{seconds:.2f} s ({len(drawn) / seconds:.1f} tokens/s)"
        typer.echo(f"{len(drawn):,} tokens in {speed}, ended by {why}, {how}", err=True)


def _bias(pairs: Sequence[str]) -> dict[int, float]:
    """ID=VALUE, several times, as a table."""
    from stablelm.config import InputError

    table: dict[int, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            table[int(name)] = float(value)
        except ValueError:
            raise InputError(f"--logit-bias {pair}: wants ID=VALUE, as 50=-2.5.") from None
    return table


def _read(prompt: str) -> str:
    """The prompt, or all of standard input for `-`; UTF-8 whatever the locale says."""
    from stablelm.config import InputError

    data = sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        bad = f"byte {error.start + 1:,} of the prompt, {data[error.start]:#04x},"
        raise InputError(f"{bad} is not UTF-8. Convert the text, for example with iconv.") from None
    return text.removesuffix("\n").removesuffix("\r") if prompt == "-" else text
