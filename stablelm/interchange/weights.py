"""Tensors from safetensors files into a model, checked before anything is allocated.

The headers alone (some kB) say whether every tensor is there, complete, of the right shape and nothing else;
only then is the model built, on the meta device, and each memory-mapped tensor put in its place. In the
stored precision on the CPU nothing is copied and pages are read when first used; else one tensor at a time is
converted. A tensor may lie in pieces in several files, as the processes of a training run wrote it; the
headers say which part each is, and the parts must fill the whole. Pickled weights are never opened: a pickle
can run code."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.interchange.pickled import pickled_state
from stablelm.model import StableLM

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHARDING = "DCP_SHARDING_INFO"
_READ = DTYPES | {"U8": torch.uint8}  # packed weights, see `quantized.py`
_LARGEST_HEADER = 100_000_000
PICKLES = (".bin", ".pt", ".pth")
_REMEDY = "Download or copy the file again."


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is, and what it is."""

    file: Path
    """Of several, the first one's."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: tuple[int, ...] | None = None
    """Where a piece begins in the whole; None when the file does not speak of pieces."""
    pieces: "tuple[StoredTensor, ...]" = ()
    """What a tensor in several files is put together from."""

    @property
    def files(self) -> list[Path]:
        """Every file that holds a part of it."""
        return [piece.file for piece in self.pieces] or [self.file]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, from its header; `InputError` names what is broken. Reads no
    data."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise InputError(
                    f"{file}: truncated, or not a safetensors file: it promises a header of {length:,} bytes "
                    f"and has {size:,} in all. {_REMEDY}"
                )
            header = json.loads(opened.read(length))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: not a safetensors file: its header is not JSON. {_REMEDY}") from None
    if not isinstance(header, dict):
        raise InputError(f"{file}: not a safetensors file: its header is not a table. {_REMEDY}")
    tensors, end, offsets = {}, 0, _offsets(file, header.get("__metadata__"))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = type(dtype) is str and all(type(n) is int and n >= 0 for n in (*shape, first, last))
        except (TypeError, KeyError, ValueError):
            whole = False
        if not whole:
            raise InputError(f"{file}: the header's entry for {name!r} is broken. {_REMEDY}")
        if dtype not in _READ:
            raise InputError(f"{file}: tensor {name!r} is {dtype}; weights are one of {', '.join(DTYPES)}.")
        if last - first != math.prod(shape) * _READ[dtype].itemsize:
            raise InputError(
                f"{file}: tensor {name!r} of shape {list(shape)} does not fill its bytes. {_REMEDY}"
            )
        if 8 + length + last > size:
            raise InputError(
                f"{file}: truncated: tensor {name!r} ends at byte {8 + length + last:,}, "
                f"the file has {size:,}. {_REMEDY}"
            )
        offset = offsets.get(name)
        if offset is not None and len(offset) != len(shape):
            raise InputError(f"{file}: the header's entry for {name!r} is broken. {_REMEDY}")
        tensors[name], end = StoredTensor(file, _READ[dtype], shape, offset), max(end, last)
    if 8 + length + end != size:
        raise InputError(f"{file}: {size - 8 - length - end:,} bytes after its last tensor. {_REMEDY}")
    return tensors


def _offsets(file: Path, metadata: Any) -> dict[str, tuple[int, ...]]:
    """Where each piece begins in its tensor, as PyTorch's distributed writer notes it."""
    if not isinstance(metadata, dict) or _SHARDING not in metadata:
        return {}
    try:
        found = {name: entry["saved_offsets"] for name, entry in json.loads(metadata[_SHARDING]).items()}
        if all(type(n) is int and n >= 0 for offset in found.values() for n in offset):
            return {name: tuple(offset) for name, offset in found.items()}
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        pass
    raise InputError(f"{file}: the header's notes on the pieces of its tensors are broken. {_REMEDY}")


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of several files together; a name may occur once, or in pieces that fill the whole."""
    found: dict[str, list[StoredTensor]] = {}
    for file in files:
        for name, stored in read_header(file).items():
            found.setdefault(name, []).append(stored)
    return {name: _whole(name, pieces) for name, pieces in found.items()}


def _whole(name: str, pieces: list[StoredTensor]) -> StoredTensor:
    first = pieces[0]
    if len(pieces) > 1 and any(piece.offset is None for piece in pieces):
        raise InputError(f"{pieces[1].file}: tensor {name!r} is also in {first.file.name}.")
    for piece in pieces:
        if piece.dtype != first.dtype or len(piece.shape) != len(first.shape):
            raise InputError(f"{piece.file}: its piece of tensor {name!r} does not fit {first.file.name}.")
    if len(pieces) == 1 and not any(first.offset or ()):
        return first
    filled = [p for p in pieces if math.prod(p.shape)] or [first]  # a process may hold none of a small tensor
    ends = [[(p.offset or ())[d] + p.shape[d] for p in filled] for d in range(len(first.shape))]
    begins = [{(p.offset or ())[d] for p in filled} for d in range(len(first.shape))]
    # Meshes cut along a grid: as many pieces as cells, no two at one place, each reaching the next cut.
    grid = len(filled) == len({p.offset for p in filled}) == math.prod(len(cuts) for cuts in begins)
    whole = tuple(max(cuts) for cuts in ends)
    for dim, cuts in enumerate(begins):
        following = dict(zip(sorted(cuts), [*sorted(cuts)[1:], whole[dim]], strict=True))
        grid = grid and 0 in cuts
        grid = grid and all(
            following[(p.offset or ())[dim]] == e for p, e in zip(filled, ends[dim], strict=True)
        )
    if not grid:
        raise InputError(
            f"{first.file.parent}: the pieces of tensor {name!r} do not fill it: a process's file is "
            f"missing, or of another save (found {', '.join(sorted({p.file.name for p in pieces}))})."
        )
    return StoredTensor(filled[0].file, first.dtype, whole, pieces=tuple(filled))


def read_pickles(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of pickled state dicts together; a name may occur once."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, value in pickled_state(file).items():
            if name in tensors:
                raise InputError(f"{file}: tensor {name!r} is also in {tensors[name].file.name}.")
            tensors[name] = StoredTensor(file, value.dtype, tuple(value.shape))
    return tensors


def build_model(
    config: ModelConfig,
    tensors: dict[str, StoredTensor],
    where: Path,
    dtype: torch.dtype | None,
    device: torch.device | str,
    build: type[StableLM],
    prepare: Callable[[StableLM], None] | None = None,
) -> StableLM:
    """A model of class `build` with these weights; `InputError` unless they are just what `config` wants.

    `prepare` changes the empty model first (packed layers); tensors then keep their stored precision."""
    held = sum(math.prod(stored.shape) for stored in tensors.values())
    # Far off, the model is not even built: a damaged number could make that take for ever.
    if config.num_hidden_layers > len(tensors) or config.num_parameters > 1000 * held:
        raise InputError(
            f"{where}: config.json describes {config.num_parameters:,} parameters in "
            f"{config.num_hidden_layers:,} layers, the weights hold {held:,}. "
            "One of the two files belongs to another model."
        )
    if "model.norm.bias" in tensors and not config.use_norm_bias:
        # Stable LM 2's files hold biases that its settings deny; biases that are there are part of the model.
        config = config.model_copy(update={"use_norm_bias": True})
    with torch.device("meta"):
        model = build(config)
        if prepare is not None:
            prepare(model)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    kinds = {name: value.dtype for name, value in model.state_dict().items()}
    # Old converters also stored the rotary frequencies, which follow from the config.
    tensors = {n: t for n, t in tensors.items() if n in wanted or not n.endswith("rotary_emb.inv_freq")}
    missing, foreign = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or foreign:
        name, *more = missing or foreign
        also = f" (and {len(more)} more)" if more else ""
        raise InputError(
            f"{where}: tensor {name!r}{also} {'is missing' if missing else 'has no place'} in what "
            "config.json describes. The weights are incomplete, or one of the files belongs to another model."
        )
    for name, stored in tensors.items():
        if stored.shape != wanted[name]:
            raise InputError(
                f"{stored.file}: tensor {name!r} has shape {list(stored.shape)}, config.json wants "
                f"{list(wanted[name])}. One of the two files belongs to another model."
            )
        if (stored.dtype == torch.uint8) != (kinds[name] == torch.uint8):
            raise InputError(
                f"{stored.file}: tensor {name!r} is {stored.dtype}; it belongs to another model."
            )
    if prepare is None:
        dtype = dtype or tensors["lm_head.weight"].dtype
    model.load_state_dict(_read(tensors, dtype, device), assign=True)
    return model.eval()


def read_tensor(name: str, stored: StoredTensor) -> Tensor:
    """One tensor as it is stored, on the CPU."""
    return _read({name: stored}, stored.dtype, "cpu")[name]


class Reread(Mapping[str, Tensor]):
    """A model's tensors, read from its files again one at a time: no page of them stays in memory, as it does
    where the memory-mapped model itself is read. Those that no file has are the model's own."""

    def __init__(self, model: StableLM, stored: Mapping[str, StoredTensor]) -> None:
        self._own, self._stored = model.state_dict(), stored

    def __getitem__(self, name: str) -> Tensor:
        own = self._own[name]
        return read_tensor(name, self._stored[name]).to(own.dtype) if name in self._stored else own

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def _read(
    tensors: dict[str, StoredTensor], dtype: torch.dtype | None, device: torch.device | str
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    parts: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for name, stored in tensors.items():
        for piece in stored.pieces or (stored,):
            parts.setdefault(piece.file, []).append((name, piece))
    for file, held in parts.items():
        if file.suffix in PICKLES:
            state = pickled_state(file)
            found |= {name: state[name].to(device=device, dtype=dtype) for name, _ in held}
            continue
        try:
            with safe_open(os.fspath(file), framework="pt") as opened:
                for name, piece in held:
                    value = opened.get_tensor(name)
                    if not tensors[name].pieces:
                        found[name] = value.to(device=device, dtype=dtype)
                        continue
                    if name not in found:
                        kind = dtype or value.dtype
                        found[name] = torch.empty(tensors[name].shape, dtype=kind, device=device)
                    begin = piece.offset or ()
                    place = tuple(slice(b, b + n) for b, n in zip(begin, piece.shape, strict=True))
                    found[name][place] = value.to(device=device, dtype=dtype)
        except SafetensorError as error:
            raise InputError(f"{file}: {error}. {_REMEDY}") from None
    return found
