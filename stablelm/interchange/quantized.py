"""A directory with packed weights, as `stablelm quantize` writes it: the Hugging Face layout, but that

    config.json         has `quantization_config`, the recipe (`inference/quantization.py`)
    model.safetensors   holds NAME.weight (uint8 tiles) and NAME.scale (bfloat16) for each projection
    quality.json        how far it is from the original

Weights are memory-mapped and used where they lie: opening costs nothing, pages are read when first used. On a
GPU (untested) products are made by PyTorch from pieces of dense weights: for training upon them.
Other programs refuse it by its `quant_method`."""

from collections.abc import Callable
from pathlib import Path

import torch

from stablelm.config.model import from_huggingface
from stablelm.inference.quantization import Recipe, is_packed, prepare
from stablelm.interchange.huggingface import _check_sizes, _stated, read_config, stored_tensors
from stablelm.interchange.weights import build_model
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

QUALITY = "quality.json"


def is_quantized(directory: Path) -> bool:
    """Whether config.json speaks of quantised weights, ours or another program's."""
    return (directory / "config.json").is_file() and bool(read_config(directory).get("quantization_config"))


def packed_layers(directory: Path) -> Callable[[StableLM], None] | None:
    """What puts packed layers into an empty model, as config.json's recipe wants them; None without one."""
    found = read_config(directory).get("quantization_config")
    if not found:
        return None
    recipe = Recipe.read(found, str(directory / "config.json"))
    return lambda empty: prepare(empty, recipe)


def load_quantized(
    directory: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    build: type[StableLM] = StableLM,
) -> tuple[StableLM, Tokenizer | None]:
    """The model and the tokenizer. `dtype` is that of the arithmetic between the products; None is that of
    the embedding as stored."""
    values, source = read_config(directory), str(directory / "config.json")
    fill = packed_layers(directory)
    model = build_model(
        from_huggingface(values, source), stored_tensors(directory), directory, None, device, build,
        fill,
    )  # fmt: skip
    assert is_packed(model)
    model.compute_dtype = dtype or _stated(values) or model.dtype
    tokenizer = Tokenizer.from_file(directory) if (directory / "tokenizer.json").is_file() else None
    _check_sizes(model, tokenizer)
    return model, tokenizer
