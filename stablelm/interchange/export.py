"""`stablelm export`: any model to a Hub-ready directory, weights, tokenizer, configuration and model card.

The directory appears whole or not at all; what would make the card wrong (a licence that an ancestor forbids)
is refused before a weight is read."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stablelm.config.card import CardConfig
from stablelm.config.schema import apply_overrides, validate
from stablelm.interchange.card_results import CardResult, read_results
from stablelm.interchange.gguf import is_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import save_pretrained
from stablelm.interchange.model_card import model_card, settled_licence
from stablelm.interchange.native import best_of, newest_checkpoint
from stablelm.interchange.neox import is_neox
from stablelm.interchange.open import locate, open_path
from stablelm.interchange.provenance import Provenance, lineage, read_provenance
from stablelm.model import StableLM
from stablelm.model.fingerprint import weights_hash
from stablelm.storage import refuse_existing


def export(
    path: str | Path,
    out: Path,
    dtype: torch.dtype,
    overrides: Sequence[str] = (),
    evaluations: Sequence[str | Path] = (),
) -> Iterator[str]:
    """Writes `out` from the model at `path` (also a Hub id) in `dtype`; yields lines for the console.

    `overrides` are `key=value` for the card, `evaluations` directories that `stablelm evaluate` wrote, for a
    section of the card each. `InputError` names what is wrong with any of them."""
    refuse_existing(out)
    for folder in evaluations:  # before a weight is read
        read_results(folder, "")
    folder = resolve(path)
    known = settled_provenance(folder, path, overrides)
    model, tokenizer = open_path(folder, dtype)
    weights = weights_hash(model) if evaluations else ""
    results = [read_results(one, weights) for one in evaluations]
    text = card_text(known, model, out.name, results)
    save_pretrained(model, tokenizer, out, files={"README.md": text})
    if best := _best(folder):
        yield f"{path}: its best checkpoint, {best}"
    if tokenizer is None:
        yield f"warning: {path} has no tokenizer.json, so {out} has none either"
    if "\nlicense: unknown\n" in text:
        yield "warning: the card states no licence; add --set licence=… (apache-2.0, cc-by-sa-4.0, …)"
    for result in results:
        if not result.same_weights:
            yield (
                f"warning: {result.suite} was measured on {result.model}, not on these very weights; the "
                "card says so"
            )
    yield f"{out}: {model.num_parameters():,} parameters, {dtype_name(model)}"


def _best(folder: Path) -> str:
    """Which checkpoint of a run is exported, if it is chosen as the best."""
    newest = newest_checkpoint(folder)
    best = best_of(newest) if newest is not None and locate(folder).parent == newest.parent else None
    return f"step-{best['step']:06d} ({best['metric']} {best['value']:.4f})" if best else ""


def settled_provenance(folder: Path, path: str | Path, overrides: Sequence[str]) -> Provenance:
    """What is known of the model in `folder` (opened as `path`) with the card's `key=value` overrides;
    `InputError` for a key or a licence that cannot be."""
    known = Provenance()
    if not is_gguf(folder) and not is_neox(folder):  # which carry no card
        inside = locate(folder)
        known = read_provenance(inside)
        if not known.run:
            known = replace(known, ancestors=lineage(inside, path))
    values = apply_overrides(known.card.model_dump(), overrides)
    known = replace(known, card=validate(CardConfig, values, "card"))
    settled_licence(known.card, known.ancestors)
    return known


def card_text(known: Provenance, model: StableLM, name: str, results: Sequence[CardResult] = ()) -> str:
    """The model card of weights that are written again as they are."""
    shown = dtype_name(model)
    changes = f"written anew in {shown}, not trained further"
    return model_card(model.config, known, name, shown, changes, results)


def dtype_name(model: StableLM) -> str:
    """As in "bfloat16"."""
    return str(model.dtype).removeprefix("torch.")
