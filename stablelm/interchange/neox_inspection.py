"""What a GPT-NeoX checkpoint is, for `stablelm inspect`: as facts, like those of every other path.

Opening it has compared all shapes, ranks and YAML already; `verify` also reads every weight."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError, ModelConfig
from stablelm.interchange.facts import architecture_facts, tokenizer_facts
from stablelm.interchange.neox import NeoxCheckpoint, check_vocabulary, open_neox
from stablelm.tokenizer import Tokenizer


def describe_neox(
    path: str | Path,
    *,
    verify: bool = False,
    qkv_layout: str | None = None,
    config: ModelConfig | str | Path | None = None,
) -> dict[str, Any]:
    """Facts about the checkpoint at `path`; `InputError` as for `load_neox`, and with `verify` for the first
    tensor that is not finite."""
    opened = open_neox(path, qkv_layout=qkv_layout, config=config)
    files, settled = opened.files, opened.config
    facts: dict[str, Any] = {
        "kind": "model",
        "path": str(path),
        "format": f"GPT-NeoX checkpoint, {files.layout} layout",
        "tag": files.folder.resolve().name,
        "steps": {"done": opened.step} if opened.step is not None else "unknown",
        "tensor_parallel_ranks": files.width,
        "mlp_names": "linear1 (up, then gate), linear2" if opened.mlp == "new" else "w1, w2, w3",
        "qkv_layout": f"{opened.qkv_layout}: {opened.reason}",
        "architecture_from": opened.source,
        "parameters": settled.num_parameters,
        "architecture": architecture_facts(settled),
    }
    if facts["steps"] == "unknown":
        del facts["steps"]
    facts["weights"] = _weights(opened)
    if opened.averaged:
        facts["ranks_differ"] = f"LayerNorms by up to {opened.averaged:.2g} of their largest value; averaged"
    if opened.tokenizer is None:
        facts["tokenizer"] = "none"
    else:
        tokenizer = Tokenizer.from_file(opened.tokenizer)
        check_vocabulary(tokenizer, settled)
        facts["tokenizer"] = tokenizer_facts(tokenizer)
    if verify:
        facts["verified"] = _finite(opened)
    return facts


def _weights(opened: NeoxCheckpoint) -> dict[str, Any]:
    files = opened.files
    dtypes: Counter[str] = Counter()
    for layer in sorted(files.indices()):
        for tensor in files.tensors(layer, 0).values():
            dtypes[str(tensor.dtype).removeprefix("torch.")] += 1
    paths = {
        files.file(layer, rank) for layer in sorted(files.indices()) for rank in range(files.width)
    } | set(files.ranks.values())
    return {
        "tensors": dtypes.total() * files.width,
        "stored_as": [name for name, _ in dtypes.most_common()],
        "files": len(paths),
        "bytes": sum(path.stat().st_size for path in paths),
    }


def _finite(opened: NeoxCheckpoint) -> str:
    """Reads every weight, one layer of one rank mapped at a time."""
    files, count = opened.files, 0
    for layer in sorted(files.indices()):
        for rank in range(files.width):
            for key, tensor in files.tensors(layer, rank).items():
                count += 1
                if not bool(torch.isfinite(tensor).all()):
                    name = f"sequential.{layer}.{key}" if files.layout == "sequential" else key
                    raise InputError(
                        f"{files.file(layer, rank)}: tensor {name!r} holds values that are not finite; these "
                        "weights cannot be used."
                    )
    return f"{count:,} tensors: all there, of the right shape, finite"
