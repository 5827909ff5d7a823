"""Checkpoints: RUN/checkpoints/step-N, safetensors written by PyTorch's distributed checkpoint, whole or
absent.

    step-000500/model/*.safetensors       what is trained, float32, names as in the model, by process
    step-000500/optimizer/*.safetensors   exp_avg.NAME and exp_avg_sq.NAME
    step-000500/ema/*.safetensors         the moving average of what is trained, where one is kept
    step-000500/state.json                step, samples consumed, configuration, data fingerprint
    step-000500/config.json, tokenizer.json, about.json    what export and the model card read
    step-000500/manifest.json             sizes and sha256 of all of these; written last

A save fills a fresh directory aside; every process writes, flushes and hashes its own files, and only when
all have done so the first writes the manifest, renames the directory and moves `latest`: a kill anywhere
leaves nothing under the final name. Never written in place: PyTorch's writer, killed in an existing
directory, leaves a mixture of two steps that loads. Files say which part of a tensor they hold, so any mesh
loads what any other saved, `_StridedShard` and uneven shards included; a process reads only what it needs,
and hashing (about 1 GB/s) is shared out. Only tensors go through the writer, in files of at most 1 GB each
because it holds the bytes of one in memory; numbers go to `state.json`. No pickle anywhere."""

import logging
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.interchange.native import FOLDER
from stablelm.interchange.weights import read_headers
from stablelm.model import StableLM
from stablelm.storage import (
    Entries,
    entry,
    explain_full_disk,
    read_json,
    read_manifest,
    require_space,
    write_manifest,
    write_text,
)  # fmt: skip
from stablelm.storage.atomic import TEMPORARY, commit_directory, remove_leftovers
from stablelm.training.agreement import Ranks, answering
from stablelm.training.optimizer import moments, set_step, trained

LATEST = "latest"
_FILE_BYTES = 1 << 30


def write_checkpoint(
    target: Path,
    tensors: Mapping[str, dict[str, Tensor]],
    files: Mapping[str, bytes],
    step: int,
    ranks: Ranks,
) -> None:
    """Makes the directory `target` from folders of tensors (each process gives its shards) and small files
    (the first process's count); every process calls it, and on an error nothing is left.

    Raises `DiskFullError`, another `OSError`, or `RunError` when a process is gone; the same on all."""
    size = sum(t.numel() * t.element_size() for held in tensors.values() for t in held.values())
    aside = ranks.at_first(lambda: _begin(target, size + size // 50))
    try:
        with explain_full_disk(target):
            for folder, held in tensors.items():
                _write_tensors(aside / folder, held, ranks)
            written = ranks.together(lambda: _own_files(aside, ranks.rank))
            known = {name: found for own in written for name, found in own.items()}
            ranks.at_first(lambda: _commit(aside, target, files, known, step))
    finally:
        if ranks.first:
            shutil.rmtree(aside, ignore_errors=True)


def _begin(target: Path, needed: int) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    require_space(target.parent.parent, needed, "a checkpoint")
    aside = target.with_name(f"{target.name}{TEMPORARY}{os.getpid()}")
    aside.mkdir()
    return aside


def _own_files(aside: Path, rank: int) -> Entries:
    """This process's files (the writer numbers them from 1), with what the manifest says of them."""
    own = sorted(aside.glob(f"*/shard-{rank + 1:05}-*"))
    return {path.relative_to(aside).as_posix(): entry(path) for path in own}


def _commit(aside: Path, target: Path, files: Mapping[str, bytes], known: Entries, step: int) -> None:
    for name, content in files.items():
        (aside / name).write_bytes(content)
    write_manifest(aside, {"format": "stablelm-checkpoint", "version": 1, "step": step}, known)
    commit_directory(aside, target)
    write_text(target.parent / LATEST, target.name + "\n")


def _write_tensors(folder: Path, tensors: dict[str, Tensor], ranks: Ranks) -> None:
    parts, part, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() // ranks.world
        if filled and filled + size > _FILE_BYTES:
            part, filled = part + 1, 0
        parts[name], filled = part, filled + size
    writer = HuggingFaceStorageWriter(str(folder), parts, save_distributed=True)
    _quiet()
    try:
        with answering():
            save(tensors, storage_writer=writer, process_group=ranks.group, no_dist=ranks.group is None)
    except CheckpointException as error:  # a BaseException; it also wraps Ctrl-C
        causes = [error.failures[rank][0] for rank in sorted(error.failures)]
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from None
        if isinstance(causes[0], OSError):
            raise causes[0] from None
        raise RunError(f"{folder}: not saved: {causes[0]!r}") from error


def _quiet() -> None:
    # The writer warns that no process group is there; with one process that is meant. Not `catch_warnings`,
    # which other threads' filters do not survive.
    warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)


def read_state(path: Path, remedy: str = "") -> dict[str, Any]:
    """The numbers of a checkpoint whose files are all there with their sizes; small, and read before any
    tensor."""
    read_manifest(path, hashes=lambda name: name == "state.json", remedy=remedy)
    state = read_json(path / "state.json")
    kinds = {"step": int, "samples": int, "config": dict, "data_fingerprint": str, "steps": int}
    for key, kind in kinds.items():
        if not isinstance(state, dict) or not isinstance(state.get(key), kind):
            raise InputError(f"{path / 'state.json'}: damaged: no {key!r}. {remedy}".rstrip())
    return dict(state)


def load_checkpoint(
    path: Path,
    model: StableLM,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    remedy: str = "",
    more: Mapping[str, dict[str, Tensor]] = MappingProxyType({}),
) -> None:
    """Fills model and optimizer (and `more`, by folder) in place, on whatever mesh they are; every process
    calls it, and every byte is checked first."""
    mine = lambda name: zlib.crc32(name.encode()) % ranks.world == ranks.rank  # noqa: E731
    ranks.together(lambda: read_manifest(path, hashes=mine, remedy=remedy))
    wanted = {"model": trained(model), "optimizer": moments(model, optimizer), **more}
    for folder, held in wanted.items():
        ranks.at_first(partial(_fits, path / folder, held, remedy))
        ranks.together(partial(_read_tensors, path / folder, held))
        ranks.together(partial(_finite, path / folder, held, remedy))
    state = read_json(path / "state.json")
    set_step(optimizer, state["step"] - state.get("guard", {}).get("rejected", 0))


def _fits(folder: Path, tensors: dict[str, Tensor], remedy: str) -> None:
    """Refuses a folder that does not hold just these tensors, whole: the reader would leave gaps as they
    are."""
    held = read_headers(sorted(folder.glob("*.safetensors")))
    for name in sorted(tensors.keys() | held.keys()):
        wanted = list(tensors[name].shape) if name in tensors else "no such tensor"
        found = list(held[name].shape) if name in held else "no such tensor"
        if wanted != found:
            raise InputError(
                f"{folder}: does not hold this model's tensors: {name!r} is {found}, wanted is {wanted}. "
                f"{remedy}".rstrip()
            )


def _finite(folder: Path, tensors: dict[str, Tensor], remedy: str) -> None:
    if (name := not_finite(tensors)) is not None:
        raise InputError(f"{folder}: tensor {name!r} holds values that are not finite. {remedy}".rstrip())


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor of which this process's part is not finite throughout."""
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
        if not bool(torch.isfinite(local.sum(dtype=torch.float64))):  # no copy of the tensor's size
            return name
    return None


def _read_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    _quiet()
    try:
        with torch.no_grad():  # each process plans and reads for itself
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except CheckpointException as error:
        causes = [cause[0] for cause in error.failures.values()]
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from None
        raise InputError(f"{folder}: cannot be read: {causes[0]!r}") from None
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: does not hold this model's tensors: {error}") from None


def clear_leftovers(run: Path) -> list[str]:
    """Removes what a killed save left; returns the names, for a line on the console."""
    leftovers = sorted((run / FOLDER).glob(f"step-*{TEMPORARY}*"))
    for path in (run / FOLDER).glob(f"{LATEST}{TEMPORARY}*"):  # a kill between its writing and its renaming
        path.unlink(missing_ok=True)
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in leftovers]
