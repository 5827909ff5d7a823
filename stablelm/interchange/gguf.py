"""GGUF: one file with weights and tokenizer, which llama.cpp and what is built on it run.

Written so that llama.cpp's loader for `stablelm` finds all it reads: per-head query and key norms merged into
one tensor, norms and biases as float32, zero biases where a model's norms have none (its loader insists), the
rotary base. Which tensors "q8_0" and "q4_0" quantise, and as what, is the rule of `llama-quantize` without
options, the 6-bit output matrix of a 4-bit file included: the same bytes. Tensor by tensor, so about one
tensor of memory beside the model.

Read: these files, llama.cpp's and the community's, memory-mapped where the precision is kept."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.interchange.facts import architecture_facts, tokenizer_facts
from stablelm.interchange.gguf_header import Header, is_gguf, package
from stablelm.interchange.gguf_network import MERGED, described, layout_of, network_metadata
from stablelm.interchange.gguf_tokenizer import read_tokenizer, tokenizer_metadata
from stablelm.interchange.gguf_types import DENSE, LARGEST, READABLE, decode, encode, stored_bytes
from stablelm.model import StableLM
from stablelm.model.adapters import require_none
from stablelm.storage import atomic_file, refuse_existing, require_space
from stablelm.tokenizer import Tokenizer

__all__ = ["describe_gguf", "is_gguf", "load_gguf", "save_gguf"]

# dtype: (type of the matrices, LLAMA_FTYPE)
_FORMATS = {
    "f32": ("F32", 0),
    "f16": ("F16", 1),
    "q4_0": ("Q4_0", 2),
    "q8_0": ("Q8_0", 7),
    "bf16": ("BF16", 32),
}
_ALIGNMENT = 32


def save_gguf(
    model: StableLM,
    tokenizer: Tokenizer | None,
    out_file: str | Path,
    *,
    dtype: str = "f32",
    name: str | None = None,
    license: str | None = None,
) -> None:
    """Writes `out_file`, which may not exist yet; `dtype` is "f32", "f16", "bf16", "q8_0" or "q4_0".

    llama.cpp then tokenizes as `tokenizer` does, except text that is not in NFC, which it leaves so. Without
    a tokenizer the file has weights alone, and llama.cpp runs it on ids. `name` and `license` (an
    SPDX id) go into its metadata. `InputError` for a weight that is not finite or beyond the range of
    `dtype`, and for a tokenizer that llama.cpp cannot represent; all is checked before a byte is written."""
    out = Path(out_file)
    if dtype not in _FORMATS:
        raise InputError(f"dtype {dtype!r} is not written to GGUF; choose one of {', '.join(_FORMATS)}.")
    if out.is_dir():
        raise InputError(f"{out}: a directory; name a file, such as {out / 'model.gguf'}.")
    refuse_existing(out)
    require_none(model, str(out))
    gguf, config = package(), model.config
    if tokenizer is not None and tokenizer.size > config.vocab_size:
        raise InputError(
            f"{tokenizer.source}: {tokenizer.size:,} ids are more than the model's vocab_size "
            f"{config.vocab_size:,}; it is not this model's tokenizer."
        )
    named = {"general.name": name, "general.license": license}
    entries: dict[str, Any] = {
        "general.type": "model",
        **{key: value for key, value in named.items() if value},
        "general.file_type": _FORMATS[dtype][1],
        "general.quantization_version": 2,
        **network_metadata(config),
        **tokenizer_metadata(tokenizer, config),
    }
    tensors = model.state_dict()
    plan = [
        (n, p, shape, _stored_as(n, shape, _FORMATS[dtype][0])) for n, p, shape in layout_of(tensors, config)
    ]
    for _, parts, _, kind in plan:
        for part in parts:
            _check_range(part, tensors[part], kind, out)
    sizes = [-(-stored_bytes(shape, kind) // _ALIGNMENT) * _ALIGNMENT for _, _, shape, kind in plan]
    texts = sum(len(str(v)) + 16 * len(v) for v in entries.values() if isinstance(v, str | list))
    require_space(out, sum(sizes) + 2 * texts + 200 * len(plan), "the model")
    with atomic_file(out) as file:
        _write_front(gguf, Path(file.name), entries, plan)
        file.seek(0, 2)
        file.write(bytes(-file.tell() % _ALIGNMENT))
        for (_, parts, shape, kind), size in zip(plan, sizes, strict=True):
            whole = [tensors[part] for part in parts] or [torch.zeros(shape)]
            stored = encode(whole[0] if whole[0].shape == shape else torch.stack(whole), kind)
            file.write(stored.data)
            file.write(bytes(size - stored.size))


def _write_front(gguf: Any, path: Path, entries: dict[str, Any], plan: list[Any]) -> None:
    """Magic, metadata and tensor table, without the padding after them."""
    writer = gguf.GGUFWriter(None, "stablelm")
    add: dict[type, Any] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
    }  # fmt: skip
    for key, value in entries.items():
        add.get(type(value), writer.add_array)(key, value)
    for name, _, shape, kind in plan:
        dtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), stored_bytes(shape, kind), dtype)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _stored_as(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type of one tensor in a file of `kind`: `llama-quantize`'s rule without options."""
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return "F32"
    if kind in DENSE:
        return kind
    columns = shape[-1]
    if name == "output.weight" and kind == "Q4_0":
        kind = "Q8_0" if columns % 256 else "Q6_K"
    return "F16" if columns % 32 else kind


def _check_range(name: str, tensor: Tensor, kind: str, out: Path) -> None:
    low, high = torch.aminmax(tensor.detach())  # passes NaN on
    largest = float(torch.maximum(-low, high))
    if not math.isfinite(largest):
        raise InputError(f"{out}: tensor {name!r} holds values that are not finite; it was not written.")
    if largest > LARGEST[kind]:
        raise InputError(
            f"{out}: tensor {name!r} holds {largest:.4g}, beyond what {kind} can ({LARGEST[kind]:.4g}). "
            "Choose bf16 or f32."
        )


def load_gguf(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    build: type[StableLM] = StableLM,
) -> tuple[StableLM, Tokenizer | None]:
    """The model (an instance of `build`) and the tokenizer, None where the file has none.

    `dtype` None keeps the precision of the matrices; quantised ones become float32, exactly the values that
    the file means. `InputError` names the file, the key or tensor and the remedy."""
    header = Header(path)
    config, layout = described(header)
    tokenizer = read_tokenizer(header, config.vocab_size)
    _check_readable(header)
    if dtype is None:
        kinds = {header.tensors[name].type for name in layout if not name.endswith((".bias", "_norm.weight"))}
        dtype = DENSE.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
    values: dict[str, Tensor] = {}
    for name, parts in layout.items():
        value = decode(header, header.tensors[name]).to(device=device, dtype=dtype)
        values |= zip(parts, value.unbind() if name.endswith(MERGED) else [value], strict=True)
    with torch.device("meta"):
        model = build(config)
    model.load_state_dict(values, assign=True)
    return model.eval(), tokenizer


def _check_readable(header: Header) -> None:
    for tensor in header.tensors.values():
        if tensor.type not in READABLE:
            raise InputError(
                f"{header.path}: tensor {tensor.name!r} is {tensor.type}; read are {', '.join(READABLE)}. "
                "Take a file of one of these (Q4_K_M, Q8_0, F16, …)."
            )


def describe_gguf(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Facts about a file for a reader, from its header; `verify` reads every weight.

    That all tensors are there, whole and of the right shape is checked either way."""
    header = Header(path)
    config, _ = described(header)
    tokenizer = read_tokenizer(header, config.vocab_size)
    kinds = Counter(tensor.type for tensor in header.tensors.values())
    named = {name: header.text(f"general.{name}", "") for name in ("name", "license")}
    facts: dict[str, Any] = {
        "kind": "model",
        "format": f"GGUF version {header.version}",
        **{name: value for name, value in named.items() if value},
        "parameters": config.num_parameters,
        "architecture": architecture_facts(config),
        "weights": {
            "tensors": len(header.tensors),
            "stored_as": dict(kinds.most_common()),
            "files": 1,
            "bytes": header.size,
        },
        "tokenizer": "none",
    }
    if tokenizer is not None:
        facts["tokenizer"] = tokenizer_facts(tokenizer)
    if verify:
        _check_readable(header)
        for tensor in header.tensors.values():
            if not bool(torch.isfinite(decode(header, tensor)).all()):
                raise InputError(
                    f"{header.path}: tensor {tensor.name!r} holds values that are not finite; these weights "
                    "cannot be used."
                )
        facts["verified"] = f"{len(header.tensors):,} tensors: all there, of the right shape, finite"
    return facts
