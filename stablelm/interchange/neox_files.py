"""A GPT-NeoX checkpoint as files: which tag, which layout, how many ranks; each opened without running code.

    SAVE/latest                                       the name of the newest tag
    SAVE/global_step{N}/configs/*.yml                 copies of the run's YAML
    …/layer_{LL}-model_{MP}-model_states.pt           pipeline: one file a layer and rank
    …/mp_rank_{MP}_model_states.pt                    state of the run; sequential: also every weight

A `.pt` is a pickle. It is opened with `weights_only`, which builds tensors, numbers and text and refuses the
rest, and memory-mapped, so asking for shapes reads no weights. State files of real runs hold NumPy's random
state; the constructors of plain arrays are therefore allowed, for those files alone. Optimizer files are
never opened. The `.pt` of before torch 1.6 cannot be mapped and is read whole each time it is asked."""

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.storage import confined

_LAYER = re.compile(r"layer_(\d+)(?:-model_(\d+))?-model_states\.pt")
_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_TAG = re.compile(r"global_step(\d+)")
_SEQUENTIAL = re.compile(r"(?:module\.)?sequential\.(\d+)\.(.+)")
_REMEDY = "Download or copy the file again."
_RECONSTRUCT, _SCALAR = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_ARRAYS: list[Any] = [
    np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "bBhHiIlLqQfd?"},
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]  # fmt: skip


@dataclass(frozen=True)
class NeoxFiles:
    """The files of one tag."""

    folder: Path
    layout: Literal["pipeline", "sequential"]
    width: int
    """Tensor-parallel ranks."""
    layers: dict[tuple[int, int], Path] = field(repr=False)
    """The file of (layer, rank); empty when sequential."""
    ranks: dict[int, Path] = field(repr=False)
    """The mp_rank files that are there."""

    @property
    def step(self) -> int | None:
        """The step in the tag's name."""
        found = _TAG.fullmatch(self.folder.resolve().name)
        return int(found[1]) if found else None

    def indices(self) -> set[int]:
        """The pipeline layers that are there, on whichever rank."""
        if self.layout == "pipeline":
            return {layer for layer, _ in self.layers}
        return {layer for rank in range(self.width) for layer, _ in self._module(rank)}

    def file(self, layer: int, rank: int) -> Path:
        """Where a rank's part of a layer is, or would be if it were there."""
        if self.layout == "sequential":
            return self.ranks[rank]
        missing = self.folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"
        return self.layers.get((layer, rank), missing)

    def tensors(self, layer: int, rank: int) -> dict[str, Tensor]:
        """A rank's part of one layer by its GPT-NeoX keys, memory-mapped; the mapping ends with the
        tensors."""
        file = self.file(layer, rank)
        if self.layout == "sequential":
            return {key: value for (at, key), value in self._module(rank).items() if at == layer}
        if not file.is_file():
            raise InputError(f"{file}: missing; the checkpoint is incomplete. {_REMEDY}")
        return _only_tensors(read_states(file), file)

    def state(self, rank: int = 0) -> dict[str, Any]:
        """What mp_rank says beside weights: `iteration`, `args` and more; empty where there is no file."""
        file = self.ranks.get(rank)
        try:
            return {} if file is None else {k: v for k, v in _state(file).items() if k != "module"}
        except InputError as error:
            if self.layout == "sequential":
                raise
            raise InputError(
                f"{error} The weights are in the layer files: with YAML in configs/, or config=, they can be "
                "read once this file is moved away."
            ) from None

    def _module(self, rank: int) -> dict[tuple[int, str], Tensor]:
        file = self.ranks[rank]
        module = _state(file).get("module")
        if not isinstance(module, Mapping) or not module:
            raise InputError(
                f"{file}: holds no weights, and there are no layer_XX-model_YY-model_states.pt beside it. "
                f"The checkpoint is incomplete. {_REMEDY}"
            )
        found: dict[tuple[int, str], Tensor] = {}
        for name, value in _only_tensors(module, file).items():
            place = _SEQUENTIAL.fullmatch(name)
            if place is None:
                raise InputError(
                    f"{file}: tensor {name!r} has no place; sequential.LAYER.NAME is wanted. This is another "
                    "model's file."
                )
            found[int(place[1]), place[2]] = value
        return found


def is_neox(path: str | Path) -> bool:
    """Whether `path` is a GPT-NeoX checkpoint: a tag's directory, or the one above it."""
    path = Path(path)
    if not path.is_dir():
        return False
    latest = path / "latest"
    if latest.is_file() and latest.read_bytes()[:64].startswith(b"global_step"):
        return True
    return _holds_states(path) or any(map(_holds_states, _tags(path).values()))


def find_neox(path: str | Path) -> NeoxFiles:
    """The files of the checkpoint at `path`; `InputError` names what is missing. Opens none of them."""
    folder = _tag_directory(Path(path))
    layers: dict[tuple[int, int], Path] = {}
    ranks: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if found := _LAYER.fullmatch(file.name):
            layers[int(found[1]), int(found[2] or 0)] = file
        elif found := _RANK.fullmatch(file.name):
            ranks[int(found[1])] = file
    if not layers and not ranks:
        zero = any(folder.glob("zero_pp_rank_*_model_states.pt"))
        raise InputError(
            f"{folder}: no layer_XX-model_YY-model_states.pt and no mp_rank_XX_model_states.pt. "
            + (
                "The weights are cut over ZeRO-3 ranks; gather them with DeepSpeed's zero_to_fp32.py first."
                if zero
                else "It is empty, or no GPT-NeoX checkpoint."
            )
        )
    width = 1 + max((rank for _, rank in layers) if layers else ranks)
    if not layers and len(ranks) != width:
        lost = next(rank for rank in range(width) if rank not in ranks)
        raise InputError(
            f"{folder}: mp_rank_{lost:02d}_model_states.pt is missing, although mp_rank_{width - 1:02d} is "
            f"there. {_REMEDY}"
        )
    if layers:
        for layer, rank in ((at, rank) for at in sorted({at for at, _ in layers}) for rank in range(width)):
            if (layer, rank) not in layers:
                raise InputError(
                    f"{folder}: layer_{layer:02d}-model_{rank:02d}-model_states.pt is missing; other layers "
                    f"have {width} ranks. {_REMEDY}"
                )
        if ranks and max(ranks) >= width:
            raise InputError(
                f"{folder}: mp_rank_{max(ranks):02d}_model_states.pt is there, but the layers have only "
                f"{width} rank{'s' * (width > 1)}: the layer files of the others are missing. {_REMEDY}"
            )
    return NeoxFiles(folder, "pipeline" if layers else "sequential", width, layers, ranks)


def _holds_states(folder: Path) -> bool:
    return any(file.name.endswith("model_states.pt") for file in folder.iterdir())


def _tags(path: Path) -> dict[int, Path]:
    return {
        int(found[1]): folder
        for folder in path.iterdir()
        if (found := _TAG.fullmatch(folder.name)) and folder.is_dir()
    }


def _tag_directory(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; a GPT-NeoX checkpoint is a directory.")
    if _holds_states(path):
        return path
    latest = path / "latest"
    if latest.is_file():
        try:
            tag = latest.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{latest}: cannot be read ({error}).") from None
        if not tag or "\n" in tag or tag in (".", ".."):
            raise InputError(f"{latest}: holds no name of a tag, such as global_step1000.")
        folder = confined(path, tag)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such directory, although {latest} names it. Give another tag's.")
        return folder
    tags = _tags(path)
    if len(tags) == 1:
        return next(iter(tags.values()))
    if tags:
        names = ", ".join(tags[step].name for step in sorted(tags))
        raise InputError(f"{path}: several checkpoints and no file `latest`; give one of {names}.")
    raise InputError(
        f"{path}: no GPT-NeoX checkpoint: no global_stepN, no `latest`, no model_states.pt is there."
    )


def read_states(file: Path) -> Any:
    """What a `.pt` file holds, on the CPU, memory-mapped where its format allows; no code of it is run."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(4)
        zipped = zipfile.is_zipfile(file)
        if not zipped and (start == b"PK\3\4" or not start):
            raise InputError(f"{file}: truncated: {file.stat().st_size:,} bytes without an end. {_REMEDY}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pickle protocol.*")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ['`]?([\w.]+)", str(error))
        if code is None:
            kind = "a bare pickle, which could run code" if start[:1] == b"\x80" else "damaged"
            raise InputError(
                f"{file}: not a file of tensors as torch.save writes it: {kind}. {_REMEDY}"
            ) from None
        raise InputError(
            f"{file}: its pickle wants to call {code[1]}, which is not run: a model's state needs only "
            "tensors, numbers and text. Get the file from somebody you trust, saved without it."
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # damaged bytes end in nearly any exception there is
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(f"{file}: damaged ({reason or type(error).__name__}). {_REMEDY}") from None


def _state(file: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(_ARRAYS):
        state = read_states(file)
    if not isinstance(state, dict):
        raise InputError(f"{file}: a mapping is wanted, found {type(state).__name__}. {_REMEDY}")
    return state


def _only_tensors(states: Any, file: Path) -> dict[str, Tensor]:
    if not isinstance(states, Mapping):
        raise InputError(f"{file}: names and tensors are wanted, found {type(states).__name__}. {_REMEDY}")
    size = file.stat().st_size
    for name, value in states.items():
        if not isinstance(name, str) or (not isinstance(value, Tensor) and not name.endswith("_extra_state")):
            raise InputError(f"{file}: {name!r} is a {type(value).__name__}, not a tensor.")
        # A stride of zero makes a few bytes look like any number of weights.
        if isinstance(value, Tensor) and (
            value.layout != torch.strided or math.prod(value.shape) * value.element_size() > size
        ):
            raise InputError(f"{file}: tensor {name!r} of shape {list(value.shape)} is not in its bytes.")
    return {name: value for name, value in states.items() if isinstance(value, Tensor)}
