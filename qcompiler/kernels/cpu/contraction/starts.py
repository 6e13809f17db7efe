"""What the sums of a tile begin with: a bias, a correction of the right operand, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.contraction.layout import Layout
from qcompiler.kernels.cpu.contraction.microkernel import for_rows
from qcompiler.kernels.cpu.contraction.operands import Run, bias_of


class Starts:
    """What sums begin with in each panel, while code is emitted."""

    def __init__(self, d: Draft, layout: Layout) -> None:
        self.d, self.b, self.layout, self.product = d, d.b, layout, layout.product
        self.bias = bias_of(d.region)[1]

    def of(
        self, column: Value, run: Run, correction: Callable[[int], Value] | None
    ) -> Callable[[int], Value] | None:
        """What sums begin with: the bias, if one is added first of all, and the correction."""
        if self.bias is None:
            return correction
        pointer, lanes = self.d.pointers[self.bias], self.product.mac.width
        both, product = self.bias in self.layout.twice, self.product

        def start(v: int) -> Value:
            if both:
                bias = tir.nth_vector(pointer + 2 * column, product.mac.lanes, v)
            else:
                count = run.tail if v == run.vectors - 1 else lanes
                bias = pointer.load_first(count, column + v * lanes, lanes)
            if correction is None:
                return bias
            more = correction(v)
            return tir.wrapping("+", bias, for_rows(product, more) if both else more)

        return start

    def again(
        self, column: Value, run: Run, correction: Pointer | None
    ) -> Callable[[], Iterator[Callable[[int], Value]]] | None:
        """The same for one row after the other, loaded instead of copied, where vectors are loaded
        in pairs and copies take the place of multiplications (the intrinsic "again"): if there is
        one of both, of whole vectors.
        """
        again, mac = self.d.isa.intrinsics.get("again"), self.product.mac
        both, lanes = self.bias in self.layout.twice, mac.lanes
        one = (self.bias is None) != (correction is None)
        whole = run.tail == mac.width and (mac.rows == 1 or (both and correction is None))
        if again is None or not one or not whole:
            return None
        if correction is not None:
            first = correction
        else:
            assert self.bias is not None
            first = self.d.pointers[self.bias] + column * (2 if both else 1)

        def rows() -> Iterator[Callable[[int], Value]]:
            pointer = first
            while True:
                pointer = again(self.b, pointer)
                yield partial(tir.nth_vector, pointer, lanes)

        return rows
