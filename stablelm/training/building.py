"""The network a run starts from, on this process's part of the mesh: drawn by seed, or read from `init`.

Initial weights must have the run's architecture, except for what `adapt` names (`adapting.py`)."""

from dataclasses import dataclass, field
from typing import Any

import torch

from stablelm.config import RunConfig
from stablelm.interchange import open_path
from stablelm.interchange.hub import resolve
from stablelm.interchange.provenance import Ancestor, ancestors_of
from stablelm.model import StableLM
from stablelm.model.initialization import initial_value
from stablelm.tokenizer import Tokenizer
from stablelm.training.adapting import adaptation
from stablelm.training.float8 import to_float8
from stablelm.training.parallel.apply import fill, parallelize
from stablelm.training.parallel.mesh import Layout

KEPT = {"bf16": torch.float32, "fp32": torch.float32, "bf16-pure": torch.bfloat16}
"""Precision of weights and moments."""


@dataclass(frozen=True)
class Start:
    """What is known of the weights that a run starts from; nothing where they are drawn."""

    ancestors: tuple[Ancestor, ...] = ()
    """What they descend from."""
    adapted: dict[str, list[Any]] = field(default_factory=dict)
    """Key of the architecture → its value there and in this run."""
    tokenizer: Tokenizer | None = None
    """The one that they were trained with, if it lies beside them."""


def build_model(
    config: RunConfig, layout: Layout, device: torch.device, dtype: torch.dtype | None = None
) -> tuple[StableLM, Start]:
    """The network with its initial weights, and what is known of these.

    `dtype` replaces the precision of weights and arithmetic (float64 in tests). On a mesh nothing is held
    whole but one parameter at a time, unless `init` names a directory, which each process then reads; a
    branch, whose weights are its parent's, does not."""
    kept = dtype or KEPT[config.precision]
    given, start = (None, Start()) if config.init is None or config.branch else _given(config, config.init)
    if layout.mesh is None:
        model = (given or StableLM(config.model, config.seed)).to(device, kept)
        set_arithmetic(model, config, device, dtype)
        return parallelize(model, None, config, device.type), start
    with torch.device("meta"):
        model = StableLM(config.model, config.seed).to(kept)
    set_arithmetic(model, config, device, dtype)
    parallelize(model, layout.mesh, config, device.type)
    model.to_empty(device=device)
    if given is not None:
        weights = given.state_dict()
        fill(model, lambda name, shape: weights[name])
    else:
        fill(model, lambda name, shape: initial_value(name, shape, config.model, config.seed))
    return model, start


def set_arithmetic(
    model: StableLM, config: RunConfig, device: torch.device, dtype: torch.dtype | None
) -> None:
    """How `model` computes: loss by chunks, kernels, and in bf16 where the weights are kept in float32."""
    model.lm_head.chunk, model.lm_head.z_loss = config.loss_tokens(device.type), config.z_loss
    cut = config.kernels is None and config.parallel.tensor > 1
    model.use_kernels("pytorch" if cut else config.kernels, device)
    if config.fp8 is not None:
        to_float8(model, config.fp8)
    if dtype is None and config.precision == "bf16":
        model.compute_dtype = torch.bfloat16


def _given(config: RunConfig, init: str) -> tuple[StableLM, Start]:
    folder = resolve(init)
    model, tokenizer = open_path(folder, dtype=torch.float32)
    adapted = adaptation(model.config, config, init)
    model.config = config.model
    return model, Start(ancestors_of(folder, init), adapted, tokenizer)
