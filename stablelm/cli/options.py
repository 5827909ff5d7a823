"""Options that several verbs have."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import torch

    from stablelm.config import ModelConfig

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as optimizer.lr=1e-4; may be repeated."),
]
CardKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of the model card, as licence=apache-2.0 or language=[en]; may be repeated. "
        "configs/reference.yml lists them under card.",
    ),
]
Precision = Annotated[Literal["fp32", "bf16"], typer.Option("--dtype", help="Precision of the weights.")]


def precision(name: str) -> "torch.dtype":
    """The torch dtype of an option's value."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def architecture_of(name: str) -> "ModelConfig":
    """That of initial weights; PyTorch is loaded only where a configuration leaves it to them."""
    from stablelm.interchange.open import architecture

    return architecture(name)
