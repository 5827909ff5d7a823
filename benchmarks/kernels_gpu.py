"""Our Triton kernels beside `torch.compile`, and PyTorch's attention kernels, at the sizes of the 3B model.

Forward and backward pass of 4 × 4,096 tokens: rotation of queries and keys (20 of 80 dimensions), SwiGLU
(6,912), LayerNorm after a residual sum (2,560), softmax of the loss (4,096 tokens of 50,304 words), attention
(32 heads of 80, causal). The same function compiled from the modules that are each kernel's twin. GB/s count
every tensor that has to be read or written once.

    python benchmarks/kernels_gpu.py
    TRITON_INTERPRET=1 python benchmarks/kernels_gpu.py --device cpu --small
"""

import argparse
import json
import time
from functools import partial

import torch
from measure import interleave, ratio, summary, write_result
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from stablelm.kernels.gpu import norm, swiglu
from stablelm.kernels.gpu import rotary as turned
from stablelm.model.feedforward import swiglu as plain_swiglu
from stablelm.model.head import softmax_gradient
from stablelm.model.rotary import Rotary, rotate

BATCH, HEADS, WIDTH = 4, 32, 80


def both(function, inputs, grads):
    """A closure for a forward and a backward pass."""

    def run():
        return torch.autograd.grad(function(*inputs), inputs, grads)

    return run


def captured(run, options):
    """On a GPU: `run` as one graph, so that what is timed is the device and not Python."""
    for _ in range(3):
        run()
    if options.device != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def leaf(*shape, device, dtype):
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_()


def rotation(options):
    """Queries as the projection leaves them."""
    make = partial(torch.randn, device=options.device, dtype=options.dtype)
    x = make(BATCH, options.tokens, HEADS, WIDTH).transpose(1, 2).requires_grad_()
    angles = Rotary(torch.arange(options.tokens, device=options.device), WIDTH // 4, 10_000.0)
    cos, sin = angles.cos.to(options.dtype), angles.sin.to(options.dtype)
    grad = make(BATCH, options.tokens, HEADS, WIDTH).transpose(1, 2)
    sides = {"triton": turned.rotate, "compiled": torch.compile(rotate)}
    runs = {n: both(lambda x, f=f: f(x, cos, sin), [x], [grad]) for n, f in sides.items()}
    return runs, 4 * x.numel() * x.element_size()


def gated(options):
    size = (BATCH, options.tokens, options.mlp)
    gate, up = (leaf(*size, device=options.device, dtype=options.dtype) for _ in range(2))
    grad = torch.randn_like(gate)
    sides = {"triton": swiglu.swiglu, "compiled": torch.compile(plain_swiglu)}
    runs = {n: both(f, [gate, up], [grad]) for n, f in sides.items()}
    return runs, 8 * gate.numel() * gate.element_size()


def normed(options):
    size = (BATCH, options.tokens, options.hidden)
    x, delta = (leaf(*size, device=options.device, dtype=options.dtype) for _ in range(2))
    weight, bias = (leaf(options.hidden, device=options.device, dtype=torch.float32) for _ in range(2))
    grads = [torch.randn_like(x), torch.randn_like(x)]

    def plain(x, delta, weight, bias):
        total = x + delta
        w, b = weight.to(x.dtype), bias.to(x.dtype)
        return total, functional.layer_norm(total, (options.hidden,), w, b, 1e-5)

    sides = {"triton": lambda *a: norm.add_norm(*a, 1e-5), "compiled": torch.compile(plain)}
    runs = {n: both(f, [x, delta, weight, bias], grads) for n, f in sides.items()}
    return runs, 8 * x.numel() * x.element_size()


def softmax(options):
    logits = torch.randn(options.tokens, options.words, device=options.device, dtype=options.dtype)
    label = torch.randint(0, options.words, (options.tokens, 1), device=options.device)
    counted = label.squeeze(1) >= 0
    runs = {}
    for name, function in {"eager": softmax_gradient, "compiled": torch.compile(softmax_gradient)}.items():
        runs[name] = lambda f=function: f(logits, label, counted, 0.0)
    return runs, 2 * logits.numel() * logits.element_size()


def attention(options):
    """By each of PyTorch's kernels; the last number is causal FLOPs, not bytes."""
    size = (BATCH, options.tokens, HEADS, WIDTH)
    inputs = [leaf(*size, device=options.device, dtype=options.dtype) for _ in range(3)]
    grad = torch.randn(BATCH, HEADS, options.tokens, WIDTH, device=options.device, dtype=options.dtype)
    names = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")

    def by(kind, q, k, v):
        with sdpa_kernel(kind):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    runs = {}
    for name in names:
        run = both(partial(by, getattr(SDPBackend, name)), inputs, [grad])
        try:
            run()
            runs[name.split("_")[0].lower()] = run
        except RuntimeError as error:
            print(f"attention, {name}: {str(error).splitlines()[0]}")
    return runs, 7 * BATCH * HEADS * options.tokens**2 * WIDTH


CASES = {
    "rotation": rotation,
    "swiglu": gated,
    "add_norm": normed,
    "softmax": softmax,
    "attention": attention,
}


def timed(run, options):
    """A closure: seconds of a call, the mean of `repeats`."""

    def seconds() -> float:
        wait(options)
        began = time.perf_counter()
        for _ in range(options.repeats):
            run()
        wait(options)
        return (time.perf_counter() - began) / options.repeats

    return seconds


def wait(options) -> None:
    """Until the device has done everything."""
    if options.device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="sizes that Triton's interpreter gets through")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=CASES)
    options = parser.parse_args()
    options.dtype = torch.float32 if options.small else torch.bfloat16
    options.tokens, options.mlp, options.hidden, options.words, options.repeats = (
        (8, 24, 32, 64, 1) if options.small else (4096, 6912, 2560, 50_304, 20)
    )
    result = {}
    for name in [options.only] if options.only else CASES:
        runs, amount = CASES[name](options)
        runs = {side: captured(run, options) for side, run in runs.items()}
        seconds = interleave({side: timed(run, options) for side, run in runs.items()}, options.rounds)
        unit = "TFLOP/s" if name == "attention" else "GB/s"
        scale = 1e12 if name == "attention" else 1e9
        result[name] = {
            side: {"microseconds": {k: v * 1e6 for k, v in summary(values).items()},
                   unit: amount / summary(values)["median"] / scale}
            for side, values in seconds.items()
        }  # fmt: skip
        if "triton" in seconds:
            result[name]["triton_beside_compiled"] = ratio(seconds["triton"], seconds["compiled"])
        print(
            name, {side: round(summary(v)["median"] * 1e6) for side, v in seconds.items()}, "µs", flush=True
        )
    if options.small:
        print(json.dumps(result, indent=2))
        return
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    about = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}
    print(write_result("kernels_gpu", result, about))


if __name__ == "__main__":
    main()
