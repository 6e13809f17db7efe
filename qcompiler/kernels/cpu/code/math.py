"""A formula of ops/ on TIR vectors -> vector code, branch-free but for `unless`.

`TirMath` is the arithmetic of ops/math.py over `Vec`, a TIR expression of some lanes (one lane: a
scalar). Every result gets a name in the function, so a value that is used twice is computed once
and expressions do not grow; only comparisons, of named values, are written out where they are used.

+ - * / sqrt, comparisons, rounding and casts are exact; for the rest see polynomials.py. TVM lets
LLVM contract a product and a sum into one rounding, so every product of a formula is fenced:
`llvm.arithmetic.fence` costs no instruction. float64 transcendentals call the C library, a lane at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.hardware.isa import Isa
from qcompiler.kernels.cpu.code import casts, hidden, integers, narrow, polynomials, tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec

Better = Callable[[Value, Value], Value]
"""A comparison that chooses."""


@dataclass(frozen=True)
class Table:
    """An operand that is indexed, not read elementwise."""

    pointer: Pointer
    dtype: str


class TirMath:
    """`Math` over `Vec`; statements go to `builder`, `isa` has the machine's own instructions.

    `flush`: float32 denormals may become zero when cast to bfloat16 (whose products treat denormals
    as zero anyway).
    """

    def __init__(self, builder: Builder, isa: Isa, *, flush: bool = False) -> None:
        self.builder, self.isa, self.flush = builder, isa, flush

    # -- making values

    def vec(self, expr: Value, dtype: str = "") -> Vec:
        """An expression -> a value computed here, once; `dtype` where its bits are ambiguous."""
        held = self.builder.hold(expr)
        return Vec(self, held, dtype or tir.dtype_of(expr), tir.lanes_of(expr))

    def condition(self, expr: Value) -> Vec:
        """A comparison of named values -> a condition, written out where it is used."""
        return Vec(self, expr, "bool", tir.lanes_of(expr))

    def splat(self, value: float, dtype: str, lanes: int = 1) -> Vec:
        """A number in every lane."""
        if dtype in casts.HALF_FLOATS or dtype in (*narrow.FLOATS, narrow.POWERS):
            return self.cast(self.splat(value, "float32", lanes), dtype)
        if dtype in narrow.INTEGERS:
            return self.cast(self.splat(value, "int8", lanes), dtype)
        kind = np.dtype(dtype).type(value).item() if np.isfinite(value) else float(value)
        return Vec(self, tir.const(kind, dtype, lanes), dtype, lanes, kind)

    def like(self, value: Any, other: Vec) -> Vec:
        """A number -> a vector like `other`; a Vec stays as it is."""
        if isinstance(value, Vec):
            return value
        number = value.item() if isinstance(value, np.generic | np.ndarray) else value
        return self.splat(number, other.dtype, other.lanes)

    def widen(self, x: Vec, lanes: int) -> Vec:
        """One lane -> the same value in every lane."""
        return Vec(self, tir.broadcast(x.expr, lanes), x.dtype, lanes, x.value)

    def bits(self, x: Vec, dtype: str) -> Vec:
        """The same bits as another dtype of the same width."""
        return self.vec(tir.reinterpret(x.expr, tir.stored(dtype)), dtype)

    def llvm(self, name: str, *operands: Vec) -> Vec:
        """An LLVM intrinsic whose operands and result have one type."""
        x = operands[0]
        return self.vec(tir.llvm(x.dtype, x.lanes, name, *(o.expr for o in operands)), x.dtype)

    def join(self, a: Any, b: Any) -> tuple[Vec, Vec]:
        """Two operands -> both of the same dtype and lanes."""
        a, b = (self.like(a, b), b) if isinstance(b, Vec) else (a, self.like(b, a))
        if a.dtype != b.dtype:
            raise TypeError(f"{a.dtype} against {b.dtype}: the formula has to cast one of them")
        lanes = max(a.lanes, b.lanes)
        return self.widen(a, lanes), self.widen(b, lanes)

    def _wide(self, f: Callable[..., Vec], *operands: Vec) -> Vec:
        """A 16-bit float's arithmetic: in float32, rounded back."""
        dtype = operands[0].dtype
        return self.cast(f(*(self.cast(x, "float32") for x in operands)), dtype)

    # -- arithmetic

    def binary(self, sign: str, a: Any, b: Any) -> Vec:
        """a + b, a - b or a * b, rounded once; integers wrap around; booleans: or, xor, and."""
        a, b = self.join(a, b)
        if a.dtype in casts.HALF_FLOATS:
            return self._wide(lambda x, y: self.binary(sign, x, y), a, b)
        if a.dtype == "bool":
            return self.bitwise({"+": "or", "-": "xor", "*": "and"}[sign], a, b)
        if not a.is_float:
            return self.vec(tir.wrapping(sign, a.expr, b.expr))
        if sign == "*":
            made = tirx.Mul(hidden.zero(self, a).expr, hidden.zero(self, b).expr)
            return self.vec(tir.llvm(a.dtype, a.lanes, "llvm.arithmetic.fence", made))
        b = hidden.twin(self, a, b) if sign == "-" else b
        return self.vec({"+": tirx.Add, "-": tirx.Sub}[sign](a.expr, b.expr))

    def fma(self, a: Vec, b: Any, c: Any) -> Vec:
        """a * b + c in one rounding; never for operators of a formula."""
        a, b = self.join(a, b)
        a, c = self.join(a, c)
        return self.llvm("llvm.fma", a, self.widen(b, a.lanes), c)

    def divide(self, a: Any, b: Any) -> Vec:
        """Floats: one rounding. Integers: towards zero."""
        a, b = self.join(a, b)
        if not a.is_float:
            return self.trunc_div(a, b)
        if a.dtype in casts.HALF_FLOATS:
            return self._wide(self.divide, a, b)
        return self.vec(tirx.Div(hidden.zero(self, a).expr, b.expr))

    def trunc_div(self, a: Any, b: Any) -> Vec:
        """Integer division towards zero; division by zero gives zero and does not trap."""
        a, b = self.join(a, b)
        if a.is_float:
            return self.trunc(self.divide(a, b))
        if tir.bits(a.dtype) == 64:
            return self.where(b == 0, 0, integers.divide_long(self, a, b))
        # The truncated float quotient is right: an exact quotient that is no integer is at least
        # 1/b away from the next one, much more than the rounding error.
        long = tir.bits(a.dtype) == 32
        wide, whole = ("float64", "int64") if long else ("float32", "int32")
        ratio = self.cast(a, wide) / self.cast(self.where(b == 0, 1, b), wide)
        return self.where(b == 0, 0, self.cast(self.cast(ratio, whole), a.dtype))

    def floor_div(self, a: Any, b: Any) -> Vec:
        """Division towards minus infinity."""
        a, b = self.join(a, b)
        if a.is_float:
            return self.floor(a / b)
        quotient = self.trunc_div(a, b)
        rest = a - quotient * b
        return self.where(self._opposite(rest, b), quotient - 1, quotient)

    def remainder(self, a: Any, b: Any) -> Vec:
        """Remainder with the sign of the divisor, as Python's %."""
        rest = self.fmod(a, b)
        rest, b = self.join(rest, b)
        return self.where(self._opposite(rest, b), rest + b, rest)

    def _opposite(self, rest: Vec, b: Vec) -> Vec:
        """Where a remainder is not zero and its sign differs from the divisor's."""
        return (rest != 0) & ((rest < 0) ^ (b < 0)) & (b != 0)

    def fmod(self, a: Any, b: Any) -> Vec:
        """Remainder with the sign of the dividend; of floats by C's fmod, a lane at a time."""
        a, b = self.join(a, b)
        if not a.is_float:
            return self.where(b == 0, 0, a - self.trunc_div(a, b) * b)
        if a.dtype != "float64":
            return self.cast(self.fmod(self.cast(a, "float64"), self.cast(b, "float64")), a.dtype)
        return self.vec(_c_library("fmod")(a.expr, b.expr))

    def negative(self, x: Vec) -> Vec:
        """The sign inverted, also of zeros and NaN."""
        if x.value is not None:
            return self.splat(-x.value, x.dtype, x.lanes)
        if not x.is_float:
            return self.like(0, x) - x
        size = tir.bits(x.dtype)
        mask = self.splat(-(1 << (size - 1)), f"int{size}", x.lanes)
        return self.bits(self.bits(x, mask.dtype) ^ mask, x.dtype)

    def bitwise(self, name: str, a: Any, b: Any) -> Vec:
        """And, or, xor; of booleans too."""
        a, b = self.join(a, b)
        # Also of booleans, instead of `tirx.Or`: TVM folds `a <= b or b < a` to true despite NaN.
        emit = getattr(tirx, f"bitwise_{name}")
        return self.vec(emit(a.expr, b.expr), a.dtype)

    def bitwise_not(self, x: Vec) -> Vec:
        """Every bit inverted."""
        return self.logical_not(x) if x.dtype == "bool" else self.vec(tirx.bitwise_not(x.expr))

    def shift_left(self, x: Vec, count: Any) -> Vec:
        """Shift in zeros; a count of the width or more, or a negative one, gives zero."""
        x, count = self.join(x, count)
        if self._short(x, count):
            return self.vec(tirx.shift_left(x.expr, count.expr))
        moved = tirx.shift_left(x.expr, (count & (tir.bits(x.dtype) - 1)).expr)
        return self.where(self._fits(x, count), self.vec(moved), 0)

    def shift_right(self, x: Vec, count: Any) -> Vec:
        """Shift in zeros, or copies of the sign; a count of the width or more, or a negative one,
        leaves only these.
        """
        x, count = self.join(x, count)
        if self._short(x, count):
            return self.vec(tirx.shift_right(x.expr, count.expr))
        most = tir.bits(x.dtype) - 1
        if x.is_signed:
            bounded = self.where(self._fits(x, count), count, most)
            return self.vec(tirx.shift_right(x.expr, bounded.expr))
        moved = tirx.shift_right(x.expr, (count & most).expr)
        return self.where(self._fits(x, count), self.vec(moved), 0)

    def _short(self, x: Vec, count: Vec) -> bool:
        """Is the count of a shift known to be valid?"""
        return count.value is not None and 0 <= count.value < tir.bits(x.dtype)

    def _fits(self, x: Vec, count: Vec) -> Vec:
        """Where the count of a shift is valid; LLVM leaves others undefined."""
        fits = count < tir.bits(x.dtype)
        return fits & (count >= 0) if count.is_signed else fits

    # -- comparing and choosing

    def compare(self, node: Callable[[Value, Value], Value], a: Any, b: Any) -> Vec:
        """A condition; always false for NaN."""
        a, b = self.join(a, b)
        if a.dtype == "bool":
            a, b = self.cast(a, "uint8"), self.cast(b, "uint8")
        elif a.dtype in casts.HALF_FLOATS:
            a, b = self.cast(a, "float32"), self.cast(b, "float32")
        return self._condition_of(node, a, hidden.twin(self, a, b))

    def _condition_of(self, node: Callable[[Value, Value], Value], a: Vec, b: Vec) -> Vec:
        """A comparison of operands of one type."""
        as_compared = self.isa.intrinsics.get("compared")
        if as_compared is None or not a.is_float or a.lanes == 1:
            return self.condition(node(a.expr, b.expr))
        return self.condition(node(as_compared(a.expr), as_compared(b.expr)))

    def differ(self, a: Any, b: Any) -> Vec:
        """Where they differ; NaN differs from everything."""
        return self.condition(self._inverted(self.compare(tirx.EQ, a, b)))

    def logical_not(self, x: Vec) -> Vec:
        """A condition inverted."""
        return self.vec(self._inverted(x))

    def _inverted(self, x: Vec) -> Value:
        """Inverted as a comparison of bytes: TVM folds `not (a < b)` to `a >= b`, which is wrong
        for NaN, and its `!=` is false where a float is NaN.
        """
        return tirx.EQ(tir.cast(x.expr, "uint8"), tir.const(0, "uint8", x.lanes))

    def where(self, condition: Vec, a: Any, b: Any) -> Vec:
        """`a` where the condition holds, else `b`; both are computed."""
        a, b = self.join(a, b)
        lanes = max(condition.lanes, a.lanes)
        if condition.dtype != "bool":
            condition = condition != 0
        condition, a, b = (self.widen(x, lanes) for x in (condition, a, b))
        if a.dtype == "bool":
            return self.bitwise("or", condition & a, self.logical_not(condition) & b)
        return self.vec(tirx.Select(condition.expr, a.expr, b.expr), a.dtype)

    def max(self, a: Any, b: Any) -> Vec:
        """The larger one; NaN if either is NaN. One instruction if one is known not to be NaN."""
        return self._extreme(tirx.GT, a, b)

    def min(self, a: Any, b: Any) -> Vec:
        """The smaller one; NaN as for `max`."""
        return self._extreme(tirx.LT, a, b)

    def larger(self, a: Any, b: Any) -> Vec:
        """`max` in one instruction: NaN in `b` is kept, NaN in `a` is not."""
        return self.choose(tirx.GT, a, b)

    def _extreme(self, better: Better, a: Any, b: Any) -> Vec:
        a, b = (self.like(a, b), b) if isinstance(b, Vec) else (a, self.like(b, a))
        if b.value is not None or (a.value is None and b.lanes < a.lanes):
            a, b = b, a
        if found := self._by_instruction(better, *self.join(a, b)):
            return found
        chosen = self.choose(better, a, b)
        if not a.is_float or (a.value is not None and not isnan(a.value)):
            return chosen
        return self.where(self.is_nan(a), a, chosen)

    def choose(self, better: Better, a: Any, b: Any) -> Vec:
        """The first where it is better, else the second."""
        a, b = self.join(a, b)
        if a.dtype in casts.HALF_FLOATS:
            return self._wide(lambda x, y: self.choose(better, x, y), a, b)
        known = a.value is not None and not isnan(a.value)
        if known and (found := self._by_instruction(better, a, b)):
            return found
        return self.where(self._condition_of(better, a, b), a, b)

    def _by_instruction(self, better: Better, a: Vec, b: Vec) -> Vec | None:
        """The larger or the smaller one, NaN if either is, where one instruction does that."""
        find = self.isa.intrinsics.get("maximum" if better is tirx.GT else "minimum")
        if find is None or a.dtype not in ("float32", "float64"):
            return None
        return self.vec(find(a.expr, b.expr), a.dtype)

    def clip(self, x: Vec, low: Any, high: Any) -> Vec:
        """At least `low`, then at most `high`; bounds that are None or NaN are ignored."""
        x = x if low is None else self._bounded(tirx.GT, self.like(low, x), x, -inf)
        return x if high is None else self._bounded(tirx.LT, self.like(high, x), x, inf)

    def _bounded(self, better: Better, bound: Vec, x: Vec, none: float) -> Vec:
        """`choose`, or an instruction, with `none` for a bound that is NaN."""
        if bound.value is None and self._by_instruction(better, bound, bound):
            bound = self.where(self.is_nan(bound), self.like(none, bound), bound)
            return self._extreme(better, bound, x)
        return self.choose(better, bound, x)

    def is_nan(self, x: Vec) -> Vec:
        """A condition: x is not a number."""
        if not x.is_float:
            return self.like(0, x) != 0
        size, infinity = self._size_and_infinity(x)
        return size > infinity

    def is_number(self, x: Vec) -> Vec:
        """A condition: x is not NaN. Cheaper than inverting `is_nan`."""
        if not x.is_float:
            return self.like(0, x) == 0
        size, infinity = self._size_and_infinity(x)
        return size <= infinity

    def _size_and_infinity(self, x: Vec) -> tuple[Vec, int]:
        """A float's bits without its sign, and those of infinity."""
        size = tir.bits(x.dtype)
        bits = self.bits(x, f"int{size}") & ((1 << (size - 1)) - 1)
        infinity = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}
        return bits, infinity.get(x.dtype, 0x7FF0000000000000)

    # -- rounding

    def unless(
        self, rare: Vec, usual: Sequence[Vec], otherwise: Callable[[], Sequence[Vec]]
    ) -> list[Vec]:
        """`usual`, but `otherwise()` in the lanes where the condition `rare` holds. A branch skips
        the slow case where no lane needs it.
        """
        held = [self.builder.registers(v.dtype, v.lanes, 1) for v in usual]
        for kept, value in zip(held, usual, strict=True):
            kept[0] = value.expr
        several = rare.lanes > 1
        reduced = tir.llvm("bool", 1, "llvm.vector.reduce.or", rare.expr) if several else rare.expr
        with self.builder.when(reduced):
            for kept, value, other in zip(held, usual, otherwise(), strict=True):
                kept[0] = self.where(rare, other, value).expr
        return [self.vec(kept[0], v.dtype) for kept, v in zip(held, usual, strict=True)]

    def abs(self, x: Vec) -> Vec:
        """Absolute value."""
        if x.dtype in casts.HALF_FLOATS:
            return self._wide(self.abs, x)
        if x.is_float:
            return self.llvm("llvm.fabs", x)
        return self.where(x < 0, -x, x) if x.is_signed else x

    def sign(self, x: Vec) -> Vec:
        """-1, 0 or 1; NaN stays."""
        if not x.is_signed:
            return self.where(x > 0, self.like(1, x), 0)
        one = self.where(x > 0, self.like(1, x), self.where(x < 0, self.like(-1, x), x))
        return self.where(x == 0, 0, one)

    def floor(self, x: Vec) -> Vec:
        """The largest integer not above x; the dtype stays."""
        return self._unary("llvm.floor", x)

    def ceil(self, x: Vec) -> Vec:
        """The smallest integer not below x; the dtype stays."""
        return self._unary("llvm.ceil", x)

    def trunc(self, x: Vec) -> Vec:
        """Round towards zero; the dtype stays."""
        return self._unary("llvm.trunc", x)

    def round(self, x: Vec) -> Vec:
        """Round to the nearest integer, halves to even; the dtype stays."""
        return self._unary("llvm.nearbyint", x)

    def sqrt(self, x: Vec) -> Vec:
        """Square root."""
        return self._unary("llvm.sqrt", x)

    def _unary(self, name: str, x: Vec) -> Vec:
        if not x.is_float:
            return x
        if x.dtype in casts.HALF_FLOATS:
            return self._wide(lambda v: self._unary(name, v), x)
        own = casts.own(self, name, x)
        return self.llvm(name, x) if own is None else own

    # -- functions

    def exp(self, x: Vec) -> Vec:
        """e^x."""
        return self._function(polynomials.exp, tirx.exp, x)

    def log(self, x: Vec) -> Vec:
        """Natural logarithm."""
        return self._function(polynomials.log, tirx.log, x)

    def libm(self, name: str, x: Vec) -> Vec:
        """C's function of this name, in float64."""
        return self.cast(self.vec(_c_library(name)(self.cast(x, "float64").expr)), x.dtype)

    def lookup(self, table: Table, index: Vec) -> Vec:
        """table[index], a table of 256 entries; an int8 index counts from -128."""
        if tir.bits(table.dtype) == 8 and index.lanes > 1 and "table" in self.isa.intrinsics:
            return self._lookup_bytes(table, index)
        at = (self.cast(index, "int32") + (128 if index.dtype == "int8" else 0)).expr
        raw = table.pointer.load(at) if index.lanes == 1 else table.pointer.gather(at)
        return self.vec(raw, table.dtype)

    def _lookup_bytes(self, table: Table, index: Vec) -> Vec:
        """`lookup` by the instruction set's own instructions, on whole vectors of bytes."""
        full, lanes = self.isa.lanes(1), index.lanes
        index = index ^ -128 if index.dtype == "int8" else index
        raw = tir.reinterpret(index.expr, "uint8")
        if lanes < full:
            raw = tir.shuffle2([self.builder.let(raw)] * (full // lanes), range(full))
        parts = [tir.reinterpret(table.pointer.load(i, full), "uint8") for i in range(0, 256, full)]
        found = self.isa.intrinsics["table"](self.builder.let(raw), parts)
        found = tir.shuffle(self.builder.let(found), range(lanes)) if lanes < full else found
        return self.vec(tir.reinterpret(found, tir.stored(table.dtype)), table.dtype)

    def tanh(self, x: Vec) -> Vec:
        """Hyperbolic tangent."""
        return self._function(polynomials.tanh, tirx.tanh, x)

    def erf(self, x: Vec) -> Vec:
        """Error function."""
        return self._function(polynomials.erf, _c_library("erf"), x)

    def sin(self, x: Vec) -> Vec:
        """Sine of radians."""
        return self._function(polynomials.sin, tirx.sin, x)

    def cos(self, x: Vec) -> Vec:
        """Cosine of radians."""
        return self._function(polynomials.cos, tirx.cos, x)

    def pow(self, x: Any, y: Any) -> Vec:
        """x^y in x's dtype; of integers modulo 2^bits, with 1 / x^-y for negative powers."""
        x, y = (self.like(x, y), y) if isinstance(y, Vec) else (x, self.like(y, x))
        if not x.is_float and not y.is_float:
            return integers.power(self, x, y)
        if not x.is_float:
            wide = self.pow(self.cast(x, "float64"), self.cast(y, "float64"))
            return self.cast(wide, x.dtype)
        x, y = self.join(x, self.cast(y, x.dtype))
        return self._function(polynomials.pow, tirx.pow, x, y)

    def _function(
        self, short: Callable[..., Vec], library: Callable[..., Value], *operands: Vec
    ) -> Vec:
        dtype = operands[0].dtype
        if dtype in casts.HALF_FLOATS:
            return self._wide(lambda *x: short(self, *x), *operands)
        if dtype == "float64":
            return self.vec(library(*(x.expr for x in operands)))
        return short(self, *operands)

    # -- converting (casts.py)

    def cast(self, x: Vec, dtype: str) -> Vec:
        """Convert as C does; floats outside an integer's range become its lowest value."""
        return casts.cast(self, x, dtype)

    def converted(self, x: Vec, dtype: str) -> Vec:
        """LLVM's conversion; the value must be in the dtype's range."""
        own = casts.own(self, "fptosi", x) if dtype == "int32" else None
        return self.vec(tir.cast(x.expr, dtype)) if own is None else own

    def saturate(self, x: Vec, dtype: str) -> Vec:
        """Clip to an integer dtype's range, then cast; NaN becomes the lowest value."""
        return casts.saturate(self, x, dtype)

    def quantize(
        self, x: Vec, factor: Vec, zero: Vec, *, dtype: str, divide: int = 0, **known: bool
    ) -> Vec:
        """The operator `quantize`, bit for bit; for what may be `known`, see casts.py."""
        return casts.quantize(self, x, factor, zero, dtype=dtype, divide=divide, **known)


def _c_library(name: str) -> Callable[..., Value]:
    """A function of libm, called a lane at a time."""

    def call(*operands: Value) -> Value:
        lanes = tir.lanes_of(operands[0])
        each = [
            tirx.call_pure_extern(
                "float64", name, *(x if lanes == 1 else tir.shuffle(x, [i]) for x in operands)
            )
            for i in range(lanes)
        ]
        return (
            each[0]
            if lanes == 1
            else tirx.Shuffle(each, [tirx.const(i, "int32") for i in range(lanes)])
        )

    return call
