"""`stablelm export`: any model to a Hub-ready directory, weights, tokenizer, configuration and model card.

The directory appears whole or not at all; what would make the card wrong (a licence that an ancestor forbids)
is refused before a weight is read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stablelm.config.card import CardConfig
from stablelm.config.schema import apply_overrides, validate
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import save_pretrained
from stablelm.interchange.model_card import model_card, settled_licence
from stablelm.interchange.open import locate, open_path
from stablelm.interchange.provenance import Provenance, lineage, read_provenance
from stablelm.model import StableLM
from stablelm.storage import refuse_existing


def export(path: str | Path, out: Path, dtype: torch.dtype, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Writes `out` from the model at `path` (also a Hub id) in `dtype`; yields lines for the console.

    `overrides` are `key=value` for the card. `InputError` names what is wrong with either."""
    refuse_existing(out)
    folder = resolve(path)
    card = card_of(folder, path, overrides)
    model, tokenizer = open_path(folder, dtype)
    text = card(model, out.name)
    save_pretrained(model, tokenizer, out, files={"README.md": text})
    if tokenizer is None:
        yield f"warning: {path} has no tokenizer.json, so {out} has none either"
    if "\nlicense: unknown\n" in text:
        yield "warning: the card states no licence; add --set licence=… (apache-2.0, cc-by-sa-4.0, …)"
    yield f"{out}: {model.num_parameters():,} parameters, {_shown(model)}"


def card_of(folder: Path, path: str | Path, overrides: Sequence[str]) -> Callable[[StableLM, str], str]:
    """What writes the card of a model from `folder` (opened as `path`), given the opened model and its new
    name; `InputError` at once for keys or a licence that cannot be."""
    known = Provenance()
    if not _is_foreign(folder):
        inside = locate(folder)
        known = read_provenance(inside)
        if not known.run:
            known = replace(known, ancestors=lineage(inside, path))
    values = apply_overrides(known.card.model_dump(), overrides)
    known = replace(known, card=validate(CardConfig, values, "card"))
    settled_licence(known.card, known.ancestors)

    def card(model: StableLM, name: str) -> str:
        changes = f"written anew in {_shown(model)}, not trained further"
        return model_card(model.config, known, name, _shown(model), changes)

    return card


def _is_foreign(folder: Path) -> bool:
    """Whether the path is of a format that has no card: one file, a GPT-NeoX checkpoint."""
    return folder.is_file()


def _shown(model: StableLM) -> str:
    return str(model.dtype).removeprefix("torch.")
