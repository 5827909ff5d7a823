"""What a path knows about how its model came to be: the source of a model card.

A checkpoint of ours knows most: configuration, plan, data manifest, hardware, evaluations, and the ancestors
of its initial weights. A Hugging Face directory knows what the front matter of its README.md says; ours put
the ancestors there (`lineage`), so licence and credit survive any number of generations.

Ancestors are listed newest first. An ancestor whose licence is share-alike (CC BY-SA) binds its descendants:
theirs must be the same (`binding_licence`)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.config.card import CardConfig
from stablelm.interchange.gguf import is_gguf
from stablelm.interchange.native import is_checkpoint
from stablelm.interchange.neox import is_neox
from stablelm.interchange.open import locate
from stablelm.storage import read_json

LICENCE_LINKS = {
    "cc-by-sa-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "cc-by-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
}
_RELEASED = {"stabilityai/stablelm-3b-4e1t": "cc-by-sa-4.0"}  # caches of other tools may lack the card
SHARE_ALIKE = ("cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-sa-4.0")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)$")


@dataclass(frozen=True)
class Ancestor:
    """A model whose weights this one started from."""

    name: str
    """Its Hub id, or what its card or directory is called."""
    licence: str = ""
    """As the Hub spells it; empty when its files do not say."""
    licence_name: str = ""
    """Of a licence that the Hub calls `other`."""
    licence_link: str = ""
    """Address of the licence's text."""
    credit: str = ""
    """Who must be credited."""
    changes: str = ""
    """What was done to its weights to make the next generation."""

    def as_dict(self) -> dict[str, str]:
        """For JSON and front matter."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class Provenance:
    """All that is known; empty parts mean that the files do not say."""

    card: CardConfig = field(default_factory=CardConfig)
    run: dict[str, Any] = field(default_factory=dict)
    """The run's configuration, as `RunConfig` dumps it."""
    state: dict[str, Any] = field(default_factory=dict)
    """Step, samples, evaluations."""
    about: dict[str, Any] = field(default_factory=dict)
    """Plan, hardware, what was read of the data."""
    ancestors: tuple[Ancestor, ...] = ()


def read_provenance(folder: Path) -> Provenance:
    """What the directory of a checkpoint or of a Hugging Face model knows."""
    if is_checkpoint(folder):
        state, about = read_json(folder / "state.json"), {}
        if (folder / "about.json").is_file():
            about = read_json(folder / "about.json")
        try:
            run = state["config"]
            ancestors = tuple(Ancestor(**found) for found in about.get("ancestors", []))
            return Provenance(CardConfig(**run.get("card", {})), run, state, about, ancestors)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / 'state.json'}: damaged ({error!r}). Use the checkpoint before it."
            ) from None
    return Provenance(ancestors=lineage(folder, folder))


def ancestors_of(folder: Path, path: str | Path) -> tuple[Ancestor, ...]:
    """What weights that start from `folder`, opened as `path`, descend from.

    A checkpoint of ours is an ancestor itself when its card says who or what it is; in any case it hands on
    its own, with its training as the newest change."""
    if is_gguf(folder) or is_neox(folder):  # which carry no card
        return ()
    folder = locate(folder)
    if not is_checkpoint(folder):
        return lineage(folder, path)
    known = read_provenance(folder)
    older, card = with_changes(known), known.card
    if not (card.name or card.licence or card.authors):
        return older
    bound = binding_licence(older)
    licence = bound.licence if bound else card.licence
    link = card.licence_link or LICENCE_LINKS.get(licence, "")
    return (Ancestor(card.name or folder.name, licence, card.licence_name, link, card.authors), *older)


def with_changes(known: Provenance, changes: str = "") -> tuple[Ancestor, ...]:
    """The ancestors, the newest with what was done to its weights: the training if there was one, else
    `changes`."""
    if not known.ancestors:
        return ()
    first, *older = known.ancestors
    made = ", then ".join(filter(None, (first.changes, training_sentence(known) or changes)))
    return (replace(first, changes=made), *older)


def training_sentence(known: Provenance) -> str:
    """What was done, as a clause; empty when no training is known."""
    if not known.run:
        return ""
    length = known.run.get("batch", {}).get("sequence_length", 0)
    step, samples = known.state.get("step", 0), known.state.get("samples", 0)
    sources = ", ".join(name for name, read in known.about.get("data", {}).items() if read.get("samples"))
    trained = f"trained for {step:,} steps ({samples * length:,} tokens) on {sources}"
    if objective := known.about.get("dataset", {}).get("objective"):
        trained += f" by {objective}"
    if adapted := known.about.get("adapted"):
        trained = f"{adaptation_text(adapted)}, then {trained}"
    if averaged := known.about.get("averaged"):
        steps = ", ".join(f"{part['step']:,}" for part in averaged)
        trained += f", then the mean of the checkpoints of steps {steps} taken"
    if moving := known.about.get("ema"):
        trained += f"; a moving average of the weights (decay {moving['decay']:g})"
    return trained


def adaptation_text(adapted: Mapping[str, Any]) -> str:
    """What a run changed of the architecture of its initial weights, as a clause; key → [before, now]."""
    names = {"rope_theta": "rotary base", "max_position_embeddings": "context"}
    return " and ".join(
        f"{names.get(key, key)} changed from {before:,.16g} to {now:,.16g}"
        for key, (before, now) in sorted(adapted.items())
    )


def data_sources(known: Provenance) -> dict[str, dict[str, Any]]:
    """The sources of the data manifest, as `Dataset.summary` gives them."""
    dataset = known.about.get("dataset", {})
    found = dataset.get("sources", {}) if isinstance(dataset, Mapping) else {}
    return dict(found) if isinstance(found, Mapping) else {}


def lineage(folder: Path, path: str | Path, changes: str = "") -> tuple[Ancestor, ...]:
    """The model in `folder`, opened as `path` (a Hub id, a directory), and its own ancestors; `changes` says
    what is done to it.

    Empty for fresh weights: a directory without a card, not from the Hub, is nobody's work that is known."""
    matter = _front_matter(folder / "README.md")
    name = hub_name(folder) or (str(path) if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) else "")
    if not matter and not hub_name(folder):
        return ()
    index = matter.get("model-index")
    if isinstance(index, list) and index and isinstance(index[0], Mapping):
        name = name or str(index[0].get("name", ""))
    licence = str(matter.get("license") or _RELEASED.get(name, "")).lower()
    listed = matter.get("lineage")
    older = [
        Ancestor(**{str(k): str(v) for k, v in entry.items() if k in Ancestor.__dataclass_fields__})
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, Mapping) and entry.get("name")
    ]
    self_ = Ancestor(
        name=name or folder.resolve().name,
        licence=licence,
        licence_name=str(matter.get("license_name") or ""),
        licence_link=str(matter.get("license_link") or LICENCE_LINKS.get(licence, "")),
        credit=str(matter.get("credit") or _owner(name)),
        changes=changes,
    )
    return (self_, *older)


def hub_name(folder: Path) -> str:
    """`owner/name` of a snapshot in the Hub's local cache, else empty."""
    parts = folder.resolve().parts
    for above, part in zip(parts[1:], parts, strict=False):
        if above == "snapshots" and (found := _CACHED.match(part)):
            return f"{found[1]}/{found[2]}"
    return ""


def binding_licence(ancestors: tuple[Ancestor, ...]) -> Ancestor | None:
    """The nearest ancestor whose licence its descendants must keep."""
    return next((a for a in ancestors if a.licence in SHARE_ALIKE), None)


def _owner(name: str) -> str:
    owner = name.partition("/")[0] if "/" in name else ""
    return {"stabilityai": "Stability AI"}.get(owner, owner)


def _front_matter(card: Path) -> dict[str, Any]:
    """The YAML block of a model card; empty without one, `InputError` when it is broken."""
    if not card.is_file():
        return {}
    from huggingface_hub import ModelCard

    try:
        matter = ModelCard(card.read_text(encoding="utf-8")).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise InputError(
            f"{card}: its front matter cannot be read ({str(error).splitlines()[0]}). Repair it, or remove "
            "the file if its licence binds nobody."
        ) from None
    return dict(matter)
