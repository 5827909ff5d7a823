"""One door for every path that holds a model: a Hugging Face directory, a checkpoint, a run, a demo's output,
a GPT-NeoX checkpoint, a GGUF file.

What a path is follows from the files in it, never from its name."""

from pathlib import Path

import torch

from stablelm.config import InputError, ModelConfig
from stablelm.config.model import from_huggingface
from stablelm.interchange.gguf import is_gguf, load_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import INDEX, WEIGHTS, load_pretrained, read_config
from stablelm.interchange.native import is_checkpoint, load_checkpoint, newest_checkpoint
from stablelm.interchange.neox import is_neox, load_neox
from stablelm.interchange.quantized import is_quantized, load_quantized
from stablelm.model import StableLM
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


def locate(path: str | Path) -> Path:
    """The directory with config.json and weights that `path` means: itself, an export, a checkpoint."""
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
    if (folder / "config.json").is_file():  # a checkpoint has one too
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if newest := newest_checkpoint(folder):
        return newest
    raise InputError(
        f"{path}: no model found. Looked for config.json with {WEIGHTS} or {INDEX} (Hugging Face), for the "
        "same in model/ (output of stablelm demo), for manifest.json with state.json and model/ (a "
        "checkpoint), and for checkpoints/step-N (a run; only finished checkpoints count)."
    )
