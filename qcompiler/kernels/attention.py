"""Attention regions -> TIR: a head at a time, its scores never further away than the first cache.

for each task (a share of the heads, or of a head's query blocks where heads are few)
  copy the head's keys, transposed, into panels of vectors     (once for all its queries)
  for each block of queries                                    (as many as registers hold sums for)
    scores = queries * keys, in registers, then in scratch
    weights = exp(scores * scale + mask - largest), and their sum
    output = weights * values / sum                            (values are read where they lie)

The softmax divides at the end, once an output instead of once a weight. Heads may be a dimension
of their own ([batch, heads, sequence, size]) or lie side by side ([batch, sequence, heads * size]);
both are read in place. See Vaswani et al., "Attention Is All You Need", section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.ir import Node
from qcompiler.isa import Device
from qcompiler.kernels import tir
from qcompiler.kernels.contraction_operands import Product, product_of
from qcompiler.kernels.draft import Draft, refuse
from qcompiler.kernels.epilogue import load
from qcompiler.kernels.loops import across, tasks, transposed
from qcompiler.kernels.microkernel import Left, Right, sums
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.kernels.tir import Registers, Value
from qcompiler.kernels.vec import Vec

_FLOPS_PER_NS = 40.0
_ALIGN = 64
_LEAST = -3.0e38
"""Stands for minus infinity among scores: an empty row then has weights, not NaN."""

_UNSUPPORTED = {"left_window_size": -1, "right_window_size": -1, "outputs": 1}


@kernel("Attention")
def attention(region: Region, device: Device) -> Kernel | Skip:
    """float32 queries, keys and values; any heads, an added or boolean mask, causal or not."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    if len(root.operands) > 4 or any(root.inputs[4:]):
        return Skip("past keys and values")
    if {i.dtype for i in root.operands[:3]} != {"float32"}:
        return Skip("queries, keys and values that are not float32")
    for name, usual in _UNSUPPORTED.items():
        if root.attrs[name] != usual:
            return Skip(f"{name} {root.attrs[name]}")
    if 0 in root.type.dims:
        return Skip("nothing to compute")
    product = product_of(device.isa, "float32", "float32", "float32")
    if product is None:
        return Skip("no product of float32")
    return _Attention(region, device, product).kernel()


@dataclass(frozen=True)
class Heads:
    """Where a [batch, heads, sequence, size] tensor's elements are; its last step is 1."""

    batch: int
    heads: int
    length: int
    size: int
    steps: tuple[int, int, int]
    """Elements from one batch, head and position to the next."""

    @staticmethod
    def of(node: Node, heads: int | None) -> Heads:
        """A 4-D tensor, or a 3-D one of so many heads."""
        dims = node.type.dims
        if len(dims) == 4:
            b, h, s, d = dims
            return Heads(b, h, s, d, (h * s * d, s * d, d))
        b, s, width = dims
        assert heads, "a 3-D tensor does not say how many heads it has"
        return Heads(b, heads, s, width // heads, (s * width, width // heads, width))

    def at(self, batch: Value, head: Value, position: Value) -> Value:
        """Offset of a row."""
        return batch * self.steps[0] + head * self.steps[1] + position * self.steps[2]


class _Attention:
    """One kernel while it is emitted."""

    def __init__(self, region: Region, device: Device, product: Product) -> None:
        root = region.root
        assert root is not None
        self.q, self.k, self.v = (
            Heads.of(root.operands[i], None if root.attrs[key] is None else root.int(key))
            for i, key in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads"))
        )
        kind = f"attention{self.q.heads}x{self.q.length}x{self.k.length}x{self.q.size}"
        self.d = Draft(kind, region, device)
        self.b, self.m, self.product = self.d.b, self.d.m, product
        self.mask = root.inputs[3] if len(root.inputs) > 3 else None
        self.lanes = product.mac.lanes
        self.keys = -(-self.k.length // self.lanes) * self.lanes
        free = device.isa.registers - 2
        self.vectors = min(-(-self.v.size // self.lanes), 4 if free > 20 else 2)
        self.block = min(self.q.length, max(1, min(12, (free - self.vectors) // self.vectors)))
        heads = self.q.batch * self.q.heads
        blocks = -(-self.q.length // self.block)
        work = 2 * heads * self.q.length * self.k.length * (self.q.size + self.v.size)
        self.work = work // 2
        self.parts = 1 if heads >= device.threads else min(device.threads, blocks)
        self.tasks = tasks(device, work / _FLOPS_PER_NS, heads * self.parts)
        keys_bytes = self.keys * self.q.size * 4
        scores_bytes = self.block * self.keys * 4
        self.scores_at = -(-keys_bytes // _ALIGN) * _ALIGN
        self.task_bytes = self.scores_at + -(-scores_bytes // _ALIGN) * _ALIGN + _ALIGN

    def kernel(self) -> Kernel:
        """Emit all of it."""
        b, d = self.b, self.d
        scratch = d.scratch("float32")
        total = self.q.batch * self.q.heads * self.parts
        with b.parallel(self.tasks) as task:
            mine = b.let(task * (self.task_bytes // 4), "mine")
            self.panels = scratch + mine
            self.scores = scratch + b.let(mine + self.scores_at // 4, "scores")
            self.after = d.after
            begin = b.let(task * total // self.tasks, "begin")
            end = b.let((task + 1) * total // self.tasks, "end")
            with b.serial(end - begin, "head", begin) as turn:
                self._head(turn)
        return d.kernel(
            tasks=self.tasks, scratch_bytes=self.task_bytes * self.tasks, macs=self.work
        )

    # -- loops

    def _head(self, turn: Value) -> None:
        """One head's queries, or one part of them."""
        b = self.b
        head = b.let(turn // self.parts, "each")
        image = b.let(head // self.q.heads, "image")
        head = b.let(head % self.q.heads, "head")
        shared = self.q.heads // self.k.heads
        group = b.let(head // shared, "group") if shared > 1 else head
        self._transpose_keys(b.let(self.k.at(image, group, 0), "keys"))
        whole, rest = divmod(self.q.length, self.block)
        part = turn % self.parts
        first = b.let(part * whole // self.parts, "first")
        behind = b.let((part + 1) * whole // self.parts, "behind")
        with b.serial(behind - first, "block", first) as i:
            self._queries(image, head, group, b.let(i * self.block, "query"), self.block)
        if not rest:
            return
        last = tir.const(whole * self.block)
        if self.parts == 1:
            self._queries(image, head, group, last, rest)
            return
        with b.when(tirx.EQ(part, tir.const(self.parts - 1))):
            self._queries(image, head, group, last, rest)

    def _transpose_keys(self, start: Value) -> None:
        """keys[key, d] -> panels[key / lanes][d][lanes], zeros behind the last key."""
        b, lanes, size = self.b, self.lanes, self.q.size
        source = self.d.pointers[self.d.root.operands[1]]
        step = self.k.steps[2]

        def panel(index: Value, count: int) -> None:
            to = b.let(index * (size * lanes), "to")
            at = b.let(start + index * (lanes * step), "at")

            def square(first: Value, width: int) -> None:
                zero = tir.const(0.0, "float32", lanes)
                rows = [
                    b.let(source.load_first(width, at + (i * step + first), lanes), "row")
                    if i < count
                    else zero
                    for i in range(lanes)
                ]
                for i, column in enumerate(transposed(b, rows)[:width]):
                    self.panels.store(to + (first + i) * lanes, column)

            with b.serial(size // lanes, "d") as d:
                square(b.let(d * lanes, "d"), lanes)
            if size % lanes:
                square(tir.const(size // lanes * lanes), size % lanes)

        whole, rest = divmod(self.k.length, lanes)
        if whole:
            with b.serial(whole, "panel") as i:
                panel(i, lanes)
        if rest:
            panel(tir.const(whole), rest)

    def _queries(self, image: Value, head: Value, group: Value, query: Value, count: int) -> None:
        """The output rows of a block of queries."""
        b = self.b
        start = b.let(self.q.at(image, head, query), "q")
        self._all_scores(start, count)
        totals = [self._weights(image, head, query, r) for r in range(count)]
        self._outputs(image, head, group, query, totals)

    # -- scores

    def _all_scores(self, start: Value, count: int) -> None:
        """queries * keys -> scores[query, key]."""
        b, lanes, size = self.b, self.lanes, self.q.size
        offsets = tuple(r * self.q.steps[2] for r in range(count))
        left = Left(self.d.pointers[self.d.root.operands[0]], offsets, (), size, guarded=False)

        def columns(panel: Value, vectors: int) -> None:
            base = b.let(panel * (size * lanes), "panel")

            def right(step: Value, v: int) -> Value:
                return self.panels.load(base + (step + v * size) * lanes, lanes)

            registers = sums(b, self.product, left, start, Right(vectors, right))
            for r in range(count):
                for v in range(vectors):
                    at = r * self.keys + (panel + v) * lanes
                    self.scores.store(at, registers[r * vectors + v])

        wide = self.vectors
        whole, rest = divmod(self.keys // lanes, wide)
        if whole:
            with b.serial(whole, "panel") as i:
                columns(b.let(i * wide, "first"), wide)
        if rest:
            columns(tir.const(whole * wide), rest)

    def _weights(self, image: Value, head: Value, query: Value, r: int) -> Value:
        """A row of scores -> weights in their place (not yet divided), and their sum."""
        b, m, lanes = self.b, self.m, self.lanes
        largest = b.registers("float32", lanes, 1, "largest")
        total = b.registers("float32", lanes, 1, "total")
        largest.fill(_LEAST)
        total.fill(0.0)
        row = r * self.keys
        mask = self._mask_row(image, head, query, r)

        def look(at: Value, count: int) -> None:
            value = m.vec(b.let(self.scores.load(row + at, lanes), "score"))
            value = self._biased(value, mask, at, count, query, r)
            self.scores.store(row + at, b.let(value.expr, "biased"))
            largest[0] = m.max(m.vec(largest[0]), m.vec(self.scores.load(row + at, lanes))).expr

        def weigh(at: Value, count: int) -> None:
            value = m.exp(m.vec(self.scores.load(row + at, lanes)) - top)
            if count < lanes:
                value = m.where(m.vec(tir.first_lanes(lanes, count)), value, 0.0)
            weight = b.let(value.expr, "weight")
            self.scores.store(row + at, weight)
            total[0] = total[0] + weight

        self._over_keys(look)
        best = across(b, largest[0], tirx.Max)
        top = m.vec(tir.broadcast(best, lanes))
        self._over_keys(weigh)
        return across(b, total[0], tirx.Add)

    def _over_keys(self, body: object) -> None:
        whole, rest = divmod(self.k.length, self.lanes)
        assert callable(body)
        if whole:
            with self.b.serial(whole, "v") as i:
                body(self.b.let(i * self.lanes, "at"), self.lanes)
        if rest:
            body(tir.const(whole * self.lanes), rest)

    def _biased(
        self,
        value: Vec,
        mask: tuple[Value, int] | None,
        at: Value,
        count: int,
        query: Value,
        r: int,
    ) -> Vec:
        """scale, cap, mask; what must not be seen gets the least score."""
        m, lanes, root = self.m, self.lanes, self.d.root
        given = root.attrs["scale"]
        scale = 1 / sqrt(self.q.size) if given is None else root.float("scale")
        value = value * scale
        cap = root.float("softcap")
        if cap > 0:
            value = m.tanh(value / cap) * cap
        if mask is not None and self.mask is not None:
            start, step = mask
            width = lanes if step else 1
            there = min(count, width)
            pointer = self.d.pointers[self.mask]
            bias = load(m, pointer, self.mask.dtype, start + at * step, width, there)
            if self.mask.dtype == "bool":
                value = m.where(bias, value, _LEAST)
            else:
                value = m.max(value + m.cast(bias, "float32"), _LEAST)
        if root.int("is_causal"):
            places = tir.ramp(at, lanes)
            seen = places <= tir.broadcast(query + r, lanes)
            value = m.where(m.vec(seen), value, _LEAST)
        if count < lanes:
            value = m.where(m.vec(tir.first_lanes(lanes, count)), value, _LEAST)
        return value

    def _mask_row(
        self, image: Value, head: Value, query: Value, r: int
    ) -> tuple[Value, int] | None:
        """Where a query's mask begins, and its step along the keys (0: one value for all)."""
        if self.mask is None:
            return None
        dims = (1,) * (4 - self.mask.type.rank) + self.mask.type.dims
        offset: Value = tir.const(0)
        step = 1
        for size, index in zip(dims[::-1], (None, query + r, head, image), strict=True):
            if index is not None and size > 1:
                offset = offset + index * step
            step *= size
        return self.b.let(offset, "mask"), int(dims[-1] > 1)

    # -- output

    def _outputs(
        self, image: Value, head: Value, group: Value, query: Value, totals: Sequence[Value]
    ) -> None:
        """weights * values / totals -> through the epilogue -> the output."""
        b, lanes, size = self.b, self.lanes, self.v.size
        start = b.let(self.v.at(image, group, 0), "v")
        values = self.d.pointers[self.d.root.operands[2]]
        offsets = tuple(r * self.keys for r in range(len(totals)))
        left = Left(self.scores, offsets, (), self.k.length, guarded=False)
        inverse = [b.let(tir.const(1.0, "float32") / t, "inverse") for t in totals]

        def columns(first: int, vectors: int) -> None:
            def right(step: Value, v: int) -> Value:
                column = first + v * lanes
                there = min(lanes, size - column)
                at = start + step * self.v.steps[2] + column
                return values.load_first(there, at, lanes)

            registers = sums(b, self.product, left, tir.const(0), Right(vectors, right))
            for r, scale in enumerate(inverse):
                self._put(image, head, query + r, first, registers, r * vectors, vectors, scale)

        at = 0
        while at < size:
            vectors = min(self.vectors, -(-(size - at) // lanes))
            columns(at, vectors)
            at += vectors * lanes

    def _put(
        self,
        image: Value,
        head: Value,
        position: Value,
        first: int,
        registers: Registers,
        index: int,
        vectors: int,
        scale: Value,
    ) -> None:
        b, lanes = self.b, self.lanes
        together = self.d.root.type.rank == 3
        if together:  # heads side by side in one row
            row = b.let(image * self.q.length + position, "row")
            shift = head * self.v.size
        else:
            row = b.let((image * self.q.heads + head) * self.q.length + position, "row")
            shift = tir.const(0)
        width = self.d.root.type.dims[-1]
        place = self.after.row(row)
        for v in range(vectors):
            there = min(lanes, self.v.size - first - v * lanes)
            column = b.let(shift + (first + v * lanes), "column")
            expr = registers[index + v] * tir.broadcast(scale, lanes)
            value = Vec(self.m, b.let(expr, "out"), "float32", lanes)
            self.d.put(self.after, place, row * width + column, column, there, value)
