"""Dtypes and an instruction set -> which product is used, and how operands are laid out for it.

The right operand is packed into panels of some vectors' width, each laid out in the order it is
read: [panel][correction?][tap][k / step][vector][lane][step], depth and width filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from qcompiler.ir import Array
from qcompiler.isa import Isa, Mac
from qcompiler.kernels import tir
from qcompiler.kernels.tir import Value

_SHORT = {
    "uint8": "u8",
    "int8": "i8",
    "int16": "i16",
    "bfloat16": "bf16",
    "uint16": "bf16",  # its bits
    "float32": "f32",
    "int32": "i32",
}
_FLIP = 128


@dataclass(frozen=True)
class Product:
    """A multiply-accumulate and the dtypes its operands are brought to, as kernels store them.

    `flipped`: int8 left operands are multiplied as uint8, 128 larger; every column's sum starts at
    -128 times the sum of its weights, its correction.
    """

    mac: Mac
    left: str
    right: str
    sums: str
    flipped: bool = False

    @property
    def name(self) -> str:
        """ "u8i8"."""
        return _SHORT[self.left] + _SHORT[self.right]

    @property
    def vector_bytes(self) -> int:
        """Bytes of the right operand that one multiply-accumulate takes."""
        return self.mac.lanes * self.mac.k * tir.bits(self.right) // 8

    def steps(self, depth: int) -> int:
        """Multiply-accumulates for one sum over so many elements."""
        return -(-depth // self.mac.k)

    def convert_left(self, value: Value, dtype: str) -> Value:
        """Elements of the left operand, stored as `dtype` -> as the product takes them."""
        if self.flipped:
            return tir.reinterpret(value, "uint8") ^ tir.const(_FLIP, "uint8", tir.lanes_of(value))
        return _widen(value, dtype, self.left)

    def convert_right(self, value: Value, dtype: str) -> Value:
        """Elements of the right operand -> as the product takes them."""
        return _widen(value, dtype, self.right)

    def pad_value(self, value: int) -> int:
        """What padding that reads as `value` is in the product's left operand."""
        return value + _FLIP if self.flipped else value


def _widen(value: Value, dtype: str, wanted: str) -> Value:
    if tir.stored(dtype) == wanted:
        return value
    if dtype == "bfloat16":  # the upper half of a float32
        wide = tir.cast(value, "uint32")
        return tir.reinterpret(
            tirx.op.shift_left(wide, tir.const(16, "uint32", tir.lanes_of(wide))), wanted
        )
    return tir.cast(value, wanted)


def product_of(isa: Isa, left: str, right: str, sums: str) -> Product | None:
    """The fastest exact vector product for operands of these dtypes, if there is one."""

    def mac(a: str, b: str) -> Mac | None:
        return _vector_mac(isa, (_SHORT[a], _SHORT[b], _SHORT[sums]))

    if sums == "int32":
        if found := mac(left, right):
            return Product(found, left, right, sums)
        if (left, right) == ("int8", "int8") and (found := mac("uint8", "int8")):
            return Product(found, "uint8", "int8", sums, flipped=True)
        wide = mac("int16", "int16")
        return Product(wide, "int16", "int16", sums) if wide else None
    if left == "bfloat16" and (found := mac(left, right)):
        return Product(found, tir.stored(left), tir.stored(right), sums)
    single = mac("float32", "float32")
    return Product(single, "float32", "float32", sums) if single else None


def _vector_mac(isa: Isa | None, key: tuple[str, str, str]) -> Mac | None:
    """The nearest one in the lineage whose left operand is one row."""
    while isa is not None:
        mac = isa.mac.get(key)
        if mac is not None and mac.rows == 1 and mac.exact:
            return mac
        isa = isa.extends
    return None


@dataclass(frozen=True)
class Panels:
    """How the columns of the right operand are cut: `count` panels of `vectors` vectors each, then
    `rest` of one vector less, so that all are nearly alike.
    """

    width: int
    lanes: int
    vectors: int
    count: int
    rest: int

    @staticmethod
    def of(width: int, lanes: int, vectors: int) -> Panels:
        """At most `vectors` vectors to a panel, and as few panels as that allows."""
        total = -(-width // lanes)
        panels = -(-total // vectors)
        most = -(-total // panels)
        rest = panels * most - total
        return Panels(width, lanes, most, panels - rest, rest)

    @property
    def panels(self) -> int:
        """All of them."""
        return self.count + self.rest

    def runs(self) -> Iterator[Run]:
        """Runs of equal panels; the last panel is one of its own if its last vector is partial."""
        partial = self.width % self.lanes
        cuts = [(0, self.count, self.vectors), (self.count, self.rest, self.vectors - 1)]
        cuts = [c for c in cuts if c[1]]
        column = 0
        for i, (first, count, vectors) in enumerate(cuts):
            whole = count - 1 if partial and i == len(cuts) - 1 else count
            if whole:
                yield Run(first, whole, vectors, column, self.lanes)
            column += whole * vectors * self.lanes
            if whole < count:
                yield Run(first + whole, 1, vectors, column, partial)


@dataclass(frozen=True)
class Run:
    """`count` panels of `vectors` vectors from panel `first`, column `column` on; the last vector
    of each has `tail` columns.
    """

    first: int
    count: int
    vectors: int
    column: int
    tail: int


def panel_bytes(product: Product, taps: int, depth: int, vectors: int) -> int:
    """Bytes of one packed panel."""
    correction = vectors * product.mac.lanes * 4 if product.flipped else 0
    return correction + taps * product.steps(depth) * vectors * product.vector_bytes


def pack(matrices: Array, product: Product, panels: Panels) -> Array:
    """[images, groups, taps, depth, width] -> the panels of all of them, one after another."""
    images, groups, taps, depth, width = matrices.shape
    k, lanes = product.mac.k, product.mac.lanes
    steps = product.steps(depth)
    total = panels.count * panels.vectors + panels.rest * (panels.vectors - 1)
    same = tir.stored(matrices.dtype.name) == product.right
    values = matrices.view(product.right) if same else matrices.astype(product.right)
    full = np.zeros((images * groups, taps, steps * k, total * lanes), product.right)
    full[:, :, :depth, :width] = values.reshape(images * groups, taps, depth, width)
    split = full.reshape(-1, taps, steps, k, total, lanes).transpose(0, 4, 1, 2, 5, 3)
    sums = -_FLIP * full.astype(np.int64).sum((1, 2)) if product.flipped else None
    sizes = [panels.vectors] * panels.count + [panels.vectors - 1] * panels.rest
    parts = []
    for matrix in range(images * groups):
        first = 0
        for vectors in sizes:
            if sums is not None:
                part = sums[matrix, first * lanes : (first + vectors) * lanes]
                parts.append(part.astype(np.int32).view(np.uint8))
            panel = split[matrix, first : first + vectors].transpose(1, 2, 0, 3, 4)
            parts.append(np.ascontiguousarray(panel).reshape(-1).view(np.uint8))
            first += vectors
    return np.concatenate(parts)
