"""Attention regions -> TIR: a head at a time, with its scores in the first-level cache.

for each task (a share of the heads, or of a head's query blocks if heads are few)
  pack the head's keys and values into panels of vectors       (once for all its queries)
  for each block of queries                                    (as many as registers hold sums for)
    scores = queries * keys, scaled and masked, in registers; then in scratch, with their largest
    weights = 2^(scores - largest), and their sum              (scores are scaled by log2 e, too)
    output = weights * values / sum

float32, bfloat16 and int8 have the same structure, each with its own product, in whose dtype the
weights are. Values are not packed if the product takes one row at a time. Heads may be a dimension
of their own ([batch, heads, sequence, size]) or adjacent ([batch, sequence, heads * size]), as may
queries, keys and values; all are read in place. See Vaswani et al., "Attention Is All You Need",
section 3.2; dividing at the end, once an output, is from section 3.1 of Dao et al.,
"FlashAttention", 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import log2, sqrt
from typing import ClassVar

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.attention.layout import Layout
from qcompiler.kernels.cpu.attention.operands import Heads, products_of
from qcompiler.kernels.cpu.code import casts, polynomials, tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import load
from qcompiler.kernels.cpu.code.loops import across, slots, slots_until, sweep, up
from qcompiler.kernels.cpu.code.tir import Pointer, Registers, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.microkernel import Left, Right, sums
from qcompiler.kernels.cpu.contraction.operands import Panels, Run
from qcompiler.kernels.registry import Candidate, Fixed, Kernel, Region, candidates
from qcompiler.ops.attention import LEAST

_LOG2_E = 1.4426950408889634
BEHIND = -3.4e38
"""The score behind the last key: below that of masked keys, so that it gets no weight in a row
where all keys are masked."""

_UNSUPPORTED = {"left_window_size": -1, "right_window_size": -1, "outputs": 1}


@candidates("Attention", "attention")
def attention(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Any heads, an added or boolean mask, causal or not."""
    if reason := refuse_attention(region):
        return reason
    root = region.root
    assert root is not None
    dtypes = {i.dtype for i in root.inputs[:3] if i is not None}
    q, k, v = Heads.all(root)
    products = products_of(device.isa, dtypes.pop(), q.size)
    if dtypes or products is None:
        return Skip("no product of queries, keys and values of these dtypes")
    layout = Layout((q, k, v), *products, device)
    return [Candidate(Fixed(), layout.seconds, partial(emitted, region, layout, AttentionTask))]


def refuse_attention(region: Region) -> Skip | None:
    """Why no kernel can compute an attention region; None if there is no reason."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    if root.op == "Attention" and any(root.inputs[4:]):
        return Skip("past keys and values")
    for name, usual in _UNSUPPORTED.items():
        if root.attrs[name] != usual:
            return Skip(f"{name} {root.attrs[name]}")
    if 0 in root.type.dims or 0 in root.operands[0].type.dims:
        return Skip("nothing to compute")
    return None


def emitted(region: Region, layout: Layout, kind: type[AttentionTask]) -> Kernel:
    """A decided layout -> its kernel, whose tasks are of some kind."""
    q, k, _ = layout.heads
    name = f"attention{q.heads}x{q.length}x{k.length}x{q.size}"
    short = "" if q.node.dtype == "float32" else f"_{layout.for_scores.name}{layout.suffix}"
    d, tasks = Draft(name + short, region, layout.device), layout.tasks
    b, scratch = d.b, d.scratch("uint8")
    total = q.batch * q.heads * layout.parts
    until = d.counted(q.length, k.length) if kind.ends and q.batch == 1 else q.length
    with b.parallel(tasks) as task:
        one = kind(d, layout, scratch, task, None if isinstance(until, int) else until)
        begin = b.let(task * total // tasks, "begin")
        end = b.let((task + 1) * total // tasks, "end")
        with b.serial(end - begin, "head", begin) as unit:
            one.head(unit)
    return d.kernel(tasks=tasks, scratch_bytes=layout.task_bytes * tasks, macs=layout.macs)


class AttentionTask:
    """The code of a task while it is emitted; `end`: how many queries and keys count in a run."""

    ends: ClassVar[bool] = True
    """Does it look at the end?"""

    def __init__(
        self, d: Draft, layout: Layout, scratch: Pointer, task: Value, end: Value | None = None
    ) -> None:
        self.end = end
        self.d, self.b, self.m, self.root, self.layout = d, d.b, d.m, d.root, layout
        self.q, self.k, self.v = layout.heads
        self.for_scores, self.for_values = layout.for_scores, layout.for_values
        self.packed_keys, self.packed_values = layout.keys, layout.values
        self.mask, self.scale = (*self.root.inputs, *[None] * 4)[3:5]
        self.lanes, self.keys, self.row = layout.lanes, layout.padded, layout.row
        places = {"queries": 0, "weights": layout.places["scores"], **layout.places}
        mine = self.b.let(task * layout.task_bytes, "mine")
        self.scratch = scratch + mine

        def area(piece: str, dtype: str) -> Pointer:
            begin: Pointer = scratch + self.b.let(mine + places[piece], "area")
            return begin.view(dtype)

        self.key_panels = area("keys", "int32")
        self.value_panels = area("values", "int32")
        self.queries = area("queries", self.for_scores.left)
        self.scores = area("scores", "float32")
        self.weights = area("weights", self.for_values.left)
        self.tops = area("tops", "float32")
        self.inverses = area("inverses", "float32")
        self.epilogue = d.epilogue
        self.factor = self._factor()
        self.vectors = -(-self.k.length // self.lanes) if end is None else up(d.b, end, self.lanes)

    # -- loops

    def head(self, unit: Value) -> None:
        """One head's queries, or a part of them."""
        b = self.b
        parts, block = self.layout.parts, self.layout.block
        head = b.let(unit // parts, "each")
        image = b.let(head // self.q.heads, "image")
        head = b.let(head % self.q.heads, "head")
        shared = self.q.heads // self.k.heads
        group = b.let(head // shared, "group") if shared > 1 else head
        pointers = self.d.pointers
        keys = b.let(self.k.at(image, group, 0), "keys")
        self.packed_keys.pack(b, pointers[self.k.node], keys, self.key_panels, self.end)
        values = b.let(self.v.at(image, group, 0), "values")
        if self.packed_values.packed:
            pointer = pointers[self.v.node]
            self.packed_values.pack(b, pointer, values, self.value_panels, self.end)
        whole, rest = divmod(self.q.length, block)
        part, count = unit % parts, whole
        if self.end is not None:
            count = b.let(tirx.Min(up(b, self.end, block), tir.const(whole)), "count")
        first = b.let(part * count // parts, "first")
        behind = b.let((part + 1) * count // parts, "behind")
        with b.serial(behind - first, "block", first) as i:
            self._queries(image, head, values, b.let(i * block, "query"), block)
        if not rest:
            return
        last = tir.const(whole * block)
        if parts == 1 and self.end is None:
            self._queries(image, head, values, last, rest)
            return
        mine = tirx.EQ(part, tir.const(parts - 1))
        if self.end is not None:
            mine = tirx.And(mine, self.end > last)
        with b.when(mine):
            self._queries(image, head, values, last, rest)

    def _queries(self, image: Value, head: Value, values: Value, query: Value, count: int) -> None:
        """The output rows of a block of queries; the head's values begin at `values`."""
        b = self.b
        start = b.let(self.q.at(image, head, query), "q")
        pointer = self.d.pointers[self.q.node]
        if self.layout.copies:
            self._copy_queries(start, count)
            pointer, start = self.queries, tir.const(0)
        offsets = tuple(r * self.layout.query_row for r in range(count))
        left = Left(pointer, offsets, (), self.q.size, guarded=self.layout.copies)
        tops = b.registers("float32", self.lanes, count, "top")
        tops.fill(LEAST)
        mask = self._mask_offset(image, head, query)
        for run in Panels.of(self.k.length, self.lanes, self.layout.vectors).runs():
            with b.serial(self._panels(run), "panel") as i:
                first = b.let(run.column // self.lanes + i * run.vectors, "first")
                self._scores(left, start, first, run, tops, mask, query)
        for r in range(count):
            self.tops.store(r * self.lanes, tops[r])
        with b.serial(count, "row") as r:
            self._weights(r)
        self._outputs(image, head, values, query, count)

    def _panels(self, run: Run) -> Value:
        """How many panels of a run have a key that counts."""
        if self.end is None:
            return run.count
        here = up(self.b, self.vectors - run.column // self.lanes, run.vectors)
        return self.b.let(tirx.Min(here, tir.const(run.count)), "panels")

    def _copy_queries(self, start: Value, count: int) -> None:
        """Copy a block of queries in the product's dtype and layout."""
        b, product = self.b, self.for_scores
        pointer, dtype = self.d.pointers[self.q.node], self.q.node.dtype
        width = self.lanes * product.mac.k
        with b.serial(count, "row") as r:
            at = b.let(start + r * self.q.steps[2], "at")
            to = b.let(r * self.layout.query_row, "to")

            def some(column: Value, there: int) -> None:
                value = b.let(pointer.load_first(there, at + column, width), "q")
                self.queries.store(to + column, tir.opaque(product.convert_left(value, dtype)))

            sweep(b, self.q.size, width, some)

    # -- scores

    def _scores(
        self,
        left: Left,
        start: Value,
        first: Value,
        run: Run,
        tops: Registers,
        mask: tuple[Value, int, int] | None,
        query: Value,
    ) -> None:
        """A block of queries * a panel of keys -> scores[query, key], and their running maximum."""
        b, m, lanes = self.b, self.m, self.lanes
        keys, panels = self.packed_keys, self.key_panels
        near = [self._near(panels + b.let(keys.at(first + v), "at")) for v in range(run.vectors)]

        def right(step: Value, v: int) -> Value:
            return keys.load(near[v], step)

        def correction(v: int) -> Value:
            return keys.correction(panels, first + v)

        begin = correction if self.for_scores.flipped else None
        made = sums(b, self.for_scores, left, start, Right(run.vectors, right, begin))
        for v in range(run.vectors):
            at = b.let((first + v) * lanes, "at")
            there = run.tail if v == run.vectors - 1 else lanes
            alike = mask is None or mask[2] == 0
            bias = self._bias(mask, at, there, 0) if alike else None
            for r in range(len(left.offsets)):
                bias = bias if alike else self._bias(mask, at, there, r)
                value = Vec(m, made[r * run.vectors + v], self.for_scores.sums, lanes)
                value = self._biased(m.cast(value, "float32"), bias, at, there, query + r)
                self.scores.store(r * self.row + at, value.expr)
                tops[r] = m.larger(m.vec(tops[r]), value).expr

    def _near(self, pointer: Pointer) -> Pointer:
        """A pointer of its own: from one for all, far vectors would not be loaded in pairs."""
        again = self.d.isa.intrinsics.get("again")
        return again(self.b, pointer) if again else pointer

    def _factor(self) -> Vec:
        """The factor of products: the scale in units of log 2, or of the cap."""
        given, cap = self.root.attrs["scale"], self.root.float("softcap")
        unit = _LOG2_E if cap <= 0 else 1 / cap
        if self.scale is not None:
            return self.d.read(self.scale, tir.const(0)) * unit
        scale = 1 / sqrt(self.q.size) if given is None else self.root.float("scale")
        return self.m.splat(scale * unit, "float32")

    def _biased(self, value: Vec, bias: Vec | None, at: Value, there: int, query: Value) -> Vec:
        """Apply scale, cap and mask, in units of log 2. Masked keys get the lowest score."""
        m, lanes, root, scale = self.m, self.lanes, self.root, self.factor
        cap = root.float("softcap")
        if cap > 0:
            value, scale = m.tanh(value * scale), m.splat(cap * _LOG2_E, "float32")
        if bias is None:
            value = value * scale
        elif bias.dtype == "bool":
            value = m.where(bias, value * scale, LEAST)
        else:
            value = m.larger(m.like(LEAST, value), m.fma(value, scale, bias))
        if root.int("is_causal"):
            seen = tir.ramp(at, lanes) <= tir.broadcast(query, lanes)
            value = m.where(m.vec(seen), value, LEAST)
        if self.end is not None:  # it may be made of what is no number
            seen = tir.ramp(at, lanes) < tir.broadcast(self.end, lanes)
            value = m.where(m.vec(seen), value, BEHIND)
        elif there < lanes:
            value = m.where(m.vec(tir.first_lanes(lanes, there)), value, BEHIND)
        return value

    def _bias(
        self, mask: tuple[Value, int, int] | None, at: Value, there: int, r: Value
    ) -> Vec | None:
        """A vector of the mask for query r of a block, in units of log 2 or as booleans."""
        if mask is None or self.mask is None:
            return None
        start, step, row = mask
        width = self.lanes if step else 1
        pointer, dtype = self.d.pointers[self.mask], self.mask.dtype
        value = load(self.m, pointer, dtype, start + r * row + at * step, width, min(there, width))
        value = self.m.widen(value, self.lanes)
        return value if dtype == "bool" else self.m.cast(value, "float32") * _LOG2_E

    def _mask_offset(
        self, image: Value, head: Value, query: Value
    ) -> tuple[Value, int, int] | None:
        """The offset of a query's mask, its step along the keys (0: one value for all), and its
        step to the next query."""
        if self.mask is None:
            return None
        dims = (1,) * (4 - self.mask.type.rank) + self.mask.type.dims
        offset: Value = tir.const(0)
        step = 1
        for size, index in zip(dims[::-1], (None, query, head, image), strict=True):
            if index is not None and size > 1:
                offset = offset + index * step
            step *= size
        row = dims[-1] if dims[-2] > 1 else 0
        return self.b.let(offset, "mask"), int(dims[-1] > 1), row

    # -- weights

    def _weights(self, row: Value) -> None:
        """A row of scores -> weights (not yet normalized), and the inverse of their sum."""
        b, m, lanes = self.b, self.m, self.lanes
        whole_numbers = self.for_values.sums == "int32"
        best = across(b, b.let(self.tops.load(row * lanes, lanes), "tops"), tirx.Max)
        highest = 255.0 if whole_numbers else 1.0
        top = m.vec(tir.broadcast(b.let(best - tir.const(log2(highest), "float32")), lanes))
        kind = "int32" if whole_numbers else "float32"
        count = -(-self.d.device.core.adds // 2)  # besides the chain of each weight
        totals = b.registers(kind, lanes, count, "total")
        totals.fill(0)
        start = b.let(row * self.row, "start")
        rough = self.for_values.left != "float32"

        def weigh(at: Value, _: int, slot: int) -> None:
            score = m.vec(self.scores.load(start + at, lanes))
            weight = polynomials.exp2_least(m, score - top, rough=rough)
            if whole_numbers:
                weight = self._whole(weight)
            total = m.vec(totals[slot])
            totals[slot] = (total + weight).expr
            self.weights.store(start + at, self._as_operand(weight))

        if self.end is None:
            slots(b, self.keys, lanes, count, weigh)
        else:
            slots_until(b, self.vectors, lanes, count, weigh)
        total = m.vec(totals[0])
        for slot in range(1, count):
            total = total + m.vec(totals[slot])
        whole = tir.cast(across(b, total.expr, tirx.Add), "float32")
        inverse = tir.const(1.0, "float32") / whole
        if self.mask is not None and self.mask.dtype == "bool":  # it may mask all keys: 0
            seen = best > tir.const(LEAST, "float32")
            inverse = tirx.Select(seen, inverse, tir.const(0.0, "float32"))
        self.inverses.store(row, b.let(inverse, "inverse"))

    def _as_operand(self, weight: Vec) -> Value:
        """A weight in the product's dtype."""
        kind = self.for_values.left
        if self.for_values.flipped:
            return self.for_values.convert_left(tir.cast(weight.expr, "uint8"), "uint8")
        if kind != "uint16":
            return tir.cast(weight.expr, kind)
        half = self.d.isa.intrinsics.get("to_bfloat16")
        return half(weight.expr) if half else self.m.cast(weight, "bfloat16").expr

    def _whole(self, value: Vec) -> Vec:
        """float32 -> int32, halves to even."""
        near = self.d.isa.intrinsics.get("round_to_int")
        if near is None:
            return casts.rounded(self.m, value)
        return self.m.vec(near(value.expr))

    # -- output

    def _outputs(self, image: Value, head: Value, values: Value, query: Value, count: int) -> None:
        """Store weights * values / sum of weights, through the epilogue, to the output."""
        b, lanes, size = self.b, self.lanes, self.v.size
        offsets = tuple(r * self.row for r in range(count))
        steps = None if self.end is None else up(b, self.end, self.for_values.mac.k)
        left = Left(self.weights, offsets, (), self.k.length, guarded=True, steps=steps)
        for run in Panels.of(size, lanes, self.layout.vectors).runs():
            for panel in range(run.count):
                column = run.column + panel * run.vectors * lanes
                right = Right(
                    run.vectors, partial(self._value, values, column), self._begin(column)
                )
                made = sums(b, self.for_values, left, tir.const(0), right)
                for r in range(count):
                    registers = [made[r * run.vectors + v] for v in range(run.vectors)]
                    self._put(image, head, query + r, column, registers, self.inverses.load(r))

    def _begin(self, column: int) -> Callable[[int], Value] | None:
        """The initial sums of a panel from a column on."""
        if not self.for_values.flipped:
            return None
        values, panels = self.packed_values, self.value_panels
        return lambda v: values.correction(panels, column + v * self.lanes)

    def _value(self, values: Value, column: int, step: Value, v: int) -> Value:
        """The right operand of a multiply-accumulate, vector v from a column on."""
        source, at = self.d.pointers[self.v.node], column + v * self.lanes
        return self.packed_values.load(source, values, self.value_panels, at, step)

    def _put(
        self,
        image: Value,
        head: Value,
        position: Value,
        column: int,
        sums: Sequence[Value],
        inverse: Value,
    ) -> None:
        """Store a row's sums from a column of its head on."""
        b, m, lanes = self.b, self.m, self.lanes
        if self.root.type.rank == 3:  # heads are adjacent in one row
            row = b.let(image * self.q.length + position, "row")
            shift = head * self.v.size
        else:
            row = b.let((image * self.q.heads + head) * self.q.length + position, "row")
            shift = tir.const(0)
        width = self.root.type.dims[-1]
        place = self.epilogue.row(row)
        factor = m.vec(tir.broadcast(b.let(inverse, "inverse"), lanes))
        for v, value in enumerate(sums):
            there = min(lanes, self.v.size - column - v * lanes)
            at = b.let(shift + (column + v * lanes), "column")
            wide = m.cast(m.vec(value), "float32") * factor
            made = m.cast(wide, self.root.dtype)
            self.d.put(self.epilogue, place, row * width + at, at, there, made)
