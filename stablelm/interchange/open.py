"""One door for every path that holds a model: a Hugging Face directory, a checkpoint, a run, a demo's output.

What a path is follows from the files in it, never from its name."""

from pathlib import Path

import torch

from stablelm.config import InputError
from stablelm.interchange.huggingface import INDEX, WEIGHTS, load_pretrained
from stablelm.interchange.native import is_checkpoint, load_checkpoint, newest_checkpoint
from stablelm.model import StableLM
from stablelm.storage import refuse_dead_link
from stablelm.tokenizer import Tokenizer


def open_path(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    build: type[StableLM] = StableLM,
) -> tuple[StableLM, Tokenizer | None]:
    """The model (an instance of `build`) and the tokenizer at `path`, None where there is none.

    `dtype` None keeps the precision of the files. `InputError` says what was looked for."""
    found = locate(path)
    load = load_checkpoint if is_checkpoint(found) else load_pretrained
    return load(found, dtype, device, build)


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
