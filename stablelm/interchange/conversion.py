"""`stablelm convert`: any model that can be opened, to any format that can be written.

    huggingface          what `transformers` and this package load, with a model card
    huggingface-epoch    the same, its config.json spelled as in the first release
    neox                 a GPT-NeoX checkpoint in the pipeline layout, cut for `width` tensor-parallel ranks
    gguf                 one file for llama.cpp, also quantised

What is written appears whole or not at all. `verify` opens it again and compares forward passes in float32:
the same weights give the same logits to the last bit; a precision that was lowered is reported with its
largest difference. Of a GPT-NeoX checkpoint it also gives the loss on a text for each order of the QKV rows,
since a wrong one fits every shape and still is another model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError
from stablelm.config.schema import suggest
from stablelm.interchange.export import card_text, dtype_name, settled_provenance
from stablelm.interchange.gguf import save_gguf
from stablelm.interchange.hub import PATTERNS, resolve
from stablelm.interchange.huggingface import save_pretrained
from stablelm.interchange.model_card import settled_licence
from stablelm.interchange.neox import is_neox, load_neox, open_neox
from stablelm.interchange.neox_verify import compare_models, loss_by_layout
from stablelm.interchange.neox_writing import save_neox
from stablelm.interchange.open import open_path
from stablelm.model import StableLM
from stablelm.storage import refuse_existing
from stablelm.tokenizer import Tokenizer

TARGETS = ("huggingface", "huggingface-epoch", "neox", "gguf")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTISED = ("q8_0", "q4_0")
_TEXT = (
    "The old harbour was quiet in the morning. A few boats had come in before dawn, and the men who worked "
    "on them were at home already, asleep. Only the baker's shop at the corner was open; the smell of bread "
    "went up the street as far as the church."
)
_GGUF = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True)
class Conversion:
    """What is asked for beside the two paths; what a format has no use for must be left at its default."""

    to: str
    """One of TARGETS."""
    dtype: str | None = None
    """fp32, bf16 or fp16, for gguf also q8_0 or q4_0; None keeps the precision of the files."""
    width: int = 1
    """Tensor-parallel ranks to write (neox)."""
    mlp_names: str = "new"
    """Names of the MLP's matrices to write (neox): new or legacy."""
    qkv_layout: str | None = None
    """How a GPT-NeoX checkpoint that is read stores queries, keys and values."""
    config: str | None = None
    """The architecture of a GPT-NeoX checkpoint that does not say: a preset, a config.json, a YAML."""
    allow_pickle: bool = False
    """Also read pytorch_model.bin, as data only."""
    verify: bool = False
    """Open what was written and compare forward passes."""


def convert(source: str | Path, out: Path, wanted: Conversion) -> Iterator[str]:
    """Writes `out` from the model at `source` (also a Hub id); yields lines for the console.

    `InputError` for what does not go together, before a weight is read, and for anything broken."""
    _check(wanted)
    refuse_existing(out)
    folder = resolve(source, patterns=[*PATTERNS, "*.bin"] if wanted.allow_pickle else PATTERNS)
    known = settled_provenance(folder, source, [])
    model, tokenizer = _opened(folder, wanted)
    if wanted.to == "neox":
        names: Any = wanted.mlp_names
        save_neox(model, tokenizer, out, width=wanted.width, mlp_names=names)
    elif wanted.to == "gguf":
        licence = settled_licence(known.card, known.ancestors)
        kind = wanted.dtype if wanted.dtype in QUANTISED else _GGUF.get(model.dtype, "f32")
        save_gguf(model, tokenizer, out, dtype=kind, name=out.stem, license=licence or None)
    else:
        files = {"README.md": card_text(known, model, out.name)}
        spelling: Any = "stablelm_epoch" if wanted.to == "huggingface-epoch" else "stablelm"
        save_pretrained(model, tokenizer, out, spelling=spelling, files=files)
    if tokenizer is None:
        yield f"warning: {source} has no tokenizer.json, so {out} has none either"
    kept = wanted.dtype if wanted.dtype in QUANTISED else dtype_name(model)
    yield f"{out}: {model.num_parameters():,} parameters, {kept}, as {wanted.to}"
    if wanted.verify:
        yield _verified(model, out, exact=wanted.dtype not in QUANTISED)
        if is_neox(folder):
            yield from _layouts(folder, wanted, tokenizer)


def _check(wanted: Conversion) -> None:
    if wanted.to not in TARGETS:
        raise InputError(f"--to {wanted.to!r} is not a format{suggest(wanted.to, TARGETS)}")
    names = [*PRECISIONS, *(QUANTISED if wanted.to == "gguf" else ())]
    if wanted.dtype is not None and wanted.dtype not in names:
        known = " (only gguf is quantised)" if wanted.dtype in QUANTISED else ""
        raise InputError(f"--dtype {wanted.dtype!r}: {wanted.to} is written in {', '.join(names)}{known}.")
    if wanted.to != "neox" and (wanted.width != 1 or wanted.mlp_names != "new"):
        raise InputError("--width and --mlp-names are for --to neox.")


def _opened(folder: Path, wanted: Conversion) -> tuple[StableLM, Tokenizer | None]:
    dtype = PRECISIONS.get(wanted.dtype or "")
    if is_neox(folder):
        return load_neox(folder, dtype, qkv_layout=wanted.qkv_layout, config=wanted.config)
    if wanted.qkv_layout or wanted.config:
        raise InputError(f"{folder}: --qkv-layout and --config are for GPT-NeoX checkpoints; this is none.")
    return open_path(folder, dtype, allow_pickle=wanted.allow_pickle)


def _verified(model: StableLM, out: Path, exact: bool) -> str:
    again, _ = open_path(out, torch.float32)
    found = compare_models(model.to(torch.float32), again)
    if exact and found.largest_difference != 0:
        raise InputError(f"{out}: is not what was converted ({found}). Do not use it; this is a bug.")
    if exact:
        return f"verified: {found}"
    return (
        f"verified: quantised, its logits differ by up to {found.largest_difference:.3g} (the largest is "
        f"{found.largest_logit:.3g}); the likeliest token agrees at {found.same_choice:.0%} of positions"
    )


def _layouts(folder: Path, wanted: Conversion, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Whether a GPT-NeoX checkpoint reads English best in the QKV order that was taken."""
    if tokenizer is None:
        yield "warning: no tokenizer, so the order of the QKV rows could not be tried on a text"
        return
    losses = loss_by_layout(folder, _TEXT, config=wanted.config)
    taken = open_neox(folder, qkv_layout=wanted.qkv_layout, config=wanted.config).qkv_layout
    shown = ", ".join(f"{layout} {loss:.3f}" for layout, loss in losses.items())
    yield f"loss on an English text by order of the QKV rows, nats a token: {shown}; taken: {taken}"
    best = min(losses, key=losses.__getitem__)
    if losses[best] < losses[taken] - 0.5:
        yield f"warning: {best} reads the text better than {taken}; try --qkv-layout {best}"
