"""Vector instructions for Numba: which of them this CPU has, and a small emitter that writes them.

LLVM does not find the dot-product instructions in plain loops (1 GB/s where the memory gives 45), so the
kernels emit LLVM's code themselves. All vectors here are 16 lanes wide whatever the machine: LLVM splits them
where registers are narrower. Only `dot`, and what
stands in its place with AVX2, know the instruction set. Rejected: C through a compiler (nobody's
laptop has one), inline assembly (one kernel for each machine)."""

import os
from collections.abc import Callable, Sequence
from math import factorial
from typing import Any

from numba import types
from numba.core.cgutils import ir  # type: ignore[attr-defined]  # llvmlite's, the one that Numba uses
from numba.core.codegen import ll  # type: ignore[attr-defined]
from numba.extending import intrinsic

from stablelm.config.errors import InputError

LANES = 16
NAMES = ("avx512-vnni", "avx2", "portable")
"""Instruction sets that `dot` knows, fastest first. NEON is served by `portable`: untested there."""
_NEEDS = {"avx512-vnni": ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), "avx2": ("avx2", "fma")}

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES = ir.VectorType(I8, 4 * LANES)
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)


def _able() -> list[str]:
    features = ll.get_host_cpu_features()
    return [n for n in NAMES if all(features.get(need, False) for need in _NEEDS.get(n, ()))]


def _chosen() -> str:
    wish = os.environ.get("STABLELM_CPU_KERNELS", ABLE[0])
    if wish not in ABLE:
        raise InputError(f"STABLELM_CPU_KERNELS={wish}: this CPU can run {', '.join(ABLE)}. Unset it.")
    return wish


AMX: bool = ll.get_host_cpu_features().get("amx-int8", False)
"""Whether this CPU multiplies tiles of bytes, which PyTorch's products use and these kernels do not."""
ABLE = _able()
"""Those of `NAMES` that this CPU has."""
INSTRUCTIONS = _chosen()
"""What the kernels of this process use: the best the CPU has, or a lesser one named by
$STABLELM_CPU_KERNELS."""


class Emitter:
    """Writes vector code through an LLVM builder. Addresses are 64-bit integers."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def load(self, kind: Any, address: Any, offset: int = 0) -> Any:
        """A value of `kind` at address + offset, aligned or not."""
        where = self.b.add(address, I64(offset)) if offset else address
        return self.b.load(self.b.inttoptr(where, kind.as_pointer()), align=1)

    def store(self, value: Any, address: Any) -> None:
        """A value to an address, aligned or not."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=1)

    def prefetch(self, address: Any, ahead: int) -> None:
        """Asks for the cache line at address + ahead; one that does not exist is no error."""
        pointer = self.b.inttoptr(self.b.add(address, I64(ahead)), I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        call = self.b.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        self.b.call(call, [pointer, I32(0), I32(3), I32(1)])

    def splat(self, value: Any, lanes: int = LANES) -> Any:
        """The value in every lane."""
        kind = ir.VectorType(value.type, lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def loop(
        self, count: Any, carried: Sequence[Any], body: Callable[[list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """`count` ≥ 1 times: body(values) → the next values, starting from `carried`; returns the last."""
        before, inside = self.b.block, self.b.append_basic_block("loop")
        after = self.b.append_basic_block("done")
        self.b.branch(inside)
        self.b.position_at_end(inside)
        phis = [self.b.phi(value.type) for value in (count, *carried)]
        for phi, value in zip(phis, (count, *carried), strict=True):
            phi.add_incoming(value, before)
        results = list(body(phis[1:]))
        left = self.b.sub(phis[0], I64(1))
        for phi, value in zip(phis, (left, *results), strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.cbranch(self.b.icmp_signed(">", left, I64(0)), inside, after)
        self.b.position_at_end(after)
        return results

    def widen(self, halves: Any) -> Any:
        """<16 x i16> of bfloat16 → <16 x float>."""
        return self.b.bitcast(self.b.shl(self.b.zext(halves, INTS), each(16)), FLOATS)

    def largest(self, a: Any, b: Any) -> Any:
        """The larger of two, lane by lane or alone; where a is NaN, b."""
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def magnitude(self, x: Any) -> Any:
        """|x|, lane by lane."""
        return self.b.bitcast(self.b.and_(self.b.bitcast(x, INTS), each(0x7FFFFFFF)), FLOATS)

    def nearest(self, x: Any) -> Any:
        """Whole numbers nearest to x, even on a tie, as floats (adding and subtracting a large number would
        be undone: kernels may reorder sums)."""
        signature = ir.FunctionType(FLOATS, [FLOATS])
        return self.b.call(self.b.module.declare_intrinsic("llvm.rint.v16f32", fnty=signature), [x])

    def reduce(self, name: str, vector: Any) -> Any:
        """One number of 16: "fadd" the sum (in LLVM's order, the same for every call), "fmax" the largest,
        "add" the sum of integers."""
        kind, one = vector.type, vector.type.element
        lanes = f"v{LANES}{'f' if one == F32 else 'i'}32"
        given = [F32(-0.0), vector] if name == "fadd" else [vector]
        signature = ir.FunctionType(one, [value.type for value in given])
        intrinsic = self.b.module.declare_intrinsic(f"llvm.vector.reduce.{name}.{lanes}", fnty=signature)
        assert kind in (FLOATS, INTS)
        return self.b.call(intrinsic, given, fastmath=("reassoc",) if name == "fadd" else ())

    def sums(self, vectors: Sequence[Any]) -> Any:
        """Lane i is the sum of the lanes of vectors[i], for 16 of them."""
        level = list(vectors)
        assert len(level) == LANES
        halves = [ir.Constant(INTS, [2 * lane + odd for lane in range(LANES)]) for odd in (0, 1)]
        while len(level) > 1:
            pairs = zip(level[0::2], level[1::2], strict=True)
            level = [self.b.fadd(*(self.b.shuffle_vector(a, c, half) for half in halves)) for a, c in pairs]
        return level[0]

    def exp(self, x: Any) -> Any:
        """e to the x, lane by lane: 2ⁿ · (Taylor's polynomial of degree 7 within ± ln 2 / 2), 2e-7 of it
        wrong at most; from −87 to 88, beyond which it stays where it is; NaN stays NaN."""

        def same(value: float) -> Any:
            return ir.Constant(FLOATS, [value] * LANES)

        x = self.b.select(self.b.fcmp_ordered("<", x, same(-87.0)), same(-87.0), x)
        x = self.b.select(self.b.fcmp_ordered(">", x, same(88.0)), same(88.0), x)
        power = self.nearest(self.b.fmul(x, same(1.4426950216293335)))  # float32(1 / ln 2)
        # ln 2 in two parts, the first short enough that its product with a power is exact
        rest = self.fma(self.fma(x, power, same(-0.693359375)), power, same(0.00021219444170128554))
        result = same(1 / factorial(7))
        for degree in range(6, -1, -1):
            result = self.fma(same(1 / factorial(degree)), result, rest)
        bits = self.b.shl(self.b.add(self.b.fptosi(power, INTS), each(127)), each(23))
        return self.b.fmul(result, self.b.bitcast(bits, FLOATS))

    def fma(self, a: Any, x: Any, y: Any) -> Any:
        """a + x·y, in one instruction where there is one."""
        return self.b.fadd(a, self.b.fmul(x, y, flags=("contract",)), flags=("contract",))

    def dot(self, total: Any, weights: Any, x: Any) -> Any:
        """total [16] + Σ over 4 of weights (16 × 4 unsigned bytes) · x (4 signed bytes, as one i32);
        exact."""
        spread = self.splat(x)
        if INSTRUCTIONS == "avx512-vnni":
            kind = ir.FunctionType(INTS, [INTS, INTS, INTS])
            dp = self.b.module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.512", fnty=kind)
            return self.b.call(dp, [total, self.b.bitcast(weights, INTS), spread])
        words = self.b.bitcast(weights, INTS)
        for place in range(4):
            w = self.b.and_(self.b.lshr(words, each(8 * place)), each(255))
            signed = self.b.ashr(self.b.shl(spread, each(24 - 8 * place)), each(24))
            total = self.b.add(total, self.b.mul(w, signed))
        return total

    def pairs(self, unsigned: Any, signed: Any) -> Any:
        """64 unsigned times 64 signed bytes, summed two by two → <32 x i16>; by AVX2. A sum beyond 16 bits is
        cut off: one of them must stay below 128."""
        return self._by_halves("pmadd.ub.sw", (unsigned, signed), I16)

    def with_sign(self, x: Any, of: Any) -> Any:
        """x, −x or 0 in each of 64 bytes, by the sign of `of`; by AVX2."""
        return self._by_halves("psign.b", (x, of), I8)

    def joined(self, pairs: Any) -> Any:
        """<32 x i16>, summed two by two → <16 x i32>; by AVX2."""
        ones = ir.Constant(pairs.type, [1] * 2 * LANES)
        return self._by_halves("pmadd.wd", (pairs, ones), I32)

    def _by_halves(self, name: str, given: Sequence[Any], out: Any) -> Any:
        """An instruction of AVX2, whose registers hold half of what vectors here do."""
        b, kind = self.b, given[0].type
        count, result = kind.count // 2, ir.VectorType(out, 256 // out.width)
        half = ir.VectorType(kind.element, count)
        signature = ir.FunctionType(result, [half, half])
        function = b.module.declare_intrinsic(f"llvm.x86.avx2.{name}", fnty=signature)
        parts = []
        for start in (0, count):
            which = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
            parts.append(b.call(function, [b.shuffle_vector(one, one, which) for one in given]))
        whole = ir.Constant(ir.VectorType(I32, 2 * result.count), list(range(2 * result.count)))
        return b.shuffle_vector(*parts, whole)


def instructions(function: Any) -> Any:
    """An intrinsic: `function` says what code stands where it is called (see `emitted`)."""
    return intrinsic(function)


def emitted(count: int, write: Callable[..., None]) -> tuple[Any, Any]:
    """What an intrinsic of `count` whole numbers (counts, addresses) returns: write(emitter, *numbers)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write(Emitter(builder), *args)
        return context.get_dummy_value()

    return types.void(*[types.intp] * count), generate


def each(value: int) -> Any:
    """16 equal integers."""
    return ir.Constant(INTS, [value] * LANES)
