"""A TIR expression -> a value with the operators of a formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx

from qcompiler.kernels.cpu.code.tir import Value

if TYPE_CHECKING:
    from qcompiler.kernels.cpu.code.math import TirMath


class Vec:
    """`lanes` values of one dtype: a TIR expression with the operators of a formula.

    bfloat16 is held as its uint16 bits. `value` is the number if all lanes are one constant. Python
    numbers take the dtype of the other operand; one lane is broadcast.
    """

    __slots__ = ("dtype", "expr", "lanes", "m", "value")

    def __init__(
        self, m: TirMath, expr: Value, dtype: str, lanes: int, value: float | None = None
    ) -> None:
        self.m, self.expr, self.dtype, self.lanes, self.value = m, expr, dtype, lanes, value

    def __add__(self, other: Any) -> Vec:
        return self.m.binary("+", self, other)

    def __sub__(self, other: Any) -> Vec:
        return self.m.binary("-", self, other)

    def __mul__(self, other: Any) -> Vec:
        return self.m.binary("*", self, other)

    def __truediv__(self, other: Any) -> Vec:
        return self.m.divide(self, other)

    def __floordiv__(self, other: Any) -> Vec:
        return self.m.floor_div(self, other)

    def __mod__(self, other: Any) -> Vec:
        return self.m.remainder(self, other)

    def __pow__(self, other: Any) -> Vec:
        return self.m.pow(self, other)

    def __radd__(self, other: Any) -> Vec:
        return self.m.binary("+", self.m.like(other, self), self)

    def __rsub__(self, other: Any) -> Vec:
        return self.m.binary("-", self.m.like(other, self), self)

    def __rmul__(self, other: Any) -> Vec:
        return self.m.binary("*", self.m.like(other, self), self)

    def __rtruediv__(self, other: Any) -> Vec:
        return self.m.divide(self.m.like(other, self), self)

    def __rpow__(self, other: Any) -> Vec:
        return self.m.pow(self.m.like(other, self), self)

    def precedes(self, other: Vec, *, largest: bool) -> Vec:
        """Where this precedes another, with the largest first or the smallest. NaN is larger than
        any number, and equal to NaN.
        """
        before = self > other if largest else self < other
        if not self.is_float:
            return before
        high, low = (self, other) if largest else (other, self)
        return before | (self.m.is_nan(high) & self.m.is_number(low))

    def __neg__(self) -> Vec:
        return self.m.negative(self)

    def __and__(self, other: Any) -> Vec:
        return self.m.bitwise("and", self, other)

    def __or__(self, other: Any) -> Vec:
        return self.m.bitwise("or", self, other)

    def __xor__(self, other: Any) -> Vec:
        return self.m.bitwise("xor", self, other)

    def __invert__(self) -> Vec:
        return self.m.bitwise_not(self)

    def __lshift__(self, other: Any) -> Vec:
        return self.m.shift_left(self, other)

    def __rshift__(self, other: Any) -> Vec:
        return self.m.shift_right(self, other)

    def __lt__(self, other: Any) -> Vec:
        return self.m.compare(tirx.LT, self, other)

    def __le__(self, other: Any) -> Vec:
        return self.m.compare(tirx.LE, self, other)

    def __gt__(self, other: Any) -> Vec:
        return self.m.compare(tirx.GT, self, other)

    def __ge__(self, other: Any) -> Vec:
        return self.m.compare(tirx.GE, self, other)

    def __eq__(self, other: object) -> Vec:  # type: ignore[override]
        return self.m.compare(tirx.EQ, self, other)

    def __ne__(self, other: object) -> Vec:  # type: ignore[override]
        return self.m.differ(self, other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def is_float(self) -> bool:
        """Whether the dtype is a float."""
        return "float" in self.dtype

    @property
    def is_signed(self) -> bool:
        """Whether the dtype has negative values."""
        return not self.dtype.startswith(("uint", "bool"))
