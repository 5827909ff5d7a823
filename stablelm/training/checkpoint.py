"""Checkpoints: RUN/checkpoints/step-N, safetensors written by PyTorch's distributed checkpoint, whole or
absent.

    step-000500/model/*.safetensors       weights, float32, Hugging Face names
    step-000500/optimizer/*.safetensors   exp_avg.NAME and exp_avg_sq.NAME
    step-000500/state.json                step, samples consumed, configuration, data fingerprint
    step-000500/config.json, tokenizer.json, about.json    what export and the model card read
    step-000500/manifest.json             sizes and sha256 of all of these; written last

A save fills a fresh directory aside, flushes it and renames it, so a kill in the middle leaves nothing under
the final name. Loading checks every byte against the manifest (about 1 GB/s). Only tensors go through the
writer; numbers go to `state.json`. No pickle anywhere."""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from stablelm.config import InputError
from stablelm.config.model import to_huggingface
from stablelm.interchange.native import finished_checkpoints
from stablelm.model import StableLM
from stablelm.storage import (
    atomic_directory,
    read_json,
    read_manifest,
    require_space,
    write_json,
    write_manifest,
    write_text,
)  # fmt: skip
from stablelm.storage.atomic import TEMPORARY
from stablelm.training.optimizer import moments, set_step

FOLDER = "checkpoints"


def save_checkpoint(
    run: Path,
    model: StableLM,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    about: dict[str, Any],
    tokenizer: bytes,
    keep: int,
) -> Path:
    """Saves `state["step"]`, then removes all but the newest `keep`; returns the new directory.

    `state` is all that continuing needs besides tensors; `about` is what a reader or a model card wants to
    know."""
    target = run / FOLDER / f"step-{state['step']:06d}"
    if target not in finished_checkpoints(run):
        shutil.rmtree(target, ignore_errors=True)  # a directory without its manifest was never a checkpoint
        require_space(run, 13 * model.num_parameters(), "a checkpoint")
        with atomic_directory(target) as aside:
            _write_tensors(aside / "model", dict(model.state_dict()))
            _write_tensors(aside / "optimizer", moments(model, optimizer))
            write_json(aside / "config.json", to_huggingface(model.config, "float32"))
            (aside / "tokenizer.json").write_bytes(tokenizer)
            write_json(aside / "state.json", state)
            write_json(aside / "about.json", about)
            write_manifest(aside, {"format": "stablelm-checkpoint", "version": 1, "step": state["step"]})
        write_text(run / FOLDER / "latest", target.name + "\n")
    for old in finished_checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(path: Path, model: StableLM, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fills model and optimizer in place and returns the checkpoint's state; every byte is checked first."""
    read_manifest(path, remedy="Remove this checkpoint to resume from the one before it.")
    _read_tensors(path / "model", dict(model.state_dict()))
    _read_tensors(path / "optimizer", moments(model, optimizer))
    state: dict[str, Any] = read_json(path / "state.json")
    set_step(optimizer, state["step"])
    return state


def clear_leftovers(run: Path) -> list[str]:
    """Removes what a killed save left; returns the names, for a line on the console."""
    leftovers = sorted((run / FOLDER).glob(f"step-*{TEMPORARY}*"))
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in leftovers]


@contextlib.contextmanager
def _single_process() -> Iterator[None]:
    # The distributed checkpoint warns that no process group is there; with one process that is meant.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        logger = logging.getLogger("torch.distributed.checkpoint")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    with _single_process():
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            save(tensors, storage_writer=writer, no_dist=True)
        except CheckpointException as error:  # it also wraps Ctrl-C
            if any(isinstance(failure[0], KeyboardInterrupt) for failure in error.failures.values()):
                raise KeyboardInterrupt from None
            raise


def _read_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    try:
        with _single_process(), torch.no_grad():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: does not hold this model's tensors: {error}") from None


def parameter_norm(model: nn.Module) -> float:
    """Global L2 norm of the weights; not finite means that they must not be saved as a checkpoint."""
    return float(torch.nn.utils.get_total_norm([p.detach() for p in model.parameters()]))
