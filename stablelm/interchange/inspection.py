"""What a path is: a model, a run, a checkpoint, a prepared dataset, a token file, a tokenizer, weights.

Facts are plain numbers and strings in nested tables, the same for a reader (`as_lines`) and a machine (JSON).
Without `verify` only headers and small files are read: enough to see that a file is cut, a tensor missing or
a tokenizer another model's, and seconds for any size. `verify` reads every byte: hashes where a manifest has
them, and whether all weights are finite. What is broken is refused by name, as when it is used."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from stablelm.config import InputError
from stablelm.config.model import from_huggingface
from stablelm.data.manifest import SIDES, Dataset
from stablelm.data.token_files import TokenFile
from stablelm.interchange.base import Base
from stablelm.interchange.facts import architecture_facts, tokenizer_facts
from stablelm.interchange.gguf import describe_gguf, is_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import INDEX, WEIGHTS, read_config, stored_tensors
from stablelm.interchange.kernel_report import kernel_report
from stablelm.interchange.native import best_of, finished_checkpoints, is_checkpoint
from stablelm.interchange.neox import is_neox
from stablelm.interchange.neox_inspection import describe_neox
from stablelm.interchange.open import open_path
from stablelm.interchange.peft import check_adapter, is_adapter, read_adapter_config, stored_parts
from stablelm.interchange.quantized import packed_layers
from stablelm.interchange.weights import StoredTensor, build_model, read_header, read_headers
from stablelm.model import StableLM
from stablelm.storage import MANIFEST, read_json, read_manifest, refuse_dead_link
from stablelm.tokenizer import Tokenizer

Facts = dict[str, Any]
_PARTS = ("config.json", "generation_config.json", "tokenizer_config.json", INDEX, MANIFEST, "state.json")
_NAMED_BY_USERS = ("sources", "shapes", "held_out_bits_per_byte")
_REMEDY = "Use the checkpoint before it."


def describe(path: str | Path, *, verify: bool = False, kernels: torch.device | None = None) -> Facts:
    """Facts about a path, in the order in which a reader wants them; `InputError` when it is nothing known or
    is broken. `kernels` adds which kernels a model would use on that device."""
    path = resolve(path)
    index = Path(f"{path}.idx")
    refuse_dead_link(path)
    if not path.exists() and not index.is_file():
        raise InputError(f"{path}: no such file or directory.")
    if is_gguf(path):
        about = describe_gguf(path, verify=verify)
    elif is_neox(path):
        about = describe_neox(path, verify=verify)
    else:
        about = _directory(path, verify) if path.is_dir() else _file(path, index.is_file(), verify)
    if kernels is not None:
        model, _ = open_path(path, None, "meta")  # reads no weights
        about["kernels"] = kernel_report(model, kernels)
    return {"kind": about.pop("kind"), "path": str(path), **about}


def as_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts for a reader: sections indented, values aligned, numbers with thousands separators."""
    rows = list(_rows(facts, 0, False))
    width = max(len(name) for name, value in rows if value)
    for name, value in rows:
        yield f"{name:<{width}}  {value}" if value else name


def _rows(facts: Mapping[str, Any], depth: int, verbatim: bool) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        shown = "  " * depth + (name if verbatim else name.replace("_", " "))
        if isinstance(value, dict) and (depth == 0 or any(isinstance(part, dict) for part in value.values())):
            yield shown, ""
            yield from _rows(value, depth + 1, name in _NAMED_BY_USERS)
        else:
            yield shown, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_shown(part)} {name}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _file(path: Path, is_prefix: bool, verify: bool) -> Facts:
    if is_prefix or path.suffix in (".bin", ".idx"):
        return _token_file(path, verify)
    if path.name in _PARTS:
        raise InputError(
            f"{path}: only a part of something; give the directory that holds it, {path.parent}."
        )
    if path.suffix == ".json":
        return {"kind": "tokenizer", **tokenizer_facts(Tokenizer.from_file(path))}
    if path.suffix == ".safetensors":
        return _weights_file(path, verify)
    raise InputError(
        f"{path}: not a kind of file that is known; a tokenizer.json, a .safetensors, a .gguf, a .bin "
        "and its .idx are."
    )


def _directory(path: Path, verify: bool) -> Facts:
    if is_checkpoint(path):
        return _checkpoint(path, verify)
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        return _run(path, verify)
    if (path / "state.json").is_file():
        raise InputError(f"{path}: a checkpoint that was never finished, or has lost a part. {_REMEDY}")
    if is_adapter(path):
        return {"kind": "adapter", **_adapter(path, verify)}
    if (path / "config.json").is_file():
        return {"kind": "model", **_model(path, verify)}
    if (path / MANIFEST).is_file():
        return _dataset(path, verify)
    if (path / "model" / "config.json").is_file():
        return {"kind": "demo", "model": str(path / "model"), **_model(path / "model", verify)}
    if (path / "tokenizer.json").is_file():
        return {"kind": "tokenizer", **tokenizer_facts(Tokenizer.from_file(path))}
    inside = [*sorted(path.glob("step-*")), *(found.with_suffix("") for found in sorted(path.glob("*.idx")))]
    raise InputError(
        f"{path}: nothing known is in this directory. "
        + (
            f"What it holds is known one by one: try {inside[-1]}."
            if inside
            else f"Looked for config.json (a model), checkpoints/ (a run), {MANIFEST} (a checkpoint or "
            "dataset) and tokenizer.json."
        )
    )


def _token_file(path: Path, verify: bool) -> Facts:
    tokens = TokenFile(path.with_suffix("") if path.suffix in (".bin", ".idx") else path)
    facts = {
        "kind": "token file",
        "format": "Megatron .bin and .idx",
        "documents": tokens.num_documents,
        "tokens": tokens.num_tokens,
        "stored_as": str(tokens.dtype),
    }
    if verify and tokens.num_tokens:
        step = 1 << 24
        starts = range(0, tokens.num_tokens, step)
        facts["largest_id"] = max(
            int(tokens.tokens(at, min(step, tokens.num_tokens - at)).max()) for at in starts
        )
    return facts


def _dataset(path: Path, verify: bool) -> Facts:
    dataset = Dataset(path)
    files = dataset.verify() if verify else []
    facts: Facts = {
        "kind": "dataset",
        "fingerprint": dataset.fingerprint,
        "tokenizer": {"ids": dataset.tokenizer_size, "sha256": dataset.manifest["tokenizer"]["sha256"]},
    }
    facts["sources"] = sources = {}
    account = ("read", "kept", "dropped", "errors", "empty_files")
    for name in dataset.sources:
        about = dataset.info(name)
        sources[name] = {
            **{
                side: {unit: about[side][unit] for unit in ("documents", "tokens", "bytes")} for side in SIDES
            },
            **{key: about[key] for key in account if about.get(key) not in (None, {}, [])},
        }
    return {**facts, **({"verified": f"every byte of {len(files):,} files"} if verify else {})}


def _run(path: Path, verify: bool) -> Facts:
    saved = finished_checkpoints(path)
    plan = read_json(path / "plan.json") if (path / "plan.json").is_file() else {}
    planned = plan.get("steps", "unknown") if isinstance(plan, dict) else "unknown"
    if not saved:
        return {"kind": "run", "checkpoints": [], "steps": {"done": 0, "planned": planned}}
    named: Facts = {"kind": "run", "checkpoints": [checkpoint.name for checkpoint in saved]}
    if best := best_of(saved[-1]):
        named["best"] = best
    return {**named, **_checkpoint(saved[-1], verify), "kind": "run"}


def _checkpoint(path: Path, verify: bool) -> Facts:
    read_manifest(path, hashes=verify, remedy=_REMEDY)
    state = read_json(path / "state.json")
    try:
        newest = {record["source"]: record["bits_per_byte"] for record in state["evaluations"]}
        trained = {
            "steps": {"done": state["step"], "planned": state["steps"]},
            "windows_read": state["samples"],
            "held_out_bits_per_byte": {name: round(value, 4) for name, value in newest.items()},
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{path / 'state.json'}: damaged ({error!r}). {_REMEDY}") from None
    if not newest:
        del trained["held_out_bits_per_byte"]
    facts = {"kind": "checkpoint", **trained, **(_adapter if is_adapter(path) else _model)(path, verify)}
    if verify:
        facts["verified"] += "; every file has the manifest's sha256"
    return facts


def _model(path: Path, verify: bool) -> Facts:
    config = from_huggingface(read_config(path), str(path / "config.json"))
    facts: Facts = {
        "parameters": config.num_parameters,
        "architecture": architecture_facts(config),
    }
    # A checkpoint keeps its weights in model/; nothing at all is a state of its own, not a broken one.
    inside = sorted((path / "model").glob("*.safetensors")) if is_checkpoint(path) else []
    stored: dict[str, StoredTensor] = {}
    if inside or any(os.path.lexists(path / name) for name in (WEIGHTS, INDEX)):
        stored = read_headers(inside) if inside else stored_tensors(path)
        packed = None if inside else packed_layers(path)
        build_model(config, stored, path, None, "meta", StableLM, packed)
        if packed is not None:
            facts["quantization"] = {
                name: value
                for name, value in read_config(path)["quantization_config"].items()
                if name in ("bits", "group", "head_bits", "calibrated")
            }
    facts["weights"] = _weights(stored) if stored else "none"
    if (path / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(path)
        if tokenizer.size > config.vocab_size:
            raise InputError(
                f"{tokenizer.source}: {tokenizer.size:,} ids are more than the model's vocab_size "
                f"{config.vocab_size:,}; it is not this model's tokenizer."
            )
        facts["tokenizer"] = tokenizer_facts(tokenizer)
    else:
        facts["tokenizer"] = "none"
    if verify:
        if not stored:
            stored_tensors(path)  # says what is missing
        facts["verified"] = _finite(stored)
    return facts


def _adapter(path: Path, verify: bool) -> Facts:
    values, config = read_adapter_config(path), None
    if (path / "config.json").is_file():  # a checkpoint's
        config = from_huggingface(read_config(path), str(path / "config.json"))
        stored = check_adapter(path, config)
    else:
        stored = dict(stored_parts(path).values())
    base = Base.read(path) if values.get("base_model_name_or_path") else None
    facts: Facts = {
        "adapter": {
            "on": "unknown" if base is None else base.model,
            "rank": values.get("r", 8),
            "alpha": values.get("lora_alpha", 8),
            "rank_stabilized": "yes" if values.get("use_rslora") else "no",
            "row_lengths": "yes" if values.get("use_dora") else "no",
            "matrices": sum("lora_A" in name for name in stored),
            "parameters": sum(math.prod(tensor.shape) for tensor in stored.values()),
        },
        **({} if config is None else {"architecture": architecture_facts(config)}),
        "weights": _weights(stored),
    }
    if (path / "tokenizer.json").is_file():
        facts["tokenizer"] = tokenizer_facts(Tokenizer.from_file(path))
    if verify:
        facts["verified"] = _finite(stored)
    return facts


def _weights_file(path: Path, verify: bool) -> Facts:
    stored = read_header(path)
    shown = {name: list(tensor.shape) for name, tensor in stored.items()}
    return {
        "kind": "weights",
        **_weights(stored),
        **({"verified": _finite(stored)} if verify else {}),
        "shapes": shown,
    }


def _weights(stored: Mapping[str, StoredTensor]) -> Facts:
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored.values())
    files = {file for tensor in stored.values() for file in tensor.files}
    return {
        "tensors": len(stored),
        "stored_as": [name for name, _ in dtypes.most_common()],
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "tensor_bytes": sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in stored.values()),
    }


def _finite(stored: Mapping[str, StoredTensor]) -> str:
    """Reads every weight, one tensor in memory at a time."""
    for file in sorted({file for tensor in stored.values() for file in tensor.files}):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    if not bool(torch.isfinite(opened.get_tensor(name)).all()):
                        raise InputError(
                            f"{file}: tensor {name!r} holds values that are not finite; these weights cannot "
                            "be used."
                        )
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: cannot be read ({error}). Download or copy the file again.") from None
    return f"{len(stored):,} tensors: all there, of the right shape, finite"
