"""Adapters as directories: several on one model, merged into it, taken out of a tuned one, listed.

An adapter is found where a user points: its own directory, or a run that trained one. Where it says on which
weights it was trained (`base.json`), other weights are refused, but packed ones, of which nobody knows what
they were made from. Merging writes a new model; packed weights cannot hold an adapter, so it goes into what
they were made from. Taking out is a truncated singular value decomposition of each matrix's difference
(Eckart & Young, 1936), which loses what a rank cannot hold; how much is told."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.config.adapter import ALL_LINEAR, AdapterConfig
from stablelm.inference.quantization import is_packed
from stablelm.interchange.base import BASE, Base
from stablelm.interchange.export import dtype_name, settled_provenance
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import _check_sizes, save_pretrained
from stablelm.interchange.model_card import model_card
from stablelm.interchange.native import is_checkpoint, newest_checkpoint
from stablelm.interchange.open import fingerprint_of, locate, open_path
from stablelm.interchange.peft import (
    CONFIG,
    WEIGHTS,
    is_adapter,
    load_adapter,
    read_adapter_config,
    save_adapter,
)
from stablelm.interchange.quantized import is_quantized
from stablelm.interchange.weights import read_header
from stablelm.model import StableLM
from stablelm.model.adapters import DEFAULT, attach, merge, parts_of, use
from stablelm.storage import refuse_existing
from stablelm.tokenizer import Tokenizer

_EXACT = 1024
"""Shorter side of a matrix up to which its decomposition is computed in full."""


def adapter_directory(path: str | Path) -> Path:
    """Where the adapter lies that `path` (also a Hub id) means: there, or in a run's newest checkpoint."""
    folder = resolve(path)
    for found in (folder, newest_checkpoint(folder) if folder.is_dir() else None, folder / "adapter"):
        if found is not None and is_adapter(found):
            return found
    raise InputError(
        f"{path}: no adapter: {CONFIG} is not there, nor is it a run that trained one (stablelm finetune … "
        "--lora RANK)."
    )


def named(adapters: Sequence[str]) -> dict[str, Path]:
    """Directories, or NAME=DIRECTORY, as a table; a directory's name is its last part, RUN for
    RUN/adapter."""
    found: dict[str, Path] = {}
    for text in adapters:
        name, equals, rest = text.partition("=")
        path = Path(rest if equals and not Path(text).exists() else text)
        if path == Path(text):
            inner = path.resolve()
            name = re.sub(r"[^\w-]", "-", inner.parent.name if inner.name == "adapter" else inner.name)
        if name in found:
            raise InputError(
                f"--adapter {text}: {name!r} is the name of {found[name]} already; write NAME={path}."
            )
        found[name] = path
    return found


def checked(model: StableLM, folder: Path, adapters: Mapping[str, str | Path]) -> dict[str, Path]:
    """The directories of adapters, by name, for a model that was opened from `folder`; `InputError` for one
    that was trained on other weights."""
    found = {name: adapter_directory(path) for name, path in adapters.items()}
    bases = {path: Base.read(path) for path in found.values() if (path / BASE).is_file()}
    if bases and not is_packed(model):
        now = fingerprint_of(folder, open_path(folder)[0])  # in its own precision
        for path, base in bases.items():
            _same(base, now, folder, path)
    return found


def _same(base: Base, now: str, folder: Path, directory: Path) -> None:
    """Refuses a model that the user named together with an adapter that was trained on other weights."""
    if base.fingerprint not in (None, now):
        raise InputError(
            f"{folder}: not the weights that the adapter in {directory} was trained on ({base.model}). Give "
            f"those; if these are the same in another precision, remove {directory / BASE}."
        )


def attach_all(model: StableLM, directories: Mapping[str, Path]) -> Tokenizer | None:
    """Puts adapters on a model, by name, and makes the first the active one; → the tokenizer of the first
    that has one, with the chat template it was trained with."""
    tokenizer = None
    for name, path in directories.items():
        load_adapter(model, path, name)
        if tokenizer is None and (path / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(path)
            _check_sizes(model, tokenizer)
    use(model, next(iter(directories), None))
    return tokenizer


def merge_adapter(
    adapter: str | Path, out: Path, base: str | Path | None = None, dtype: torch.dtype | None = None
) -> Iterator[str]:
    """Writes `out`, the base model with the adapter in its weights, in its own precision or `dtype`; yields
    lines for the console. `base` is where the base model is now, or what packed weights were made from."""
    refuse_existing(out)
    directory = adapter_directory(adapter)
    recorded = None if base is not None and not (directory / BASE).is_file() else Base.read(directory)
    folder = resolve(base) if base is not None else Base.read(directory).find(directory)
    model, tokenizer = open_path(folder)
    if is_packed(model):
        raise InputError(
            f"{folder}: packed weights cannot hold an adapter. Merge into the model that they were made "
            "from: --base ORIGINAL."
        )
    if recorded is not None and not _packed_base(recorded, directory):
        _same(recorded, fingerprint_of(folder, model), folder, directory)
    model.to(dtype or model.dtype)
    config = load_adapter(model, directory)
    merge(model, DEFAULT)
    if (directory / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(directory)
    card = directory if is_checkpoint(directory) else folder
    known = settled_provenance(card, str(base or card), ())
    changes = f"an adapter ({config.method}, rank {config.rank}) merged into it"
    text = model_card(model.config, known, out.name, dtype_name(model), changes)
    save_pretrained(model, tokenizer, out, files={"README.md": text})
    if recorded is not None and (recorded.bits is not None or _packed_base(recorded, directory)):
        yield "note: trained upon packed weights; with those that they were made from it does nearly the same"
    yield f"{out}: {model.num_parameters():,} parameters, {dtype_name(model)}, {directory} merged in"


def _packed_base(base: Base, directory: Path) -> bool:
    """Whether the adapter was trained on files with packed weights that are still there."""
    try:
        folder = locate(base.find(directory))
    except InputError:
        return False
    return is_quantized(folder)


def extract_adapter(
    tuned: str | Path, base: str | Path, out: Path, rank: int, targets: Sequence[str] = ()
) -> Iterator[str]:
    """Writes `out`, an adapter of `rank` on `base` that comes nearest to the model `tuned`; yields what it
    keeps. Norms and embeddings, which no adapter changes, stay the base model's."""
    refuse_existing(out)
    folders = [resolve(path) for path in (tuned, base)]
    (goal, tokenizer), (model, _) = (open_path(folder) for folder in folders)
    for name, one in ((tuned, goal), (base, model)):
        if is_packed(one):
            raise InputError(
                f"{name}: packed weights have no plain difference. Give what they were made from."
            )
    if model.config != goal.config:
        key = next(n for n in type(model.config).model_fields
                   if getattr(model.config, n) != getattr(goal.config, n))  # fmt: skip
        raise InputError(
            f"{tuned} has {key} {getattr(goal.config, key)}, {base} has {getattr(model.config, key)}: a "
            "model and what it was tuned from have the same architecture."
        )
    record = Base.of(str(base), folders[1], fingerprint_of(folders[1], model), out.parent)
    config = AdapterConfig(rank=rank, alpha=rank, targets=list(targets) or ALL_LINEAR)
    attach(model, config)
    ours, theirs = dict(model.named_parameters()), dict(goal.named_parameters())
    kept: dict[str, tuple[float, float]] = {}
    for place, part in parts_of(model, DEFAULT).items():
        name = f"{place}.weight"
        change = theirs[name].detach().float() - ours[name].detach().float()
        if not bool(change.isfinite().all()):
            raise InputError(f"{name}: holds NaN or infinity in one of the two models.")
        b, a = _factors(change, rank)
        part.lora_A.data.copy_(a)
        part.lora_B.data.copy_(b)
        kept[name] = float(change.square().sum()), float((change - b @ a).square().sum())
    total = sum(whole for whole, _ in kept.values())
    if not total:
        raise InputError(f"{tuned}: its matrices are those of {base}; there is nothing to take out.")
    rest = (theirs[n].detach().float() - ours[n].detach().float() for n in theirs if n not in kept)
    outside = sum(float(change.square().sum()) for change in rest)
    files = {BASE: record.as_bytes(), **(tokenizer.files() if tokenizer is not None else {})}
    save_adapter(model, out, base=str(base), files=files)
    lost = sum(left for _, left in kept.values())
    name, worst = min(((name, 1 - left / whole) for name, (whole, left) in kept.items() if whole),
                      key=lambda pair: pair[1])  # fmt: skip
    yield (
        f"{out}: rank {rank} keeps {1 - lost / total:.2%} of the difference of {len(kept)} matrices (squares "
        f"summed), error {math.sqrt(lost / total):.2%}; least of {name}, {worst:.2%}"
    )
    if outside:
        yield (
            f"warning: {outside / (total + outside):.2%} of the whole difference is in other weights (norms, "
            "embedding, matrices that are not targets), and is lost"
        )


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [out, r] and A [r, in], whose product is the nearest to `change` of this rank."""
    if min(change.shape) <= _EXACT:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        v = vh.T
    else:  # Halko et al., 2009; the same each time
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(change, q=min(rank + 16, *change.shape), niter=6)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, (v[:, :rank] * root).T


@dataclass(frozen=True)
class Listed:
    """An adapter that was found."""

    path: Path
    method: str = ""
    rank: int = 0
    alpha: float = 0
    targets: str = ""
    base: str = ""
    numbers: int = 0
    bytes: int = 0
    fault: str = ""
    """Why it cannot be used; empty when nothing speaks against it."""


def list_adapters(folder: Path) -> list[Listed]:
    """The adapters in a directory and up to three levels below it, but for those in checkpoints of runs."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory.")
    levels = ("", "*/", "*/*/", "*/*/*/")
    places = [path.parent for level in levels for path in sorted(folder.glob(f"{level}{CONFIG}"))]
    return [_listed(place) for place in places if not is_checkpoint(place)]


def _listed(place: Path) -> Listed:
    try:
        values = read_adapter_config(place)
        tensors = read_header(place / WEIGHTS)
        targets = values.get("target_modules")
        method = ("rs" if values.get("use_rslora") else "") + ("dora" if values.get("use_dora") else "lora")
        return Listed(
            place, method, int(values.get("r", 8)), float(values.get("lora_alpha", 8)),
            targets if isinstance(targets, str) else ", ".join(map(str, targets or [])),
            Base.read(place).model, sum(math.prod(t.shape) for t in tensors.values()),
            (place / WEIGHTS).stat().st_size,
        )  # fmt: skip
    except (InputError, TypeError, ValueError) as error:
        return Listed(place, fault=str(error))
