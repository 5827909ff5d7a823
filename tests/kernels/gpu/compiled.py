"""Every Triton kernel compiled ahead of time for the GPUs that are named, without one: run by
`test_gpu.py`, in a process without the interpreter. Prints what a program needs."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stablelm.kernels.gpu import expansion, norm, rotary, swiglu

HEADS = {"WIDTH": 80, "HALF": 10, "HEADS": 32, "LANES": 16, "REST": 64}
KERNELS = {
    swiglu.swiglu_forward: ("gate up out", "count", "", {"BLOCK": swiglu.BLOCK}),
    swiglu.swiglu_backward: ("grad gate up d_gate d_up", "count", "", {"BLOCK": swiglu.BLOCK}),
    rotary.rotate_heads: (
        "x cos sin out", "length heads x_batch x_head x_token angle_batch", "sign", HEADS,
    ),
    norm.add_norm_forward: (
        "x delta weight bias total out *mean *inverse", "width", "eps", {"BIAS": True, "BLOCK": 4096},
    ),
    norm.add_norm_backward: (
        "d_total d_out total weight *mean *inverse d_x *d_weight *d_bias", "rows width parts", "",
        {"BLOCK": 4096},
    ),
    expansion.expand_tiles: (
        "#words scale out", "first_tile first_group rows columns groups", "",
        {"BITS": 4, "GROUP": 64, "BLOCK": expansion.BLOCK},
    ),
}  # fmt: skip
"""Kernel → its tensors (* in float32, # in int32, else bf16), whole numbers, floats, constants of the 3B
model."""
KINDS = {"*": "*fp32", "#": "*i32"}

for kernel, (tensors, integers, floats, constants) in KERNELS.items():
    signature = {name.lstrip("*#"): KINDS.get(name[0], "*bf16") for name in tensors.split()}
    signature |= dict.fromkeys(integers.split(), "i32") | dict.fromkeys(floats.split(), "fp32")
    signature |= dict.fromkeys(constants, "constexpr")
    ordered = {name: signature[name] for name in kernel.arg_names}
    for capability in map(int, sys.argv[1:]):
        source = ASTSource(fn=kernel, signature=ordered, constexprs=constants)
        done = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert f".target sm_{capability}" in done.asm["ptx"], done.asm["ptx"][:400]
        print(kernel.__name__, capability, done.metadata.shared, len(done.asm["cubin"]))
