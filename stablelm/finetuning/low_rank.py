"""A run that trains an adapter: the base model, the adapter on it, and what its checkpoints keep of them.

The base model is opened in the precision of its files and kept frozen in that of the arithmetic (bf16 where
the run computes in bf16), the adapter in float32: 5.6 GB and 16 bytes a trained number for the 2.8B model,
and never a float32 copy. Its matrices may be packed in 4 or 8 bits (QLoRA; Dettmers et al., 2023): already
in its files, or rounded one by one as it is opened, which a run that resumes does again. A checkpoint holds
the adapter, its moments and where the base model is (`base.json`). On a mesh each process opens the base
whole, then keeps its share."""

from dataclasses import replace
from pathlib import Path

import torch

from stablelm.config import ModelConfig, RunConfig
from stablelm.config.adapter import AdapterConfig
from stablelm.inference.quantization import Recipe, compute_exactly, is_packed, quantize
from stablelm.interchange import open_path
from stablelm.interchange.adapter_card import adapter_card
from stablelm.interchange.base import BASE, Base, reread
from stablelm.interchange.gguf import is_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.model_card import settled_licence
from stablelm.interchange.native import result_of
from stablelm.interchange.neox import is_neox
from stablelm.interchange.open import fingerprint_of, locate
from stablelm.interchange.peft import CONFIG, extract_adapter, peft_config
from stablelm.interchange.provenance import ancestors_of
from stablelm.model import StableLM
from stablelm.model.adapters import attach
from stablelm.planning import Plan
from stablelm.storage import json_bytes
from stablelm.training.adapting import adaptation
from stablelm.training.building import KEPT, Start, set_arithmetic
from stablelm.training.parallel.apply import parallelize
from stablelm.training.parallel.mesh import Layout

FOLDER = "adapter"
"""Of a run that is done, where the adapter lies in PEFT's format."""
_ARITHMETIC = {"bf16": torch.bfloat16, "fp32": torch.float32, "bf16-pure": torch.bfloat16}


def build_adapted(
    config: RunConfig,
    adapter: AdapterConfig,
    layout: Layout,
    device: torch.device,
    dtype: torch.dtype | None = None,
    bits: int | None = None,
) -> tuple[StableLM, Start, Base]:
    """`config.init` with a fresh adapter on it, ready for the mesh; what is known of it; which base it is.

    `dtype` replaces the precision of weights, adapter and arithmetic (float64 in tests). `bits` rounds the
    base model's matrices first, one at a time."""
    name, run = str(config.init), Path(config.out)
    folder = resolve(name)
    model, tokenizer = open_path(folder)
    adaptation(model.config, config, name)  # refuses another architecture
    base = Base.of(name, folder, fingerprint_of(folder, model), run, bits)
    if bits is not None:
        place = folder if is_gguf(folder) or is_neox(folder) else locate(folder)
        quantize(model, Recipe.of(bits), weights=reread(place, model))
    compute_exactly(model)
    computed, kept = dtype or _ARITHMETIC[config.precision], dtype or KEPT[config.precision]
    model.to(computed)  # one matrix at a time; those that are so already stay where they lie
    attach(model, adapter, seed=config.seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(kept)
    model.to(device)
    set_arithmetic(model, config, device, dtype)
    if is_packed(model):  # what lies between the products has no precision of its own
        model.compute_dtype = computed
    start = Start(ancestors_of(folder, name), tokenizer=tokenizer)
    settled_licence(config.card, start.ancestors)  # told now, not when its card is written
    return parallelize(model, layout.mesh, config, device.type), start, base


def trained_numbers(adapter: AdapterConfig, network: ModelConfig) -> int:
    """How many numbers an adapter on a network of this architecture has; `InputError` for one that does not
    fit it. Reads nothing."""
    with torch.device("meta"):
        model = StableLM(network)
    attach(model, adapter)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapted_plan(plan: Plan, config: RunConfig, adapter: AdapterConfig) -> Plan:
    """The plan of a run that trains `adapter` alone.

    Frozen weights have no gradient of their own: 4 FLOPs a weight and token instead of 6."""
    trained = trained_numbers(adapter, config.model)
    flops = plan.flops_per_token - 2 * plan.parameters + 6 * trained
    return replace(plan, trained=trained, checkpoint_bytes=12 * trained, flops_per_token=flops)


def adapter_files(adapter: AdapterConfig, base: Base) -> dict[str, bytes]:
    """What a checkpoint keeps beside the adapter's tensors."""
    return {CONFIG: json_bytes(peft_config(adapter, base.model)), BASE: base.as_bytes()}


def write_result(run: Path, tokenizer: list[str]) -> None:
    """RUN/adapter from the checkpoint that the run opens as, with the tokenizer's files of these names and a
    model card."""
    result = result_of(run)
    assert result is not None  # the last step is saved
    card = {"README.md": adapter_card(result, run.resolve().name).encode()}
    extract_adapter(result, run / FOLDER, [*tokenizer, BASE], more=card, replace=True)
