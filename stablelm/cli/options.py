"""Options that several verbs have."""

from typing import Annotated, Literal

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as optimizer.lr=1e-4; may be repeated."),
]
Precision = Annotated[Literal["fp32", "bf16"], typer.Option("--dtype", help="Precision of the weights.")]
