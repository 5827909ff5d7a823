"""`stablelm perplexity`: how well a model predicts text."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def perplexity(
    model: Annotated[str, typer.Argument(help="A model in any form that opens (also a Hub id).")],
    files: Annotated[
        list[Path], typer.Argument(help="Text: one document a file; .jsonl: one document a line.")
    ],
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens read at once.", show_default="the context")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="From one window to the next; less is better.", show_default="the window"),
    ] = None,
    key: Annotated[str, typer.Option(help="Where the text is in a line of .jsonl.")] = "text",
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Also the reliability table: confidence beside accuracy.")
    ] = False,
    by_position: Annotated[
        int | None,
        typer.Option(min=1, metavar="PARTS", help="Also the loss in so many equal parts of the window."),
    ] = None,
    beyond_context: Annotated[
        bool, typer.Option("--beyond-context", help="Let --window be longer than the model's context.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Precision; auto is that of the files.")
    ] = "auto",
    adapter: Annotated[
        str | None, typer.Option(help="An adapter in PEFT's format, or a run that trained one.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Loss, perplexity and bits per byte of MODEL on each of FILES, ± a standard error over documents.

    The expected calibration error says how far the model's confidence in the likeliest next token is from how
    often that token comes.

    --by-position says where in a long text the model does well: loss falls while more context helps, and
    rises where the model has not learnt to read on. It counts texts that fill the window, and no others.

    Example: stablelm perplexity runs/demo/model wiki.txt tales.jsonl --stride 512
    """
    import json

    from stablelm.auto import load
    from stablelm.cli.options import precision
    from stablelm.config import InputError
    from stablelm.evaluation.text_files import TextScores, documents, score_texts
    from stablelm.planning import resolve_device

    if by_position is not None and stride not in (None, window):
        raise InputError("--by-position wants windows that do not overlap: leave --stride away.")
    for file in files:
        if not sum(bool(text) for text in documents(file, key)):  # every line, before the model is read
            raise InputError(f"{file}: holds no text.")
    network, tokenizer = load(
        model, dtype=None if dtype == "auto" else precision(dtype), device=resolve_device(device),
        adapters=adapter or (),
    )  # fmt: skip
    context = network.config.max_position_embeddings
    window = context if window is None else window
    stride = window if stride is None else stride
    if window > context and not beyond_context:
        raise InputError(
            f"--window {window:,}: the model's context is {context:,}. --beyond-context reads on all the "
            "same."
        )
    if (by_position or 0) > window:
        raise InputError(
            f"--by-position {by_position:,}: the window has {window:,} tokens; ask for fewer parts."
        )
    if stride > window:
        raise InputError(f"--stride {stride:,} would skip tokens: the window is {window:,}. Make it smaller.")
    watched = sys.stderr.isatty()
    rows, total = [], TextScores()
    for file in files:

        def progress(tokens: int, name: str = file.name) -> None:
            if watched:
                typer.echo(f"\r{name}: {tokens:,} tokens", nl=False, err=True)

        found = score_texts(
            network, tokenizer, documents(file, key), window, stride, progress, by_position or 0
        )
        if watched:
            typer.echo("\r\033[K", nl=False, err=True)
        total += found
        rows.append({"file": str(file), **found.as_dict()})
        if by_position and not found.as_dict()["by_position"]:
            typer.echo(f"{file}: no text has {window:,} tokens, so none is told by position", err=True)
        if not as_json:
            _show(str(file), found.as_dict(), calibration)
    if as_json:
        result = {"model": model, "window": window, "stride": stride, "files": rows}
        typer.echo(json.dumps({**result, "all": total.as_dict()}, indent=2))
    elif len(files) > 1:
        _show("all", total.as_dict(), calibration)

    if by_position and not total.as_dict()["by_position"]:
        raise InputError(
            f"--by-position: no text fills a window of {window:,} tokens. Give longer texts, or a shorter "
            "--window."
        )


def _show(name: str, values: dict[str, Any], table: bool) -> None:
    count = f"{values['documents']:,} document" + "s" * (values["documents"] != 1)
    typer.echo(f"{name}: {count}, {values['tokens']:,} tokens, {values['text_bytes']:,} bytes")
    for row in ("loss", "perplexity", "bits_per_byte"):
        error = values[f"{row}_standard_error"]
        spread = "" if error is None else f" ± {error:.3g}"
        typer.echo(f"  {row.replace('_', ' '):<15}{values[row]:.6g}{spread}")
    sure = values["calibration"]
    typer.echo(f"  calibration    {sure['ece']:.4f} expected error; {100 * sure['accuracy']:.2f} % right")
    for row in sure["bins"] if table else ():
        typer.echo(
            f"    {row['above']:.3f} to {row['up_to']:.3f}  {row['tokens']:>12,} tokens  "
            f"confidence {row['confidence']:.3f}  accuracy {row['accuracy']:.3f}"
        )
    for row in values.get("by_position", ()):
        error = row["loss_standard_error"]
        spread = "" if error is None else f" ± {error:.3g}"
        typer.echo(
            f"    tokens {row['first']:>7,} to {row['last']:>7,}  loss {row['loss']:.4f}{spread}  "
            f"({row['tokens']:,} tokens of {row['documents']:,})"
        )
