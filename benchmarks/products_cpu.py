"""Products of many rows on a CPU: packed weights beside PyTorch's 8-bit product, bf16 beside PyTorch's bf16.

x [512, 2560] Wᵀ with W [6912, 2560], a projection of the 2.8B model, in GOP/s (two a multiply-add). Packed
weights by groups (`kernels/cpu/products.py`) and by rows (`torch._int_mm` with what stands around it); the
bare `_int_mm`; bf16 and its gradient g W as the network computes them (`model/bfloat16_products.py`) and as
PyTorch does; float32 for comparison. PyTorch's bf16 is given 64 rows, for without bf16 instructions 512
would take minutes. Sides take turns; needs no oracle:

    .venv/bin/python benchmarks/products_cpu.py
    .venv/bin/python benchmarks/products_cpu.py --rows 64 --hidden 256 --out 512      (seconds)
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from measure import interleave, ratio, summary, write_result

from stablelm.kernels.cpu.packing import pack
from stablelm.kernels.cpu.prefill import BY_GROUPS, product_by_rows
from stablelm.kernels.cpu.products import product
from stablelm.kernels.cpu.vectors import INSTRUCTIONS
from stablelm.model import bfloat16_products
from stablelm.planning import hardware

PAIRS = (
    ("by groups, 4 bits", "by rows, 4 bits"), ("by groups, 8 bits", "by rows, 8 bits"),
    ("by groups, 4 bits", "float32"), ("bf16, ours", "bf16, PyTorch"),
    ("bf16 gradient, ours", "bf16 gradient, PyTorch"),
)  # fmt: skip


def sides(options: argparse.Namespace) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name → rows of x, and the product."""
    rows, few = options.rows, min(options.rows, 64)
    x, weight = torch.randn(rows, options.hidden), torch.randn(options.out, options.hidden)
    g = torch.randn(rows, options.out).bfloat16()
    levels = {bits: torch.randint(1 - (1 << bits - 1), 1 << bits - 1, weight.shape) for bits in (4, 8)}
    scales = torch.rand(options.out, -(-options.hidden // 64))
    packed = {bits: pack(levels[bits], scales, bits, 64) for bits in levels}
    whole = torch.randint(-127, 128, x.shape, dtype=torch.int8)
    columns = levels[8].to(torch.int8).T
    half, half_weight = x.bfloat16(), weight.bfloat16()

    def bf16(count: int, widened: bool, gradient: bool) -> None:
        factor = (g if gradient else half)[:count]
        out = factor.new_empty(count, options.hidden if gradient else options.out)
        with mock.patch.object(bfloat16_products, "WIDENED", widened):
            (bfloat16_products.back if gradient else bfloat16_products.times)(factor, half_weight, out)

    ours = bfloat16_products.WIDENED
    slow = few if ours else rows
    return {
        "by groups, 4 bits": (rows, lambda: product(packed[4], x)),
        "by groups, 8 bits": (rows, lambda: product(packed[8], x)),
        "by rows, 4 bits": (rows, lambda: product_by_rows(packed[4], x)),
        "by rows, 8 bits": (rows, lambda: product_by_rows(packed[8], x)),
        "_int_mm": (rows, lambda: torch._int_mm(whole, columns)),
        "bf16, ours": (rows, lambda: bf16(rows, ours, False)),
        "bf16, PyTorch": (slow, lambda: bf16(slow, False, False)),
        "bf16 gradient, ours": (rows, lambda: bf16(rows, ours, True)),
        "bf16 gradient, PyTorch": (slow, lambda: bf16(slow, False, True)),
        "float32": (rows, lambda: x @ weight.T),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=2560)
    parser.add_argument("--out", type=int, default=6912)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    made = sides(options)

    def timed(function: Callable[[], object]) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    for _, function in made.values():  # the warm-up
        function()
    found = interleave({name: lambda f=f: timed(f) for name, (_, f) in made.items()}, options.rounds)
    a_row = {name: [s / made[name][0] for s in seconds] for name, seconds in found.items()}
    operations = 2 * options.hidden * options.out / 1e9
    result = {
        "setting": vars(options) | {"instructions": INSTRUCTIONS, "by_groups": BY_GROUPS},
        "rows": {name: rows for name, (rows, _) in made.items()},
        "gop_per_second": {n: summary([operations / s for s in v]) for n, v in a_row.items()},
        "ratios": {f"{a} : {b}": ratio(a_row[a], a_row[b]) for a, b in PAIRS},
    }  # fmt: skip
    for name, seconds in a_row.items():
        print(f"{name:24} {operations / statistics.median(seconds):8.1f} GOP/s")
    print(json.dumps(result["ratios"], indent=2))
    print(write_result("products_cpu", result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
