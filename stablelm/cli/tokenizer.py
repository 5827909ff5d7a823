"""`stablelm tokenizer …`."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Make a tokenizer.", no_args_is_help=True)


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Directory to write; tokenizer.json is in it.")],
    files: Annotated[
        list[str], typer.Argument(help="Folders, globs, .txt .md .py .jsonl .parquet (.gz .zst).")
    ],
    vocab_size: Annotated[int, typer.Option(help="Ids in all; 281 of them are not learnt.")] = 32_768,
    text_format: Annotated[
        Literal["auto", "text", "jsonl", "parquet"],
        typer.Option("--format", help="auto goes by the suffix; others read any suffix."),
    ] = "auto",
    text_key: Annotated[str, typer.Option(help="Key (jsonl) or column (parquet) of the text.")] = "text",
    on_error: Annotated[Literal["stop", "skip"], typer.Option(help="skip counts broken documents.")] = "stop",
) -> None:
    """Train a tokenizer by the GPT-NeoX recipe: NFC, byte-level BPE, <|endoftext|> = 0.

    Example: stablelm tokenizer train tokenizers/mine books/ notes.txt --vocab-size 8192
    """
    from stablelm.config.recipe import SourceConfig
    from stablelm.config.schema import validate
    from stablelm.data.accounts import SourceAccount
    from stablelm.data.sources import read_documents
    from stablelm.tokenizer.training import train_tokenizer

    keys = {"name": "files", "paths": files, "format": text_format, "text_key": text_key}
    source, account = validate(SourceConfig, keys, "tokenizer train"), SourceAccount()

    def texts() -> Iterator[str]:
        number, spoken = 0, time.monotonic()
        for number, document in enumerate(read_documents(source, ".", on_error, account), 1):
            yield document.text
            if time.monotonic() - spoken > 2:
                spoken = time.monotonic()
                typer.echo(f"{number:,} documents read", err=True)
        typer.echo(f"{number:,} documents read; learning {vocab_size:,} ids", err=True)

    tokenizer = train_tokenizer(texts(), vocab_size, out)
    about = account.as_dict()
    for reason, count in {**about["dropped"], **about["errors"]}.items():
        typer.echo(f"left out: {count:,} × {reason}, first at {account.examples[reason][0]}", err=True)
    typer.echo(f"{out}: {tokenizer.size:,} ids")
