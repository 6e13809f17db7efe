"""Queries, keys and values of attention -> their layout, and panels of vectors of them.

A product multiplies k neighbours: along the size of a head for scores, along keys for the output.
So keys are packed into [key / lanes][size / k][lanes][k] and values into [size / lanes][key / k]
[lanes][k], once for each head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tvm import tirx

from qcompiler.hardware.isa import Isa
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.interleave import interleave, load_bytes
from qcompiler.kernels.cpu.code.loops import sweep, transposed, up
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.contraction.operands import Product, product_of


def products_of(isa: Isa, dtype: str, size: int) -> tuple[Product, Product] | None:
    """A dtype -> the products for queries by keys, and for weights by values."""
    if dtype == "int8":
        found = (product_of(isa, left, "int8", "int32") for left in ("int8", "uint8"))
    elif dtype in ("float32", "float16", "bfloat16"):
        one = product_of(isa, dtype, dtype, "float32")
        if one is not None and (size % one.mac.k or one.vector_bytes < 4 * one.mac.lanes):
            # Memory past a row's end could be NaN, and panels consist of 32-bit words.
            one = product_of(isa, "float32", "float32", "float32")
        found = (p for p in (one, one))
    else:
        return None
    scores, values = found
    return None if scores is None or values is None else (scores, values)


def _flip(lanes: int) -> Value:
    """Four bytes a lane of 128, or of -128, which change the sign of bytes."""
    return tir.const(-0x7F7F7F80, "int32", lanes)


@dataclass(frozen=True)
class Heads:
    """The layout of a [batch, heads, sequence, size] tensor; its last step is 1."""

    node: Node
    batch: int
    heads: int
    length: int
    size: int
    steps: tuple[int, int, int]
    """Elements from one batch, head and position to the next."""
    start: int = 0

    @staticmethod
    def of(node: Node, heads: int | None) -> Heads:
        """The layout of a 4-D tensor, or of a 3-D one with `heads` heads."""
        dims = node.type.dims
        if len(dims) == 4:
            b, h, s, d = dims
            return Heads(node, b, h, s, d, (h * s * d, s * d, d))
        b, s, width = dims
        assert heads, "a 3-D tensor does not say how many heads it has"
        size = width // heads
        return Heads(node, b, heads, s, size, (s * width, size, width))

    @staticmethod
    def all(root: Node) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of an attention, which may be one operand."""
        counts = [
            None if root.attrs[key] is None else root.int(key)
            for key in ("q_num_heads", "kv_num_heads", "kv_num_heads")
        ]
        given = [i for i in root.inputs[:3] if i is not None]
        if len(given) == 3:
            q, k, v = (Heads.of(i, n) for i, n in zip(given, counts, strict=True))
            return q, k, v
        whole = Heads.of(given[0], sum(n or 0 for n in counts))
        parts, first = [], 0
        for n in counts:
            parts.append(replace(whole, heads=n or 0, start=first * whole.size))
            first += n or 0
        return parts[0], parts[1], parts[2]

    def at(self, batch: Value, head: Value, position: Value) -> Value:
        """Offset of a row."""
        steps = self.steps
        return batch * steps[0] + head * steps[1] + position * steps[2] + self.start


def pieces(
    b: Builder,
    length: int,
    size: int,
    name: str,
    body: Callable[[Value, int], None],
    end: Value | None,
) -> None:
    """Call body(piece, what it holds) for all pieces of a length; or for those that hold something
    before an `end`. `name`: of one.
    """
    whole, rest = divmod(length, size)
    here = None if end is None else up(b, end, size)
    if whole:
        count = whole if here is None else b.let(tirx.Min(here, tir.const(whole)), "whole")
        with b.serial(count, name) as i:
            body(i, size)
    if rest and here is not None:
        with b.when(here > whole):
            body(tir.const(whole), rest)
    elif rest:
        body(tir.const(whole), rest)


class Keys:
    """Panels of a head's keys: `vectors` of 32-bit lanes each, of which `head` are a correction."""

    def __init__(self, product: Product, keys: Heads) -> None:
        self.product, self.keys = product, keys
        self.lanes = product.mac.lanes
        self.head = int(product.flipped)
        self.vectors = product.steps(keys.size) + self.head
        self.bytes = -(-keys.length // self.lanes) * self.lanes * self.vectors * 4

    def pack(
        self, b: Builder, source: Pointer, start: Value, panels: Pointer, end: Value | None = None
    ) -> None:
        """Pack a head's keys, from an offset on, into panels, with zeros after the last key; `end`:
        only those panels that have one of so many keys.
        """
        lanes, step = self.lanes, self.keys.steps[2]

        def panel(index: Value, count: int) -> None:
            at = b.let(start + index * (lanes * step), "at")
            to = b.let(index * (self.vectors * lanes), "to")
            self._panel(b, source, at, panels + to, count)

        pieces(b, self.keys.length, lanes, "panel", panel, end)

    def _panel(self, b: Builder, source: Pointer, at: Value, panel: Pointer, count: int) -> None:
        """Pack `count` keys and zeros, and a correction if queries have the other sign."""
        lanes, product, dtype = self.lanes, self.product, self.keys.node.dtype
        k = product.mac.k
        added = b.registers("int32", lanes, 1, "added")
        added.fill(0)

        def row(i: int, first: Value, size: int) -> Value:
            if i >= count:
                return tir.const(0, "int32", lanes)
            loaded = source.load_first(size, at + (i * self.keys.steps[2] + first), lanes * k)
            value = product.convert_right(b.let(loaded, "row"), dtype)
            if size % k:
                there = tir.first_lanes(lanes * k, size)
                value = tirx.Select(there, value, tir.const(0, product.right, lanes * k))
            return b.let(tir.reinterpret(value, "int32"), "row")

        def square(first: Value, size: int) -> None:
            columns = transposed(b, [row(i, first, size) for i in range(lanes)])
            place = b.let((tirx.floordiv(first, k) + self.head) * lanes, "place")
            for i, column in enumerate(columns[: -(-size // k)]):
                panel.store(place + i * lanes, column)
                if self.head:
                    added[0] = product.mac.emit(added[0], _flip(lanes), column)

        sweep(b, self.keys.size, lanes * k, square)
        if self.head:
            panel.store(0, tir.wrapping("-", tir.const(0, "int32", lanes), added[0]))

    def at(self, panel: Value) -> Value:
        """Where a panel begins."""
        return panel * (self.vectors * self.lanes)

    def load(self, panel: Pointer, step: Value) -> Value:
        """The right operand of a panel's multiply-accumulate."""
        at = (step + self.head) * self.lanes
        return tir.reinterpret(panel.load(at, self.lanes), self.product.right)

    def correction(self, panels: Pointer, panel: Value) -> Value:
        """The initial sums of a panel."""
        return panels.load(self.at(panel), self.lanes)


class Values:
    """Panels of a head's values; `packed` is False if the product reads them without packing."""

    def __init__(self, product: Product, values: Heads, *, steps: int = 0) -> None:
        self.product, self.values = product, values
        self.lanes = product.mac.lanes
        self.packed = product.mac.k > 1 or product.right != tir.stored(values.node.dtype)
        self.steps = steps or product.steps(values.length)
        self.head = int(product.flipped)
        self.panels = -(-values.size // self.lanes)
        vectors = self.steps + self.head
        self.bytes = self.panels * self.lanes * vectors * 4 if self.packed else 0

    def pack(
        self, b: Builder, source: Pointer, start: Value, panels: Pointer, end: Value | None = None
    ) -> None:
        """Pack a head's values, from an offset on, into panels, with zeros after the last key;
        `end`: of so many keys only.
        """
        lanes, k = self.lanes, self.product.mac.k
        size, step = self.values.size, self.values.steps[2]
        added = b.registers("int32", lanes, self.panels, "added") if self.head else None
        if added is not None:
            added.fill(0)

        def group(index: Value, count: int) -> None:
            at = b.let(start + index * (k * step), "at")
            for column in range(0, size, lanes * k):
                there = min(lanes * k, size - column)
                rows = [self._row(b, source, at + (i * step + column), there) for i in range(count)]
                if end is not None:  # what is behind may be no number, and is multiplied by 0
                    zero = tir.const(0, self.product.right, lanes * k)
                    kept = [index * k + i < end for i in range(count)]
                    chosen = (tirx.Select(c, r, zero) for c, r in zip(kept, rows, strict=True))
                    rows = [b.let(r, "row") for r in chosen]
                for i, vector in enumerate(self._interleaved(b, rows)[: -(-there // lanes)]):
                    nth, word = column // lanes + i, tir.reinterpret(vector, "int32")
                    panels.store(self._at(nth, index), word)
                    if added is not None:
                        added[nth] = self.product.mac.emit(added[nth], _flip(lanes), word)

        pieces(b, self.values.length, k, "group", group, end)
        if added is not None:
            for nth in range(self.panels):
                none = tir.const(0, "int32", lanes)
                panels.store(nth * self._panel, tir.wrapping("-", none, added[nth]))

    @property
    def _panel(self) -> int:
        """32-bit words of one panel."""
        return (self.steps + self.head) * self.lanes

    def _at(self, nth: int, step: Value) -> Value:
        """The offset of a step's vector in the panels."""
        return (nth * self.steps + step) * self.lanes + (nth + 1) * self.head * self.lanes

    def correction(self, panels: Pointer, column: int) -> Value:
        """The initial sums from a column on."""
        return panels.load(column // self.lanes * self._panel, self.lanes)

    def _row(self, b: Builder, source: Pointer, at: Value, there: int) -> Value:
        """A row of as many elements as k vectors hold, `there` of them in memory."""
        dtype, width = self.values.node.dtype, self.lanes * self.product.mac.k
        if tir.bits(dtype) == 8:
            value = load_bytes(source, at, there, width)
        else:
            value = source.load_first(there, at, width)
        return b.let(self.product.convert_right(b.let(value, "row"), dtype), "row")

    def _interleaved(self, b: Builder, rows: Sequence[Value]) -> list[Value]:
        """The rows that a product sums (missing ones are zero) -> its vectors."""
        k, width = self.product.mac.k, self.lanes * self.product.mac.k
        if k == 4:
            bytes_ = [b.let(tir.reinterpret(r, "uint8"), "row") for r in rows]
            return interleave(b, [*bytes_, *[None] * (4 - len(rows))])
        if k == 1:
            return list(rows)
        one, other = (*rows, tir.const(0, self.product.right, width))[:2]
        order = [at for i in range(width) for at in (i, width + i)]
        halves = (order[:width], order[width:])
        return [b.let(tir.shuffle2([one, other], half), "pairs") for half in halves]

    def load(
        self, source: Pointer, start: Value, panels: Pointer, column: int, step: Value
    ) -> Value:
        """The right operand of a multiply-accumulate, from a column on."""
        if self.packed:
            at = (step + column // self.lanes * self.steps) * self.lanes
            at = at + (column // self.lanes + 1) * self.head * self.lanes
            return tir.reinterpret(panels.load(at, self.lanes), self.product.right)
        there = min(self.lanes, self.values.size - column)
        return source.load_first(there, start + step * self.values.steps[2] + column, self.lanes)
