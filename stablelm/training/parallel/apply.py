"""From a network on the meta device to one that is spread over a mesh and filled, in this order:
tensor parallelism → compile → recomputation → fully_shard.

Compiling a block that already recomputes fails under tensor parallelism (PyTorch 2.13), so recomputation goes
around the compiled block. `fully_shard` is applied also to a data-parallel degree of 1: it is what adds norm
gradients up over the tensor dimension. Gradients are summed, never averaged: the loss is divided by the
global number of tokens. ZeRO stages are `fully_shard`'s switches (docs/parallelism.md)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

from stablelm.config import InputError, RunConfig
from stablelm.config.parallelism import Degrees
from stablelm.config.run import steps_of
from stablelm.model import Documents, StableLM
from stablelm.model.fused import choose_fused
from stablelm.model.head import softmax_gradient
from stablelm.training.parallel.loss import VocabularyParallel
from stablelm.training.parallel.mesh import REPLICATE, SHARD, TENSOR
from stablelm.training.parallel.placements import block_plan, root_plan
from stablelm.training.parallel.recomputation import apply_recomputation

_KINDS = {"bf16": torch.bfloat16, "fp32": torch.float32, "bf16-pure": torch.bfloat16}


def compiles(config: RunConfig, device_type: str) -> bool:
    """Whether blocks are compiled: as asked, else on CUDA."""
    return config.compile if config.compile is not None else device_type == "cuda"


def check(config: RunConfig, world: int, device_type: str) -> None:
    """Refuses, before any process waits for another, a mesh that does not fit the network or the batch, and
    settings that do not go together; `InputError`, the same on all of `world` processes."""
    degrees = config.parallel.check(world, config.model, config.batch)
    for _, sequences, length in steps_of(config).batches:
        if sequences != config.batch.sequences or length != config.batch.sequence_length:
            _check_phase(config, degrees, sequences, length)
    if compiles(config, device_type) and config.recompute == "selective" and degrees.tensor > 1:
        raise InputError(
            "recompute: selective cannot look into compiled blocks under tensor parallelism; use recompute: "
            "full, or compile: false."
        )
    choose_fused(config.kernels, torch.device(device_type))
    if config.kernels == "triton" and degrees.tensor > 1:
        raise InputError("kernels: triton does not go with parallel.tensor above 1; use kernels: pytorch.")


def _check_phase(config: RunConfig, degrees: Degrees, sequences: int, length: int) -> None:
    windows = sequences * length // config.batch.sequence_length
    if windows % degrees.data:
        raise InputError(
            f"data.phases: {sequences:,} sequences of {length:,} tokens are {windows:,} windows, which "
            f"{degrees.data} data-parallel processes cannot share evenly; use a multiple, or another mesh."
        )
    if config.parallel.sequence_parallel and length % degrees.tensor:
        raise InputError(
            f"parallel.tensor {degrees.tensor} does not divide the context of {length:,} tokens in "
            "data.phases; choose a divisor, or switch parallel.sequence_parallel off."
        )


def parallelize(model: StableLM, mesh: DeviceMesh | None, config: RunConfig, device_type: str) -> StableLM:
    """Cuts, compiles and shards `model` in place; with no mesh, compiles and sets recomputation alone.

    On a mesh the parameters become DTensors: fill them (`fill`) after `to_empty`, or parallelize a filled
    model whose weights are the same on all processes."""
    compiled, tensor = compiles(config, device_type), 1 if mesh is None else mesh[TENSOR].size()
    if mesh is not None and tensor > 1:
        _cut(model, mesh[TENSOR], config)
    if compiled and config.recompute == "selective":  # its policy must be seen by the compiler
        apply_recomputation(model, config.recompute)
    if compiled:
        _compile(model, tensor, device_type)
    if not (compiled and config.recompute == "selective"):
        apply_recomputation(model, config.recompute)
    if mesh is not None:
        _shard(model, mesh, config)
    return model


def _cut(model: StableLM, mesh: DeviceMesh, config: RunConfig) -> None:
    sequence = config.parallel.sequence_parallel
    plan = {**root_plan(sequence), "lm_head": VocabularyParallel(sequence)}
    parallelize_module(model, mesh, plan, src_data_rank=None)
    inside = block_plan(sequence, model.config.use_parallel_residual)
    for block in model.model.layers:
        parallelize_module(block, mesh, inside, src_data_rank=None)


def _compile(model: StableLM, tensor: int, device_type: str) -> None:
    if tensor > 1:
        # The cut embedding returns a tensor that is still on its way. Handed to a compiled block it loses its
        # history, and the embedding silently gets no gradient (PyTorch 2.13); a copy keeps it.
        model.model.embed_tokens.register_forward_hook(lambda module, given, out: out.clone())
    # Blocks share their variants, by shapes, gradients and threads: at the limit a block is left uncompiled,
    # and one that is computed again then saves other tensors than it did (an error of PyTorch's checkpoint).
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for module in model.model.layers:
        block: Any = module
        block.self_attn.attend = _documents_outside(block.self_attn.attend)
        block.forward = torch.compile(block.forward)
    if device_type == "cuda":
        model.lm_head.fused = torch.compile(softmax_gradient)


def _documents_outside(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention within documents stays uncompiled: every batch has other boundaries, each a compilation."""
    plain: Callable[..., Tensor] = torch.compiler.disable(attend)  # type: ignore[no-untyped-call]

    def chosen(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return plain(q, k, v, mask) if isinstance(mask, Documents) else attend(q, k, v, mask)

    return chosen


def _shard(model: StableLM, mesh: DeviceMesh, config: RunConfig) -> None:
    replicated = mesh[REPLICATE].size() > 1
    data = mesh[REPLICATE, SHARD] if replicated else mesh[SHARD]
    if model.dtype == torch.float64:  # the exact arithmetic of tests
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    elif not all(parameter.requires_grad for parameter in model.parameters()):
        # An adapter: frozen weights are in the arithmetic's precision already, its own are cast where used.
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    else:
        policy = MixedPrecisionPolicy(
            param_dtype=_KINDS[config.precision], reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=data, reshard_after_forward=config.parallel.zero == 3, mp_policy=policy)
    for module in sharded(model):  # neither setter reaches the modules inside
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def sharded(model: nn.Module) -> list[FSDPModule]:
    """The modules that gather their weights, the root first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def accumulate(model: nn.Module, layout_replicates: bool, zero: int, last: bool) -> None:
    """Before the forward pass of a micro-batch: what is communicated after it.

    Stage 0 and 1 keep whole gradients and exchange them after the last one alone; 2 and 3 scatter them each
    time. Stages below 3 keep weights gathered until then. Replicas add up once."""
    if not isinstance(model, FSDPModule):
        return
    if zero <= 1:
        model.set_requires_gradient_sync(last)
    if zero <= 2:
        model.set_reshard_after_backward(last)
    if layout_replicates:
        model.set_requires_all_reduce(last)
    model.set_is_last_backward(last)


def reshard(model: nn.Module) -> None:
    """Frees gathered weights, as after an evaluation."""
    for module in sharded(model):
        module.reshard()


@torch.no_grad()
def fill(model: nn.Module, value: Callable[[str, torch.Size], Tensor]) -> None:
    """Every parameter from its name and whole shape: each process draws the whole and keeps its part, so the
    weights are bit-equal on every mesh and nothing is sent."""
    for name, parameter in model.named_parameters():
        whole = value(name, parameter.shape).to(parameter.dtype)
        if isinstance(parameter, DTensor):
            whole = distribute_tensor(
                whole.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        parameter.copy_(whole)
