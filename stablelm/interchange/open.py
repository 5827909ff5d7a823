"""One door for every path that holds a model: a Hugging Face directory, a checkpoint, a run, a demo's output,
a GPT-NeoX checkpoint, a GGUF file.

What a path is follows from the files in it, never from its name."""

from pathlib import Path

import torch

from stablelm.config import InputError, ModelConfig
from stablelm.config.model import from_huggingface
from stablelm.inference.quantization import Recipe, is_packed, quantize
from stablelm.interchange.base import Base, base_fingerprint, reread
from stablelm.interchange.gguf import is_gguf, load_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import INDEX, WEIGHTS, load_pretrained, read_config
from stablelm.interchange.native import check_weights, is_checkpoint, load_checkpoint, result_of
from stablelm.interchange.neox import is_neox, load_neox
from stablelm.interchange.peft import CONFIG, is_adapter, load_adapter
from stablelm.interchange.quantized import is_quantized, load_quantized
from stablelm.model import StableLM
from stablelm.model.adapters import DEFAULT, merge
from stablelm.storage import refuse_dead_link
from stablelm.tokenizer import Tokenizer


def open_path(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    build: type[StableLM] = StableLM,
    *,
    allow_pickle: bool = False,
) -> tuple[StableLM, Tokenizer | None]:
    """The model (an instance of `build`) and the tokenizer at `path`, None where there is none.

    `dtype` None keeps the precision of the files. `allow_pickle` also reads pytorch_model.bin, as data only.
    `InputError` says what was looked for."""
    if is_gguf(path):
        return load_gguf(path, dtype, device, build)
    if is_neox(path):
        return load_neox(path, dtype, device, build)
    found = locate(path)
    if is_adapter(found):
        return _open_adapted(found, dtype, device, build)
    if is_checkpoint(found):
        return load_checkpoint(found, dtype, device, build)
    if is_quantized(found):
        return load_quantized(found, dtype, device, build)
    return load_pretrained(found, dtype, device, build, allow_pickle)


def architecture(name: str) -> ModelConfig:
    """The architecture of the model that `name` means, also a Hub id; weights are read only where it comes
    with them (GPT-NeoX, GGUF)."""
    folder = resolve(name)
    if is_gguf(folder) or is_neox(folder):
        return open_path(folder)[0].config
    place = locate(folder)
    return from_huggingface(read_config(place), str(place / "config.json"))


def _open_adapted(
    found: Path, dtype: torch.dtype | None, device: torch.device | str, build: type[StableLM]
) -> tuple[StableLM, Tokenizer | None]:
    """An adapter together with the base model that it names: merged, in float32 unless `dtype` says
    otherwise; upon packed weights, which cannot hold it, attached."""
    if is_checkpoint(found):
        check_weights(found)
    base = Base.read(found)
    model, tokenizer = open_base(base, found, build)
    if base.bits is not None and not is_packed(model):  # as it was when the adapter was trained upon it
        folder = base.find(found)
        place = folder if is_gguf(folder) or is_neox(folder) else locate(folder)
        quantize(model, Recipe.of(base.bits), weights=reread(place, model))
    if is_packed(model):
        model.compute_dtype = dtype or model.compute_dtype
        load_adapter(model, found)
    else:
        model.to(dtype or torch.float32)
        load_adapter(model, found)
        merge(model, DEFAULT)
        model.requires_grad_(True)
    if (found / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(found)
    return model.to(device), tokenizer


def open_base(
    base: Base, directory: Path, build: type[StableLM] = StableLM
) -> tuple[StableLM, Tokenizer | None]:
    """The base model of the adapter in `directory`, in its own precision; refuses one that has changed."""
    folder = base.find(directory)
    model, tokenizer = open_path(folder, None, "cpu", build)
    base.require_same(fingerprint_of(folder, model), folder, directory)
    return model, tokenizer


def fingerprint_of(folder: Path, model: StableLM) -> str:
    """Of the weights of a model as `open_path(folder)` gives it in its own precision."""
    return base_fingerprint(folder if is_gguf(folder) or is_neox(folder) else locate(folder), model)


def locate(path: str | Path) -> Path:
    """The directory with config.json and weights that `path` means: itself, an export, a checkpoint,
    of a run the best where it keeps that, else the newest."""
    folder = Path(path)
    refuse_dead_link(folder)
    if not folder.exists():
        raise InputError(f"{path}: no such directory.")
    if not folder.is_dir():
        raise InputError(f"{path}: a file; give the directory that holds it together with its config.json.")
    if (folder / "state.json").is_file() and not is_checkpoint(folder):
        raise InputError(
            f"{path}: a checkpoint that was never finished, or has lost a part. Use the one before."
        )
    if (folder / "config.json").is_file() or is_adapter(folder):  # a checkpoint has one too
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if result := result_of(folder):
        return result
    raise InputError(
        f"{path}: no model found. Looked for config.json with {WEIGHTS} or {INDEX} (Hugging Face), for the "
        "same in model/ (output of stablelm demo), for manifest.json with state.json and model/ (a "
        f"checkpoint), for checkpoints/step-N (a run; only finished checkpoints count), and for {CONFIG} (an "
        "adapter)."
    )
