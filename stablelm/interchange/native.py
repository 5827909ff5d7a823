"""Opens our own training checkpoints, RUN/checkpoints/step-N, for use: weights and tokenizer.

The manifest is the commit mark: a directory without one was never finished and is passed over. Sizes of all
files and the hashes of those that are read are checked (about 1 GB/s), so a flipped byte is refused by name.
Saved by one process or by many, the weights open alike. The optimizer's state is not read."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from stablelm.config.model import from_huggingface
from stablelm.interchange.huggingface import read_config
from stablelm.interchange.weights import build_model, read_headers
from stablelm.model import StableLM
from stablelm.storage import MANIFEST, read_manifest
from stablelm.tokenizer import Tokenizer

FOLDER = "checkpoints"
"""Of a run, where its checkpoints are."""
_STEP = re.compile(r"step-(\d+)$")


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is one finished checkpoint."""
    files = (MANIFEST, "state.json", "config.json")
    return (path / "model").is_dir() and all((path / name).is_file() for name in files)


def finished_checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first; what a killed save left is not among them."""
    folder = run / FOLDER
    names = (
        os.listdir(folder) if folder.is_dir() else []
    )  # not glob, which is silent about a folder it may not read
    numbered = [(int(found[1]), folder / name) for name in names if (found := _STEP.match(name))]
    return [path for _, path in sorted(numbered) if is_checkpoint(path)]


def newest_checkpoint(run: Path) -> Path | None:
    """The finished checkpoint of a run with the highest step, or None."""
    return next(reversed(finished_checkpoints(run)), None)


def checkpoint_before(path: Path) -> Path | None:
    """The finished checkpoint of the same run that precedes `path`, or None."""
    older = [other for other in finished_checkpoints(path.parent.parent) if _number(other) < _number(path)]
    return next(reversed(older), None)


def _number(path: Path) -> int:
    found = _STEP.match(path.name)
    return int(found[1]) if found else -1


def _remedy(path: Path) -> str:
    before = checkpoint_before(path)
    return f"Use the checkpoint before it, {before}." if before else "Use another checkpoint."


def check_weights(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that has all files with their sizes, and every byte of all but the
    optimizer's."""
    return read_manifest(path, hashes=lambda name: not name.startswith("optimizer/"), remedy=_remedy(path))


def load_checkpoint(
    path: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    build: type[StableLM] = StableLM,
) -> tuple[StableLM, Tokenizer | None]:
    """Model and tokenizer of one checkpoint directory that holds all weights; float32 unless `dtype` says
    otherwise."""
    names = list(check_weights(path)["files"])
    config = from_huggingface(read_config(path), str(path / "config.json"))
    files = [path / name for name in names if name.startswith("model/") and name.endswith(".safetensors")]
    model = build_model(config, read_headers(files), path, dtype, device, build)
    return model, Tokenizer.from_file(path / "tokenizer.json") if "tokenizer.json" in names else None
