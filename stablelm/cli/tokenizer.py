"""`stablelm tokenizer …`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make a tokenizer.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `tokenizer` a group of verbs."""


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Directory to write; tokenizer.json is in it.")],
    files: Annotated[
        list[Path],
        typer.Argument(help="Text to learn from: folders, .txt, .md, .py, .jsonl(.gz/.zst), .parquet."),
    ],
    vocab_size: Annotated[
        int, typer.Option(help="Ids in all: bytes, merges, 2 special and 23 space-run tokens.")
    ] = 32_768,
) -> None:
    """Train a tokenizer by the GPT-NeoX recipe: NFC, byte-level BPE, <|endoftext|> = 0.

    Example: stablelm tokenizer train tokenizers/mine books/ notes.txt --vocab-size 8192
    """
    from stablelm.config.recipe import SourceConfig
    from stablelm.data.sources import read_texts
    from stablelm.tokenizer.training import train_tokenizer

    source = SourceConfig(name="text", paths=[str(path) for path in files])
    tokenizer = train_tokenizer(read_texts(source), vocab_size, out)
    typer.echo(f"{out}: {tokenizer.size:,} ids")
