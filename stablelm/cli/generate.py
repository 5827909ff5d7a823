"""`stablelm generate`: only the text goes to standard output."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stablelm.cli.answers import answer_file, begun_seed, stamp
from stablelm.cli.prompts import Prompt, logit_bias, read_prompts, read_text, truncate_left

if TYPE_CHECKING:
    from stablelm.inference import PrefixCache
    from stablelm.model import StableLM
    from stablelm.tokenizer import Tokenizer


TEMPERATURE, TOP_P = 0.75, 0.95
SEARCHES = ("beams", "length_penalty", "best_of")


def generate(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory, a run, a checkpoint or a demo.")],
    prompt: Annotated[
        str | None, typer.Argument(help="The text; - reads standard input, its last line end dropped.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Instead of PROMPT: a text, or .jsonl, a line for each prompt.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The .jsonl of answers to write; goes on there.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts of a .jsonl read at once.")] = 8,
    truncate: Annotated[
        Literal["never", "left"], typer.Option(help="left: a long prompt loses its beginning.")
    ] = "never",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = TEMPERATURE,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that sum to this.")] = TOP_P,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 means all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids what is there already.")] = 1.0,
    typical_p: Annotated[float, typer.Option(help="Keep the typical tokens up to this sum.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Off the logits of tokens in the new text.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, for each time one came.")] = 0.0,
    bias: Annotated[
        list[str] | None,
        typer.Option("--logit-bias", metavar="ID=VALUE", help="Added to a logit; may be repeated."),
    ] = None,
    ban_id: Annotated[list[int] | None, typer.Option(help="Never choose this id; may be repeated.")] = None,
    allow_id: Annotated[list[int] | None, typer.Option(help="Choose from these only; repeated.")] = None,
    min_new_tokens: Annotated[int, typer.Option(help="No end of text before so many tokens.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Fixes the text.", show_default="random")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Write the prompt first.")] = False,
    infill: Annotated[
        bool, typer.Option("--infill", help="Write what belongs where the prompt says <FILL>.")
    ] = False,
    suffix: Annotated[
        Path | None, typer.Option(help="With --infill: what follows, a file; PROMPT is what precedes.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR",
            help="An adapter in PEFT's format, or a run that trained one; of several, a .jsonl line chooses.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    beams: Annotated[
        int, typer.Option(help="Above 1: search for a likely text with so many beams; nothing is drawn.")
    ] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="With --beams: above 0 favours longer texts, below 0 shorter ones.")
    ] = 1.0,
    best_of: Annotated[
        int, typer.Option(help="Draw so many (SEED, SEED + 1, …), write the likeliest a token.")
    ] = 1,
    window: Annotated[
        int | None,
        typer.Option(help="Go on beyond the context: see the latest WINDOW tokens and the --sinks."),
    ] = None,
    sinks: Annotated[
        int | None, typer.Option(help="With --window: first tokens that stay in sight.", show_default="4")
    ] = None,
    prefix: Annotated[
        Path | None, typer.Option(help="From --save-prefix: what PROMPT begins with is not read again.")
    ] = None,
    save_prefix: Annotated[
        Path | None, typer.Option(help="Keep in this new file what reading PROMPT computed.")
    ] = None,
    lookup: Annotated[
        bool, typer.Option("--lookup", help="Read ahead what the text said before: the same, sooner.")
    ] = False,
    cache: Annotated[
        Literal["auto", "int8", "bf16"], typer.Option(help="Keys and values; auto: int8 for 4-bit models.")
    ] = "auto",
    stats: Annotated[bool, typer.Option("--stats", help="Rates of prefill and decoding, GB/s.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No statistics on standard error.")] = False,
) -> None:
    """Continue PROMPT with MODEL. A PROMPT that begins with a dash comes last, after --.

    With --file prompts.jsonl --out answers.jsonl each line {"prompt": …, "id"?: …, "adapter"?: …} becomes a
    line {"id", "prompt", "text"}; line n draws with SEED + n; the same command goes on after an interruption.

    Example: stablelm generate runs/demo/model "The quick brown" --temperature 0 --stop "."

    A long text that comes again: --save-prefix rules.prefix once, then --prefix rules.prefix with each
    prompt that begins with it. Another model needs a file of its own.

    Between two texts: --infill 'def f(x):\n    <FILL>\n    return y', or --file before.py --suffix after.py,
    with a model that was taught to (docs/adaptation.md).

    Longer than the context: --window 2000 --max-new-tokens 20000. What leaves the window is forgotten.
    """
    import secrets

    from stablelm.auto import load
    from stablelm.config import InputError
    from stablelm.inference import Decoding, PrefixCache, Sampling, Window, stream
    from stablelm.inference import generate as write
    from stablelm.inference.window import SINKS
    from stablelm.interchange.adapters import adapter_directory, named
    from stablelm.planning import resolve_device
    from stablelm.planning.speed import speed_of
    from stablelm.storage import refuse_existing
    from stablelm.tokenizer.infilling import FILL, InfillingTokenizer, around

    if (prompt is None) == (file is None):
        raise InputError("give either a PROMPT (- is standard input) or a --file.")
    many = file is not None and file.suffix == ".jsonl"
    if many != (out is not None):
        raise InputError("--file with prompts in .jsonl and --out for their answers go together.")
    if many and (echo or stats or lookup or prefix or save_prefix):
        raise InputError(
            "--echo, --stats, --lookup, --prefix and --save-prefix go with one prompt, not with a .jsonl "
            "(whose prompts share what all of them begin with)."
        )
    if suffix is not None and (not infill or many):
        raise InputError("--suffix goes with --infill and one prompt, which it follows.")
    if infill and truncate == "left":
        raise InputError("--infill reads all of a prompt; leave --truncate left away.")
    if window is None and sinks is not None:
        raise InputError("--sinks stay in sight of a --window; give that, too.")
    if window is not None and truncate == "left":
        raise InputError("a --window reads a prompt of any length; leave --truncate left away.")
    if stats and (beams > 1 or best_of > 1 or window is not None):
        raise InputError("--stats measures plain writing, without --beams, --best-of and --window.")
    precision = None if cache == "auto" else cache
    how: dict[str, Any] = {
        "beams": beams, "length_penalty": length_penalty, "best_of": best_of, "window": window,
        "sinks": SINKS if sinks is None else sinks, "cache": precision,
    }  # fmt: skip
    way = Decoding(
        lookup,
        beams,
        length_penalty,
        best_of,
        None if window is None else Window(window, how["sinks"]),
        cache=precision,
    )
    if save_prefix is not None:
        refuse_existing(save_prefix)
    if prefix is not None and not prefix.is_file():
        raise InputError(f"{prefix}: no such file. Make it with --save-prefix.")
    adapters = named(adapter or ())
    if len(adapters) > 1 and not many:
        raise InputError("one prompt takes one --adapter; the lines of a .jsonl choose among several.")
    places = {name: adapter_directory(path) for name, path in adapters.items()}
    if many and file:
        prompts = read_prompts(file, list(adapters))
    else:
        alone = read_text(file or prompt or "", whole=infill)
        if suffix is not None:
            alone += FILL + read_text(suffix, whole=True)
        prompts = [Prompt(alone, alone)]
    for one in prompts if infill else ():
        try:
            around(one.text)
        except InputError as error:
            raise InputError(f"line {one.line:,} of {file}: {error}" if many else str(error)) from None
    if out is not None:
        refuse_existing(out)
        seed = begun_seed(out) if seed is None else seed
    if beams == 1:
        seed = secrets.randbelow(2**31) if seed is None else seed
    else:  # the defaults are for drawing
        temperature = 1.0 if temperature == TEMPERATURE else temperature
        top_p = 1.0 if top_p == TOP_P else top_p
    sampling = Sampling(
        temperature, top_k, top_p, min_p, repetition_penalty, seed, typical_p, presence_penalty,
        frequency_penalty, logit_bias(bias or ()), ban_id or (), allow_id or None, min_new_tokens,
    )  # fmt: skip
    way.check(sampling)
    network, tokenizer = load(model, device=resolve_device(device), adapters=adapters)
    if infill:
        tokenizer = InfillingTokenizer(tokenizer)
    if way.window is not None:
        way.window.fits(network.config)
    if truncate == "left":
        prompts = _truncated(network, tokenizer, prompts, max_new_tokens)
    if out is not None:
        say = (lambda text: None) if quiet else (lambda text: typer.echo(text, err=True))
        answer_file(out, network, tokenizer, prompts, sampling, max_new_tokens, stop or (), batch,
                    {"model": stamp(model), **({"infill": True} if infill else {}),
                     **{f"adapter {name}": stamp(place) for name, place in places.items()}},
                    say, how)  # fmt: skip
        return
    text = prompts[0].text
    read, skipped = tokenizer.encode(text) or [tokenizer.eos_id], 0
    kept = None
    if prefix is not None:
        kept = PrefixCache.load(prefix, network, precision)
        skipped = _skipped(prefix, kept, tokenizer, read, quiet)
    elif save_prefix is not None:
        kept = PrefixCache(network, precision)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "sampling": sampling, "stop": stop or (), "prefix": kept,
        "window": window, "sinks": how["sinks"], "cache": precision,
    }  # fmt: skip
    drawn: list[int] = []
    times: list[float] = []

    def on_token(token: int) -> None:
        drawn.append(token)
        times.append(time.perf_counter())

    def search() -> Iterator[str]:
        yield write(network, tokenizer, text, **settings, **{key: how[key] for key in SEARCHES})

    searches = beams > 1 or best_of > 1
    # Made before anything is written or saved: what is wrong is refused here.
    pieces = stream(network, tokenizer, text, **settings, lookup=lookup, on_token=on_token)
    if searches:
        pieces = search()
    if save_prefix is not None and kept is not None:
        kept.read(read)
        kept.save(save_prefix)
        if not quiet:
            typer.echo(f"{save_prefix}: {len(read):,} tokens", err=True)
        skipped = len(read) - 1
    began = time.perf_counter()
    before, after = around(text) if infill else (text, "")
    if echo:
        typer.echo(before, nl=False)
    try:
        for piece in pieces:
            typer.echo(piece, nl=False)
        if echo:
            typer.echo(after, nl=False)
    finally:
        typer.echo(nl=echo or searches or bool(drawn))
    seconds = time.perf_counter() - began
    if searches and not quiet:
        last = (seed or 0) + best_of - 1
        kind = f"{beams} beams" if beams > 1 else f"the likeliest of {best_of}, seeds {seed} to {last}"
        typer.echo(f"{seconds:.2f} s, {kind}", err=True)
    elif not quiet:
        ended = drawn[-1] in (tokenizer.eos_id, network.config.eos_token_id)
        why = "end of text" if ended else "stop text" if len(drawn) < max_new_tokens else "the limit"
        kind = "greedy" if temperature == 0 else f"seed {seed}"
        speed = f"{seconds:.2f} s ({len(drawn) / seconds:.1f} tokens/s)"
        typer.echo(f"{len(drawn):,} tokens in {speed}, ended by {why}, {kind}", err=True)
    if stats:
        speed_lines = speed_of(network, len(read) - skipped, began, times).lines(network.device, not lookup)
        typer.echo("\n".join(speed_lines), err=True)


def _skipped(file: Path, kept: "PrefixCache", tokenizer: "Tokenizer", ids: list[int], quiet: bool) -> int:
    """How many tokens of the prompt need not be read, which is told; none is a mistake."""
    from stablelm.config import InputError

    shared = kept.shared([ids])
    if not shared:
        raise InputError(
            f"{file}: the prompt does not begin as its text does ({tokenizer.decode(kept.ids[:12])!r}…). "
            "Begin with that text, or leave --prefix away."
        )
    if not quiet:
        typer.echo(f"{file}: {shared:,} of the prompt's {len(ids):,} tokens were read before", err=True)
    return shared


def _truncated(network: "StableLM", tokenizer: "Tokenizer", prompts: list[Prompt], new: int) -> list[Prompt]:
    """The prompts, without the beginning of those that leave no room; what was cut is told."""
    room = network.config.max_position_embeddings - new
    kept: list[Prompt] = []
    for one in prompts:
        text, cut = truncate_left(tokenizer, one.text, room) if room > 0 else (one.text, 0)
        if cut:
            where = f"the prompt of line {one.line:,}" if one.line else "the prompt"
            typer.echo(f"{where} lost its first {cut:,} tokens", err=True)
        kept.append(replace(one, text=text))
    return kept
