"""What a path is: a model, a run, a checkpoint, a prepared dataset, a token file, a tokenizer. Opens no
weights to say it.

`verify` also reads every byte: hashes where a manifest has them, and every tensor's presence, shape and
finiteness."""

from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError
from stablelm.config.model import from_huggingface
from stablelm.data.manifest import Dataset
from stablelm.data.token_files import TokenFile
from stablelm.interchange.native import is_checkpoint, newest_checkpoint
from stablelm.interchange.open import open_path
from stablelm.storage import MANIFEST, read_json, read_manifest
from stablelm.tokenizer import Tokenizer

Facts = dict[str, Any]


def describe(path: str | Path, *, verify: bool = False) -> Facts:
    """Facts about a path, in the order in which a reader wants them; `InputError` when it is nothing
    known."""
    path = Path(path)
    if not path.exists() and not path.with_name(path.name + ".idx").is_file():
        raise InputError(f"{path}: no such file or directory.")
    if path.is_file() or path.with_name(path.name + ".idx").is_file():
        return _tokenizer(path) if path.suffix == ".json" else _token_file(path)
    if is_checkpoint(path):
        return _checkpoint(path, verify)
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        return _run(path, verify)
    if (path / "config.json").is_file():
        return _model(path, "Hugging Face model directory", verify)
    if (path / MANIFEST).is_file():
        return _dataset(path, verify)
    if (path / "model" / "config.json").is_file():
        return _model(path / "model", f"demo; its model is {path / 'model'}", verify)
    if (path / "tokenizer.json").is_file():
        return _tokenizer(path)
    raise InputError(
        f"{path}: nothing known is in this directory. Looked for a manifest.json (checkpoint, dataset), "
        "checkpoints/ (run), "
        "config.json (model) and tokenizer.json."
    )


def _tokenizer(path: Path) -> Facts:
    tokenizer = Tokenizer.from_file(path)
    return {"kind": "tokenizer", **_tokenizer_facts(tokenizer)}


def _tokenizer_facts(tokenizer: Tokenizer) -> Facts:
    return {
        "tokenizer ids": tokenizer.size,
        "end of text": f"id {tokenizer.eos_id}",
        "padding": f"id {tokenizer.pad_id}",
        "tokenizer sha256": tokenizer.sha256,
    }


def _token_file(path: Path) -> Facts:
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    if not prefix.with_name(prefix.name + ".idx").is_file():
        raise InputError(f"{path}: not a kind of file that is known; a tokenizer.json, .bin or .idx is.")
    tokens = TokenFile(prefix)
    return {
        "kind": "token file (Megatron .bin/.idx)",
        "documents": tokens.num_documents,
        "tokens": tokens.num_tokens,
        "stored as": str(tokens.dtype),
    }


def _dataset(path: Path, verify: bool) -> Facts:
    dataset = Dataset(path)
    if verify:
        dataset.verify()
    facts: Facts = {"kind": "prepared dataset", "tokenizer ids": dataset.tokenizer_size}
    for name in dataset.sources:
        for side in ("train", "held_out"):
            about = dataset.info(name)[side]
            facts[f"{name}, {side.replace('_', ' ')}"] = (
                f"{about['documents']:,} documents, {about['tokens']:,} tokens, {about['bytes']:,} bytes"
            )
    return {**facts, "fingerprint": dataset.fingerprint, **({"verified": "every byte"} if verify else {})}


def _run(path: Path, verify: bool) -> Facts:
    newest = newest_checkpoint(path)
    plan = read_json(path / "plan.json") if (path / "plan.json").is_file() else {}
    facts: Facts = {"kind": "training run", "steps planned": plan.get("steps", "unknown")}
    if newest is None:
        return {**facts, "newest checkpoint": "none yet"}
    return {**_checkpoint(newest, verify), **facts}


def _checkpoint(path: Path, verify: bool) -> Facts:
    if verify:
        read_manifest(path, remedy="Use the checkpoint before it.")
    state = read_json(path / "state.json")
    trained = {
        "checkpoint": str(path),
        "steps done": f"{state['step']:,} of {state['steps']:,}",
        "windows read": state["samples"],
    }
    return {**_model(path, "training checkpoint", verify), **trained}


def _model(path: Path, kind: str, verify: bool) -> Facts:
    config = from_huggingface(read_json(path / "config.json"), str(path / "config.json"))
    facts: Facts = {
        "kind": kind,
        "architecture": f"StableLM: {config.num_hidden_layers} layers, hidden {config.hidden_size}, "
        f"{config.num_attention_heads} heads of {config.head_dim} (rotary on {config.rotary_dim}), MLP "
        f"{config.intermediate_size}",
        "parameters": config.num_parameters,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "KV cache": f"{config.kv_bytes_per_token():,} bytes a token in bf16",
        "weights on disk": sum(
            file.stat().st_size for file in path.rglob("*.safetensors") if "optimizer" not in file.parts
        ),
    }
    if (path / "tokenizer.json").is_file():
        facts |= _tokenizer_facts(Tokenizer.from_file(path))
    if verify:
        model, _ = open_path(path)
        for name, tensor in model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"{path}: {name} holds values that are not finite; these weights cannot be used."
                )
        facts["verified"] = (
            f"{len(model.state_dict())} tensors present, of the right shape, finite ({model.dtype})"
        )
    return facts
