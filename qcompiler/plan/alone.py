"""A graph with an open batch -> proof that each sample's outputs are made of that sample alone, and
that nothing else depends on how many samples there are; or the Error that names what mixes them.

A value is *batched* if one of its dimensions is a multiple k of the batch and no other depends on
it: sample i is then elements i * k to (i + 1) * k along it. An operator keeps samples alone if
every sample of its output depends on the same sample of its batched operands. Arithmetic on shapes
may contain the batch, and may only say how to shape a value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import Dim, Graph, Node, Type
from qcompiler.ir.refusals import described
from qcompiler.ops import known_value
from qcompiler.ops.known_sizes import known_sizes, never_below_0
from qcompiler.ops.registry import is_elementwise
from qcompiler.ops.shapes import total
from qcompiler.runtime.text import NOTE

_IMAGES = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Resize"})
_IMAGES |= {"AveragePool", "LpPool"}
_IMAGES |= {f"Global{kind}Pool" for kind in ("Max", "Average", "Lp")}
_IMAGES |= {"InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth"}
"""Operators that treat the rows of their first operand one by one; the others are parameters."""
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
_ALONG = frozenset({"Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization"})
_ALONG |= {"LpNormalization", "ArgMax", "ArgMin", "TopK", "Split"}
"""Operators that work along one axis, or from one axis on."""
_FROM = frozenset({"LayerNormalization", "RMSNormalization"})
"""Of these, operators that work from one axis on."""
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TARGETS: dict[str, int] = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
_TARGETS |= {"Tile": 1}
"""Operators that read a shape, and which of their inputs it is."""


def demand_alone(graph: Graph, batch: Size, others: Collection[str] = ()) -> None:
    """Raise Error unless it is proven of a graph that the open size `batch` is one of samples that
    do not meet, whatever the `others` are.
    """
    if NOTE in graph.notes:
        raise _refused(batch, "strings are computed for all samples at once")
    for what in graph.checks:
        raise _refused(batch, f"every run checks that its operands fit ({what})")
    found = _Alone(batch, frozenset(others))
    for node in graph.inputs:
        if found.axis(node.type) != 0 or node.shape[0] != batch:
            raise _refused(batch, f"the input {node.name}: {node.type} does not begin with it")
    for node in graph.nodes:
        found.see(node)
    for name, node in zip(graph.output_names, graph.outputs, strict=True):
        if node not in found.batched or found.axis(node.type) != 0:
            raise _refused(batch, f"the output {name} is not one for each sample")


def _refused(batch: Size, reason: str, where: str = "") -> Error:
    return Error(
        f"the size {batch} cannot stay open: {reason}",
        where=where,
        hint=f"only a batch of samples that do not meet can; pin it: --dim {batch}=N",
    )


@dataclass(frozen=True)
class Index:
    """Integers that at sample i are from stride * i + low to stride * i + high."""

    stride: Size
    low: Size
    high: Size

    def but(self, op: str, low: Size, high: Size) -> Index | None:
        """Times one number above 0, or plus numbers in a range."""
        if op == "Add":
            return Index(self.stride, self.low + low, self.high + high)
        if low != high or not never_below_0(low - 1):
            return None
        return Index(self.stride * low, self.low * low, self.high * low)


def _counts_up(node: Node) -> bool:
    """Is a Range 0, 1, 2, ...?"""
    start, step = (known_value(node.operands[i]) for i in (0, 2))
    return start is not None and step is not None and (start.item(), step.item()) == (0, 1)


class _Alone:
    """The batched values of a graph, found inputs first."""

    def __init__(self, batch: Size, others: frozenset[str]) -> None:
        self.batch, self.others = batch, others
        self.batched: set[Node] = set()
        self.indices: dict[Node, Index] = {}
        self.loops: dict[Node, list[bool]] = {}
        """Which of their states are batched."""

    def axis(self, type: Type) -> int:
        """The dimension that is a multiple of the batch, if no other depends on it; else -1."""
        open_ = [i for i, d in enumerate(type.shape) if self._depends(d)]
        if len(open_) != 1:
            return -1
        k = Size.of(type.shape[open_[0]]).over(self.batch)
        if k is None or not k.symbols <= self.others:
            return -1
        return open_[0] if k.symbols or k.at({}) > 0 else -1

    def _depends(self, size: object) -> bool:
        """May a size, or a number computed from sizes, depend on the batch?"""
        return isinstance(size, str) and not Size.of(size).symbols <= self.others

    def _shapes(self, node: Node) -> bool:
        """Is it arithmetic on shapes that depends on the batch?"""
        found = known_sizes(node)
        return found is not None and any(map(self._depends, found.ravel().tolist()))

    def see(self, node: Node) -> None:
        """Find out about a node, after those it reads."""
        if node.op == "input":
            self.batched.add(node)
            return
        if known_sizes(node) is not None:
            return
        if node.op == "loop":
            self._loop(node)
            return
        if node.op == "item" and node.operands[0] in self.loops:
            if self.loops[node.operands[0]][node.int("index")]:
                self.batched.add(node)
            return
        if node.op == "room" and self.axis(node.type) >= 0:
            self.batched.add(node)
            return
        if (index := self._index(node)) is not None:
            self.indices[node] = index
            return
        reads = [i for i in node.operands if i in self.batched]
        shaped = [at for at, i in enumerate(node.inputs) if i is not None and self._shapes(i)]
        if not reads and not shaped:
            if not any(self._depends(d) for t in node.types for d in t.shape):
                return  # the same for all samples
            raise self._mixes(node)
        numbered = self.indices.keys() & set(node.operands)
        if numbered and not self._gathers_own(node):
            raise self._mixes(node)
        if shaped and shaped != [_TARGETS.get(node.op)]:
            raise self._mixes(node)
        if any(self.axis(t) < 0 for t in node.types) or not self._alone(node):
            raise self._mixes(node)
        self.batched.add(node)

    def _loop(self, node: Node) -> None:
        """Find out about a loop: every iteration keeps samples alone, and all make as many."""
        body = node.graph("body")
        states = body.inputs[: len(body.outputs)]
        self.batched.difference_update(body.nodes)  # that another loop may have, too
        if self.indices.keys() & set(node.operands):
            raise self._mixes(node)
        for inner, given in zip(body.inputs, node.operands, strict=True):
            if given in self.batched:
                self.batched.add(inner)
        for inner in body.nodes:
            if inner.op != "input":
                self.see(inner)
        ends = zip(states, body.outputs, strict=True)
        if any((old in self.batched) != (new in self.batched) for old, new in ends):
            raise self._mixes(node)
        self.loops[node] = [state in self.batched for state in states]

    def _mixes(self, node: Node) -> Error:
        where = described(node)
        shapes = ", ".join(str(i.types[0]) for i in node.operands)
        made = ", ".join(map(str, node.types))
        return _refused(self.batch, f"{node.op} may mix the samples of {shapes} in {made}", where)

    def _alone(self, node: Node) -> bool:
        """Does every sample of a node's output depend on its own of the batched operands?"""
        if node.op in _RESHAPES:
            return self._first_only(node) and self._reshapes(node.operands[0].type, node.types[0])
        if node.op in ("Expand", "ConstantOfShape"):
            return node.op == "ConstantOfShape" or self._in_step(node.operands[0], node.types[0])
        types = [*node.types, *(i.types[0] for i in node.operands if i in self.batched)]
        numbered = bool(self.indices.keys() & set(node.operands))
        if not numbered and len({t.shape[self.axis(t)] for t in types}) > 1:
            return False
        rule = _RULES.get(node.op)
        if rule is not None:
            return rule(self, node)
        if node.op in _IMAGES:
            return self._first_only(node) and self._at(node) == 0
        if node.op in _ALONG:
            return self._first_only(node) and self._other_axis(node)
        if is_elementwise(node):
            return all(self._in_step(i, node.types[0]) for i in node.operands)
        if node.op.startswith("Reduce"):
            return self._first_only(node) and self._other_axes(node, 1)
        return False

    def _index(self, node: Node) -> Index | None:
        """What integers say of the samples' numbers: Range(batch), times and plus numbers that are
        the same for all samples.
        """
        first = self.indices.get(node.operands[0]) if node.operands else None
        if len(node.types) != 1 or self.axis(node.type) < 0 or not node.dtype.startswith("int"):
            return None
        if node.op == "Range":
            own, nil = _counts_up(node) and node.shape == (self.batch,), Size.of(0)
            return Index(Size.of(1), nil, nil) if own else None
        if node.op in _RESHAPES and first is not None:
            return first if self._reshapes(node.operands[0].type, node.type) else None
        if node.op == "Cast":
            return first
        if node.op not in ("Mul", "Add") or not self.indices.keys() & set(node.operands):
            return None
        one, other = node.operands
        index, number = (one, other) if one in self.indices else (other, one)
        span = self._span(number)
        if span is None or not self._in_step(number, node.type):
            return None
        axis = self.axis(index.type) - index.type.rank
        if axis != self.axis(node.type) - node.type.rank:
            return None
        return self.indices[index].but(node.op, *span)

    def _span(self, node: Node, depth: int = 20) -> tuple[Size, Size] | None:
        """The least and the largest of integers that are the same for all samples."""
        if known_value(node) is None and self._shapes(node):
            return None
        found = known_sizes(node)
        values = set() if found is None else set(found.ravel().tolist())
        if values and all(isinstance(v, int) for v in values):
            return Size.of(min(values)), Size.of(max(values))
        if len(values) == 1:
            return Size.of(*values), Size.of(*values)
        if values or not depth or len(node.types) != 1 or self._depends_on(node.type):
            return None
        if node.op == "Range" and _counts_up(node):
            return Size.of(0), Size.of(node.shape[0]) - 1
        if node.op in _RESHAPES or node.op in ("Cast", "Expand", "Transpose"):
            whole = node.operands[0].dtype.startswith("int")
            return self._span(node.operands[0], depth - 1) if whole else None
        return None

    def _depends_on(self, type: Type) -> bool:
        return any(map(self._depends, type.shape))

    def _gathers_own(self, node: Node) -> bool:
        """Does a Gather read from each sample what is that sample's own?"""
        if node.op != "Gather" or node.operands[0] not in self.batched:
            return False
        table, index = node.operands
        found = self.indices.get(index)
        if found is None or node.int("axis") % table.type.rank or self.axis(table.type) != 0:
            return False
        rows = Size.of(table.shape[0]).over(self.batch)
        inside = never_below_0(found.low) and never_below_0(found.stride - 1 - found.high)
        return rows == found.stride and inside

    def _at(self, node: Node) -> int:
        """The batch's dimension of the first operand."""
        return self.axis(node.operands[0].types[0])

    def _first_only(self, node: Node) -> bool:
        """Is the first operand batched, and no other?"""
        first, *others = node.operands
        return first in self.batched and not self.batched.intersection(others)

    def _reshapes(self, old: Type, new: Type) -> bool:
        """Do samples stay where they are in memory?"""
        before = {total(t.shape[: self.axis(t)]) for t in (old, new)}
        return total(old.shape) == total(new.shape) and len(before) == 1

    def _in_step(self, operand: Node, out: Type) -> bool:
        """Is an operand that is broadcast to a batched type batched along the same dimension, or
        the same for all samples?
        """
        type = operand.types[0]
        axis = self.axis(out) - (out.rank - type.rank)
        if operand in self.batched:
            return axis == self.axis(type) and type.shape[axis] == out.shape[self.axis(out)]
        return axis < 0 or type.shape[axis] == 1

    def _other_axis(self, node: Node) -> bool:
        """Does a node work along another dimension than the batch's, or only those after it?"""
        axis = node.int("axis") % node.operands[0].types[0].rank
        return axis > self._at(node) if node.op in _FROM else axis != self._at(node)

    def _other_axes(self, node: Node, place: int) -> bool:
        """Does an input name axes, and not the batch's?"""
        axes = known_value(node.inputs[place]) if len(node.inputs) > place else None
        rank = node.operands[0].type.rank
        return axes is not None and axes.size > 0 and bool((axes % rank != self._at(node)).all())

    def _together(self, node: Node) -> bool:
        """Are all operands batched along one dimension, and put together along another? What is the
        same for all samples is expanded before.
        """
        axes = {self.axis(i.types[0]) for i in node.operands}
        together = self.batched.issuperset(node.operands) and len(axes) == 1
        return together and self._other_axis(node)

    def _product(self, node: Node) -> bool:
        """A matrix product: sample by sample, or rows or columns of samples by one matrix."""
        sides, others = node.operands[:2], node.operands[2:]
        if self.batched.intersection(others) or min(i.type.rank for i in sides) < 2:
            return False
        at = self.axis(node.types[0]) - node.types[0].rank  # counted from the end
        for operand, free, summed in zip(sides, (-2, -1), (-1, -2), strict=True):
            if operand in self.batched:
                if self.axis(operand.type) != at + operand.type.rank or at == summed:
                    return False
            elif at == free or (at < -2 and not self._in_step(operand, node.types[0])):
                return False
        return True

    def _gemm(self, node: Node) -> bool:
        added = all(self._in_step(i, node.type) for i in node.operands[2:])
        first = node.operands[0] in self.batched and node.operands[1] not in self.batched
        return first and added and self._at(node) == 0 and not node.int("transA")

    def _gather(self, node: Node) -> bool:
        """Rows of a table by index, or along another axis."""
        table, index = node.operands
        if index in self.batched or index in self.indices:
            return index in self.indices or table not in self.batched
        return node.int("axis") % table.type.rank != self.axis(table.type)

    def _attention(self, node: Node) -> bool:
        """Scores are [image, head, query, key]: masks are added to these."""
        scores = 4
        first = all(self.axis(i.type) == 0 for i in node.operands[:3])
        masks = all(
            i.type.rank == scores and self.axis(i.type) == 0
            if i in self.batched
            else i.type.rank < scores or i.shape[0] == 1
            for i in node.operands[3:]
        )
        return self.batched.issuperset(node.operands[:3]) and first and masks

    def _scatter_nd(self, node: Node) -> bool:
        """Pieces that have all samples, put into others by indices that are the same for all."""
        x, index, pieces = node.operands
        if index in self.batched or not self.batched.issuperset((x, pieces)):
            return False
        depth, axis = index.shape[-1], self.axis(x.type)
        if not isinstance(depth, int) or axis < depth:
            return False
        return self.axis(pieces.type) == axis - depth + index.type.rank - 1

    def _einsum(self, node: Node) -> bool:
        """One letter is the batch wherever there is one, and in no other operand."""
        left, arrow, right = node.str("equation").replace(" ", "").partition("->")
        terms = left.split(",")
        if "." in left or not arrow:
            return False
        pairs = list(zip(terms, node.operands, strict=True))
        letters = {t[self.axis(i.type)] for t, i in pairs if i in self.batched}
        one, *others = letters or {"none"}
        if others or right.count(one) != 1 or right.find(one) != self.axis(node.type):
            return False
        return all(t.count(one) == (i in self.batched) for t, i in pairs)

    def _each(self, node: Node) -> bool:
        """Are all operands batched along their first dimension?"""
        each = self.batched.issuperset(node.operands)
        return each and all(self.axis(i.type) == 0 for i in node.operands)

    def _rotary(self, node: Node) -> bool:
        """Tables of positions are the same for all samples, the other operands batched."""
        tables = node.operands[1:3] if len(node.operands) > 3 else ()
        own = [i for i in node.operands if i not in tables]
        fixed = not self.batched.intersection(tables)
        return fixed and all(i in self.batched and self.axis(i.type) == 0 for i in own)

    def _reverse(self, node: Node) -> bool:
        x, lengths = node.operands
        return {x, lengths} <= self.batched and node.int("batch_axis") % x.type.rank == self._at(
            node
        )

    def _recurrent(self, node: Node) -> bool:
        """x[time, batch, input], lengths[batch], states[direction, batch, hidden]; or the batch
        first, in all of them. Weights are the same for all samples.
        """
        at = 0 if node.attrs.get("layout") else 1
        x, w, r, bias, lengths, *states = (*node.inputs, *[None] * 5)[:8]
        fixed = not any(i in self.batched for i in (w, r, bias, *states[2:]))
        moving = [x, *states[:2]]
        along = all(i is None or (i in self.batched and self.axis(i.type) == at) for i in moving)
        return fixed and along and (lengths is None or lengths in self.batched)

    def _folded(self, node: Node) -> bool:
        """recurrent(sums[time, batch, gates], weights, bias, lengths[batch], states): as above."""
        sums, r, bias, lengths, *states = (*node.inputs, *[None] * 5)[:7]
        fixed = not any(i in self.batched for i in (r, bias, *states[2:]))
        along = all(
            i is None or (i in self.batched and self.axis(i.type) == 1) for i in (sums, *states[:2])
        )
        return fixed and along and (lengths is None or lengths in self.batched)

    def _pad(self, node: Node) -> bool:
        if len(node.operands) > 3:
            return self._first_only(node) and self._other_axes(node, 3)
        pads, rank = known_value(node.operands[1]), node.type.rank
        if pads is None or not self._first_only(node):
            return False
        return not pads.ravel()[self._at(node) :: rank].any()

    def _quantizer(self, node: Node) -> bool:
        one = node.operands[1].type.size == 1
        return self._first_only(node) and (one or self._other_axis(node))

    def _tile(self, node: Node) -> bool:
        """A batch repeated along other axes; or what is the same for all samples, for each."""
        x, repeats = node.operands[0], known_sizes(node.operands[1])
        if repeats is None:
            return False
        if x in self.batched:
            return bool(repeats.ravel()[self._at(node)] == 1)
        times: Dim = repeats.ravel()[self.axis(node.type)]
        return Size.of(times).over(self.batch) is not None


_RULES: Mapping[str, Callable[[_Alone, Node], bool]] = {
    "Concat": _Alone._together,
    "MatMul": _Alone._product,
    "MatMulInteger": _Alone._product,
    "Gemm": _Alone._gemm,
    "Gather": _Alone._gather,
    "GatherElements": _Alone._together,
    "Attention": _Alone._attention,
    "Pad": _Alone._pad,
    "Tile": _Alone._tile,
    "BatchNormalization": lambda s, n: s._at(n) == 0 and not n.int("training_mode"),
    "MaxPool": lambda s, n: s._first_only(n) and s._at(n) == 0 and len(n.types) == 1,
    **dict.fromkeys(("Transpose", "item"), lambda s, n: s._first_only(n)),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _Alone._recurrent),
    "recurrent": _Alone._folded,
    "Slice": lambda s, n: s._first_only(n) and s._other_axes(n, 3),
    **dict.fromkeys(("CumSum", "CumProd"), lambda s, n: s._first_only(n) and s._other_axes(n, 1)),
    "Einsum": _Alone._einsum,
    "GatherND": lambda s, n: s._each(n) and n.int("batch_dims") > 0,
    **dict.fromkeys(("GridSample", "TensorScatter"), _Alone._each),
    "ScatterElements": _Alone._together,
    "ScatterND": _Alone._scatter_nd,
    "RotaryEmbedding": _Alone._rotary,
    "ReverseSequence": _Alone._reverse,
    **dict.fromkeys(("OneHot", "BitCast"), lambda s, n: s._first_only(n)),
    **dict.fromkeys(
        ("Trilu", "Det"), lambda s, n: s._first_only(n) and s._at(n) < n.operands[0].type.rank - 2
    ),
    **dict.fromkeys(_QUANTIZERS, _Alone._quantizer),
}
"""What is peculiar to an operator; all batched operands have as many rows as the output."""
