"""`stablelm export`: any model to a Hub-ready directory, weights, tokenizer, configuration and model card.

The directory appears whole or not at all; what would make the card wrong (a licence that an ancestor forbids)
is refused before a weight is read."""

from collections.abc import Iterator, Sequence
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
from stablelm.storage import refuse_existing


def export(path: str | Path, out: Path, dtype: torch.dtype, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Writes `out` from the model at `path` (also a Hub id) in `dtype`; yields lines for the console.

    `overrides` are `key=value` for the card. `InputError` names what is wrong with either."""
    refuse_existing(out)
    folder = resolve(path)
    known, shown = _provenance(folder, path, overrides), str(dtype).removeprefix("torch.")
    settled_licence(known.card, known.ancestors)
    model, tokenizer = open_path(folder, dtype)
    text = model_card(model.config, known, out.name, shown, f"written anew in {shown}, not trained further")
    save_pretrained(model, tokenizer, out, files={"README.md": text})
    if tokenizer is None:
        yield f"warning: {path} has no tokenizer.json, so {out} has none either"
    if not known.card.licence and "license: unknown" in text:
        yield "warning: the card states no licence; add --set licence=… (apache-2.0, cc-by-sa-4.0, …)"
    yield f"{out}: {model.num_parameters():,} parameters, {shown}"


def _provenance(folder: Path, path: str | Path, overrides: Sequence[str]) -> Provenance:
    inside = locate(folder)
    known = read_provenance(inside)
    if not known.run:
        known = replace(known, ancestors=lineage(inside, path))
    values = apply_overrides(known.card.model_dump(), overrides)
    return replace(known, card=validate(CardConfig, values, "card"))
