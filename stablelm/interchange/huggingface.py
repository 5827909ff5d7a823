"""The Hugging Face layout: what `transformers` loads unchanged, and what it writes.

    config.json  generation_config.json  tokenizer.json  tokenizer_config.json  special_tokens_map.json
    model.safetensors, or above a size limit model-00001-of-0000N.safetensors and model.safetensors.index.json

Weights keep their names and precision. A directory appears whole or not at all; saving needs no memory beside
the model, loading none beside the weights (see `weights.py`)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stablelm.config import InputError
from stablelm.config.model import Spelling, from_huggingface, to_huggingface
from stablelm.interchange.pickled import pickled_files
from stablelm.interchange.weights import DTYPES, StoredTensor, build_model, read_headers, read_pickles
from stablelm.model import StableLM
from stablelm.model.adapters import require_none
from stablelm.storage import (
    atomic_directory,
    confined,
    read_json,
    refuse_dead_link,
    refuse_existing,
    require_space,
    write_json,
    write_text,
)
from stablelm.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def save_pretrained(
    model: StableLM,
    tokenizer: Tokenizer | None,
    directory: str | Path,
    *,
    max_shard_bytes: int = 5_000_000_000,
    spelling: Spelling = "stablelm",
    files: Mapping[str, str] | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Writes `directory` in the model's own precision; it may not exist yet, or be empty.

    A file holds at most `max_shard_bytes` of weights, except that no tensor is split. `spelling` is that of
    config.json. `files` are texts to put beside the weights, by name (a README.md).
    `quantization` is the recipe of a model with packed weights, kept in config.json."""
    directory = Path(directory)
    refuse_existing(directory)
    require_none(model, str(directory))
    if quantization is None and (
        packed := [n for n, t in model.state_dict().items() if t.dtype == torch.uint8]
    ):
        raise InputError(
            f"{directory}: tensor {packed[0]!r} is quantised, as only `stablelm quantize` writes it; "
            "export or convert the original."
        )
    settings = to_huggingface(model.config, str(model.dtype).removeprefix("torch."), spelling)
    if quantization is not None:
        settings["quantization_config"] = dict(quantization)
    _check_sizes(model, tokenizer)
    tensors = model.state_dict()
    total = sum(tensor.nbytes for tensor in tensors.values())
    require_space(directory, total, "the model")
    shards = list(_shards(tensors, max_shard_bytes))
    config = model.config
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    if tokenizer is not None:
        generation["pad_token_id"] = tokenizer.pad_id
    with atomic_directory(directory) as aside:
        write_json(aside / "config.json", settings)
        write_json(aside / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save(aside)
        names: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            held = {name: tensors[name].cpu().contiguous() for name in shard}
            save_file(held, aside / file, _metadata(held))
            (aside / file).chmod(
                (aside / "config.json").stat().st_mode
            )  # safetensors lets only its owner read
            names |= dict.fromkeys(shard, file)
        for name, text in (files or {}).items():
            write_text(aside / name, text)
        if len(shards) > 1:
            write_json(aside / INDEX, {"metadata": {"total_size": total}, "weight_map": names})


def load_pretrained(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    build: type[StableLM] = StableLM,
    allow_pickle: bool = False,
) -> tuple[StableLM, Tokenizer | None]:
    """The model (an instance of `build`) and the tokenizer, None where there is no tokenizer.json.

    `dtype` None keeps the precision that config.json states, or else the stored one. `allow_pickle` also
    reads pytorch_model.bin, as data only. `InputError` names the
    file, the tensor and the remedy for anything missing, broken, or not belonging together."""
    directory = Path(directory)
    values = read_config(directory)
    config = from_huggingface(values, str(directory / "config.json"))
    model = build_model(
        config, stored_tensors(directory, allow_pickle), directory, dtype or _stated(values), device, build
    )
    tokenizer = Tokenizer.from_file(directory) if (directory / "tokenizer.json").is_file() else None
    _check_sizes(model, tokenizer)
    return model, tokenizer


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as a mapping."""
    values = read_json(directory / "config.json")
    if not isinstance(values, dict):
        raise InputError(
            f"{directory / 'config.json'}: a mapping of settings is wanted, not a {type(values).__name__}."
        )
    return values


def stored_tensors(directory: Path, allow_pickle: bool = False) -> dict[str, StoredTensor]:
    """Every tensor of the directory's weights, single file or sharded index; pickles only when allowed, and
    only where there is nothing else."""
    for name in (WEIGHTS, INDEX):
        refuse_dead_link(directory / name)
    if (directory / WEIGHTS).is_file():
        return read_headers([directory / WEIGHTS])
    index = directory / INDEX
    if not index.is_file():
        if allow_pickle and (pickles := pickled_files(directory)):
            return read_pickles(pickles)
        pickled = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern)
        )
        instead = (
            f" {pickled[0]} is a pickle, which can run code and is not opened; `stablelm convert "
            "--allow-pickle` reads it as data only."
            if pickled
            else ""
        )
        raise InputError(f"{directory}: no weights: neither {WEIGHTS} nor {INDEX} is there.{instead}")
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise InputError(
            f"{index}: no weight_map from tensor names to files. Download or copy the file again."
        )
    files = {file: confined(directory, file) for file in sorted(set(names.values()))}
    for path in files.values():
        if not path.is_file():
            raise InputError(f"{path}: missing, although {INDEX} names it. Download or copy the file again.")
    tensors = read_headers(files.values())
    for name, file in names.items():
        if name not in tensors or tensors[name].file != files[file]:
            raise InputError(f"{files[file]}: tensor {name!r} is not in it, although {INDEX} says so.")
    return tensors


def _stated(values: dict[str, Any]) -> torch.dtype | None:
    name = str(values.get("dtype") or values.get("torch_dtype")).removeprefix("torch.")
    return next((dtype for dtype in DTYPES.values() if str(dtype) == f"torch.{name}"), None)


def _check_sizes(model: StableLM, tokenizer: Tokenizer | None) -> None:
    if tokenizer is not None and tokenizer.size > model.config.vocab_size:
        raise InputError(
            f"{tokenizer.source}: {tokenizer.size:,} ids are more than the model's vocab_size "
            f"{model.config.vocab_size:,}; it is not this model's tokenizer."
        )


def _metadata(tensors: dict[str, Tensor]) -> dict[str, str]:
    """A file's metadata: "pt", because transformers refuses a file that does not say so.

    Packed weights get spaces that make the header end on a multiple of 64 bytes, so that each 64 bytes of a
    mapped weight lie in one cache line."""
    metadata = {"format": "pt"}
    if not any(tensor.dtype == torch.uint8 for tensor in tensors.values()):
        return metadata
    names, offset = {torch.uint8: "U8"} | {dtype: name for name, dtype in DTYPES.items()}, 0
    header: dict[str, Any] = {"__metadata__": metadata | {"padding": ""}}
    # the order of safetensors: wide types first, then by name
    for name, tensor in sorted(tensors.items(), key=lambda pair: (-pair[1].itemsize, pair[0])):
        offsets = [offset, offset := offset + tensor.nbytes]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return metadata | {"padding": " " * (-(8 + length) % 64)}


def _shards(tensors: dict[str, Tensor], limit: int) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += tensor.nbytes
    yield shard
