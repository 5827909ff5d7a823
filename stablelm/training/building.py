"""The network a run starts from, on this process's part of the mesh: drawn by seed, or read from `init`."""

import torch

from stablelm.config import InputError, RunConfig
from stablelm.interchange import open_path
from stablelm.interchange.hub import resolve
from stablelm.interchange.provenance import Ancestor, ancestors_of
from stablelm.model import StableLM
from stablelm.model.initialization import initial_value
from stablelm.training.parallel.apply import fill, parallelize
from stablelm.training.parallel.mesh import Layout

KEPT = {"bf16": torch.float32, "fp32": torch.float32, "bf16-pure": torch.bfloat16}
"""Precision of weights and moments."""


def build_model(
    config: RunConfig, layout: Layout, device: torch.device, dtype: torch.dtype | None = None
) -> tuple[StableLM, tuple[Ancestor, ...]]:
    """The network with its initial weights, and what these descend from.

    `dtype` replaces the precision of weights and arithmetic (float64 in tests). On a mesh nothing is held
    whole but one parameter at a time, unless `init` names a directory, which each process then reads; a
    branch, whose weights are its parent's, does not."""
    kept = dtype or KEPT[config.precision]
    given, ancestors = (None, ()) if config.init is None or config.branch else _given(config, config.init)
    if layout.mesh is None:
        model = (given or StableLM(config.model, config.seed)).to(device, kept)
        _set_arithmetic(model, config, dtype)
        return parallelize(model, None, config, device.type), ancestors
    with torch.device("meta"):
        model = StableLM(config.model, config.seed).to(kept)
    _set_arithmetic(model, config, dtype)
    parallelize(model, layout.mesh, config, device.type)
    model.to_empty(device=device)
    if given is not None:
        weights = given.state_dict()
        fill(model, lambda name, shape: weights[name])
    else:
        fill(model, lambda name, shape: initial_value(name, shape, config.model, config.seed))
    return model, ancestors


def _set_arithmetic(model: StableLM, config: RunConfig, dtype: torch.dtype | None) -> None:
    model.lm_head.chunk = config.loss_chunk
    if dtype is None and config.precision == "bf16":
        model.compute_dtype = torch.bfloat16


def _given(config: RunConfig, init: str) -> tuple[StableLM, tuple[Ancestor, ...]]:
    folder = resolve(init)
    model, _ = open_path(folder, dtype=torch.float32)
    if model.config != config.model:
        names = type(model.config).model_fields
        name = next(n for n in names if getattr(model.config, n) != getattr(config.model, n))
        raise InputError(
            f"init: {init} has {name} {getattr(model.config, name)}, model.{name} is "
            f"{getattr(config.model, name)}. Give the run the architecture of its initial weights."
        )
    return model, ancestors_of(folder, init)
