"""Opens our own training checkpoints, RUN/checkpoints/step-N, for use: weights and tokenizer.

The manifest is the commit mark: a directory without one was never finished and is passed over. Sizes of all
files and the hashes of those that are read are checked (about 1 GB/s), so a flipped byte is refused by name.
Saved by one process or by many, the weights open alike. The optimizer's state is not read."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError
from stablelm.config.model import from_huggingface
from stablelm.interchange.huggingface import read_config
from stablelm.interchange.weights import build_model, read_headers
from stablelm.model import StableLM
from stablelm.storage import MANIFEST, read_json, read_manifest
from stablelm.tokenizer import Tokenizer

FOLDER = "checkpoints"
"""Of a run, where its checkpoints are."""
EMA = "ema"
"""Of a checkpoint, where the moving average of its weights is, if it keeps one; in state.json, its count."""
BEST = "best.json"
"""Of a checkpoint, which one of its run is the best."""
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


def result_of(run: Path) -> Path | None:
    """The checkpoint that a run opens as: its newest, or the best that this one names; None without any.

    `InputError` when the best is gone."""
    newest = newest_checkpoint(run)
    best = best_of(newest) if newest is not None else None
    if newest is None or best is None:
        return newest
    chosen = newest.with_name(f"step-{best['step']:06d}")
    if not is_checkpoint(chosen):
        raise InputError(
            f"{run}: its best checkpoint, {chosen.name}, is gone. Restore it, or name another: {newest}."
        )
    return chosen


def best_of(checkpoint: Path) -> dict[str, Any] | None:
    """`metric`, `step` and `value` of the best checkpoint so far, as one of a run that keeps it says."""
    file = checkpoint / BEST
    found = read_json(file) if file.is_file() else None
    if found is not None and (not isinstance(found, dict) or not isinstance(found.get("step"), int)):
        raise InputError(f"{file}: damaged: it names no step. {_remedy(checkpoint)}")
    return found


def checkpoint_before(path: Path) -> Path | None:
    """The finished checkpoint of the same run that precedes `path`, or None."""
    older = [other for other in finished_checkpoints(path.parent.parent) if step_of(other) < step_of(path)]
    return next(reversed(older), None)


def step_of(path: Path) -> int:
    """N of a checkpoint step-N; −1 for another name."""
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
