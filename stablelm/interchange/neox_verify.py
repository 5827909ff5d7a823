"""Whether two paths hold the same model, and which QKV order a GPT-NeoX checkpoint is in.

A wrong order of the fused QKV rows fits every shape and still gives another model, so only a forward pass
finds it. With another copy of the model at hand (the Hugging Face files, say) `verify_neox` runs both on
fixed ids in float32 and says where they part; if they do, it tries the other orders and names the one that
matches. With the checkpoint alone, `loss_by_layout` gives the loss on a text for each order: the right one
reads it (2 to 4 nats a token for a trained model), wrong ones are near or above ln(vocabulary).
Costs a forward pass of 64 tokens a model, and both models in memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.interchange.neox import is_neox, load_neox, open_neox
from stablelm.interchange.neox_layout import possible_layouts
from stablelm.interchange.open import open_path
from stablelm.model import StableLM

CLOSE = 1e-4
"""Largest difference of float32 logits, as a share of their largest value, that is rounding."""


@dataclass(frozen=True)
class Comparison:
    """Two models' forward passes on the same ids."""

    largest_difference: float
    """Of the logits, absolute; NaN where one of the models gives NaN."""
    largest_logit: float
    same_choice: float
    """Share of positions where both find the same next token likeliest."""
    place: str | None
    """The first place where hidden states part, None where the models are equal."""
    layout: str | None = None
    """The QKV order under which the two are equal, where it is not the one that was asked for."""
    tried: tuple[str, ...] = ()
    """Other QKV orders that were tried."""

    @property
    def equal(self) -> bool:
        """Equal but for rounding."""
        return self.place is None

    def __str__(self) -> str:
        if self.equal:
            exact = "bit-equal" if self.largest_difference == 0 else "equal but for rounding"
            return f"{exact}: logits differ by at most {self.largest_difference:.3g}"
        if self.layout:
            why = f"; with qkv_layout {self.layout} they are equal"
        else:
            why = "; no order of the QKV rows makes them equal" if self.tried else ""
        return (
            f"not equal, they part at {self.place}: logits differ by up to {self.largest_difference:.3g} "
            f"(the largest is {self.largest_logit:.3g}), the likeliest token agrees at "
            f"{self.same_choice:.0%} of positions{why}"
        )


def fixed_ids(vocab_size: int, length: int = 64) -> Tensor:
    """int64 [1, length]: ids spread over the vocabulary, the same for everybody."""
    return (torch.arange(length) * 7919 + 13).remainder(vocab_size).unsqueeze(0)


@torch.no_grad()
def compare_models(one: StableLM, other: StableLM, input_ids: Tensor | None = None) -> Comparison:
    """Compares logits and hidden states of two models, best in float32, on `input_ids` [B, S].

    Padding rows of the vocabulary that only one of the two has are left out."""
    rows = min(one.config.vocab_size, other.config.vocab_size)
    length = min(64, one.config.max_position_embeddings, other.config.max_position_embeddings)
    ids = fixed_ids(rows, length) if input_ids is None else input_ids
    for name in ("hidden_size", "num_hidden_layers"):
        if getattr(one.config, name) != getattr(other.config, name):
            return Comparison(math.inf, math.inf, 0.0, f"their {name}")
    hidden: list[list[Tensor]] = [[], []]
    logits = []
    for model, collected in zip((one, other), hidden, strict=True):
        last = model.hidden_states(ids.to(model.device), collect=collected)
        collected.append(last)
        logits.append(model.lm_head(last)[..., :rows].float().cpu())
    a, b = logits
    blocks = [f"block {index}" for index in range(one.config.num_hidden_layers)]
    states = zip(["the embedding", *blocks, "the final norm"], *hidden, strict=True)
    place = next((name for name, x, y in states if not _close(x, y)), None)
    if place is None and not _close(a, b):
        place = "the head"
    return Comparison(
        largest_difference=float((a - b).abs().max()),
        largest_logit=float(torch.maximum(a.abs().max(), b.abs().max())),
        same_choice=float((a.argmax(-1) == b.argmax(-1)).float().mean()),
        place=place,
    )


def _close(x: Tensor, y: Tensor) -> bool:
    x, y = x.double().cpu(), y.double().cpu()
    return bool((x - y).abs().max() <= CLOSE * torch.maximum(x.abs().max(), y.abs().max()))


def verify_neox(
    path: str | Path,
    other: str | Path,
    *,
    qkv_layout: str | None = None,
    config: ModelConfig | str | Path | None = None,
    input_ids: Tensor | None = None,
) -> Comparison:
    """Compares the GPT-NeoX checkpoint at `path` with a model at `other` (anything that opens, another such
    checkpoint included) on `input_ids` [B, S], by default 64 fixed ones, in float32."""
    opened = open_neox(path, qkv_layout=qkv_layout, config=config)
    reference = (load_neox if is_neox(other) else open_path)(other, torch.float32)[0]
    others = tuple(layout for layout in possible_layouts(opened.config) if layout != opened.qkv_layout)
    first = compare_models(
        load_neox(path, torch.float32, qkv_layout=qkv_layout, config=config)[0], reference, input_ids
    )
    if first.place is None or not first.place.startswith("block"):
        return first  # what differs before or after the blocks is no matter of QKV
    for layout in others:
        model, _ = load_neox(path, torch.float32, qkv_layout=layout, config=config)
        if compare_models(model, reference, input_ids).equal:
            return replace(first, layout=layout, tried=others)
    return replace(first, tried=others)


@torch.no_grad()
def loss_by_layout(
    path: str | Path, text: str | Sequence[int], *, config: ModelConfig | str | Path | None = None
) -> dict[str, float]:
    """The mean loss on `text` (or on ids) in nats a token, read under each QKV order that is possible for the
    checkpoint at `path`; GPT-NeoX's own first. `InputError` where a text has no tokenizer to read it."""
    opened = open_neox(path, config=config)
    losses: dict[str, float] = {}
    for layout in possible_layouts(opened.config):
        model, tokenizer = load_neox(path, torch.float32, qkv_layout=layout, config=config)
        if isinstance(text, str) and tokenizer is None:
            raise InputError(f"{path}: no tokenizer.json beside it; give ids in place of the text.")
        ids = tokenizer.encode(text) if isinstance(text, str) and tokenizer is not None else [*map(int, text)]
        ids = ids[: model.config.max_position_embeddings + 1]
        if len(ids) < 2 or not all(0 <= i < model.config.vocab_size for i in ids):
            raise InputError(
                f"{path}: {len(ids)} ids; at least two are wanted, below the vocabulary of "
                f"{model.config.vocab_size:,}."
            )
        row = torch.tensor(ids).unsqueeze(0)
        losses[layout] = float(model(row[:, :-1], labels=row[:, 1:])) / (len(ids) - 1)
    return losses
