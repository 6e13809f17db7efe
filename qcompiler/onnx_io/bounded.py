"""Values whose size data decide: a tensor of the largest size there may be, and beside it how many
of its elements along an axis are there, a number of each run.

Elements behind that number are of no meaning. Operators that keep elements apart along such an axis
carry it on; all others refuse. An output of the model is cut to its size when a run has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from qcompiler.ir import EXTENT, Node
from qcompiler.onnx_io.call import Call
from qcompiler.onnx_io.sequences import Items
from qcompiler.onnx_io.settle import Settling, plain
from qcompiler.ops import OPERATORS, known_value

Counts = Mapping[int, Node]
"""Axis -> the number of elements along it, an int64 vector of one."""

Rule = Callable[[Call, Node, "Bounds"], dict[int, Node] | None]
"""(call, what it made, the counts of values) -> the counts of what it made; None: not carried."""

_RULES: dict[str, Rule] = {}


@dataclass
class Bounds:
    """The values of a model whose size data decide."""

    known: dict[Node, dict[int, Node]] = field(default_factory=dict)

    def of(self, node: Node | None) -> Counts:
        """A value's counts."""
        return self.known.get(node, {}) if node is not None else {}

    def put(self, node: Node, counts: dict[int, Node]) -> None:
        """Say how many elements a value has."""
        if counts:
            self.known[node] = counts

    def shape_of(self, call: Call) -> Node:
        """The Shape of such a value: what a run sees."""
        s = plain(call)
        whole = self._sizes(s, call.need(0))
        end = call.get("end")
        last = whole.type.size if end is None else int(end)  # type: ignore[arg-type]
        return s.node("Slice", whole, [call.number("start")], [last])

    def extents(self, outputs: Sequence[tuple[str, Node]]) -> list[tuple[str, Node]]:
        """Outputs of the model -> the outputs that say how large such ones are."""
        found = []
        for name, node in outputs:
            if node in self.known:
                s = plain(Call("extent", (node,), {}, 1, 1, f"{name}.extent"))
                found.append((EXTENT + name, self._sizes(s, node)))
        return found

    def _sizes(self, s: Settling, node: Node) -> Node:
        """The sizes of a value, as a run sees them: an int64 vector."""
        counts = self.of(node)
        parts = [counts.get(a) or s.ints([d]) for a, d in enumerate(node.type.dims)]
        return s.node("Concat", *parts, axis=0)

    def demand_none_in(self, call: Call, values: Sequence[object]) -> None:
        """Raise Unsupported if data decide the size of a value, or of an element of one."""
        items = [n for v in values for n in (v.nodes if isinstance(v, Items) else (v,))]
        self.demand_none(call.but(inputs=[n for n in items if isinstance(n, Node)]))

    def demand_none(self, call: Call) -> None:
        """Raise Unsupported if data decide the size of an operand of a call."""
        if any(i in self.known for i in call.inputs):
            raise call.unsupported(
                "an operand whose size is decided by data, when the model runs",
                "declare the shapes of what is selected by data, if their sizes are known",
            )

    def carry(self, call: Call, made: Node | tuple[Node | None, ...]) -> None:
        """Say how many elements the results of a call have. Raises Unsupported if that is not known
        of an operator.
        """
        if not any(i in self.known for i in call.inputs):
            return
        rule = _RULES.get(call.op)
        if rule is None and call.op in OPERATORS and OPERATORS[call.op].formula is not None:
            rule = _elementwise
        nodes = [made] if isinstance(made, Node) else [n for n in made if n is not None]
        for node in nodes:
            if node in self.known:
                continue
            counts = None if rule is None or len(node.types) > 1 else rule(call, node, self)
            if counts is None:
                self.demand_none(call)
            else:
                self.put(node, counts)


def _carries(*ops: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


@_carries("Identity", "Dropout", "Cast", "CastLike")
def _elementwise(call: Call, made: Node, bounds: Bounds) -> dict[int, Node] | None:
    """Operands of one size along an axis have one count."""
    found: dict[int, Node] = {}
    rank = made.type.rank
    for axis, size in enumerate(made.type.dims):
        counts = []
        for i in call.inputs:
            at = axis - rank + (i.type.rank if i is not None else 0)
            if i is None or at < 0:
                continue
            count = bounds.of(i).get(at)
            if i.type.dims[at] == size and (size > 1 or count is not None):
                counts.append(count)
            elif count is not None:
                return None  # of one element, or none
        if any(c is not counts[0] for c in counts):
            return None
        if counts and counts[0] is not None:
            found[axis] = counts[0]
    return found


@_carries("Gather")
def _gather(call: Call, made: Node, bounds: Bounds) -> dict[int, Node] | None:
    x, places = call.need(0), call.need(1)
    axis = call.number("axis") % x.type.rank
    if axis in bounds.of(x):
        return None  # an index might be behind the last element, or count from there
    found = {axis + a: c for a, c in bounds.of(places).items()}
    more = places.type.rank - 1
    found.update({a if a < axis else a + more: c for a, c in bounds.of(x).items()})
    return found


@_carries("Transpose")
def _transpose(call: Call, made: Node, bounds: Bounds) -> dict[int, Node]:
    order = made.ints("perm") if made.attrs.get("perm") else range(made.type.rank)[::-1]
    counts = bounds.of(call.need(0))
    return {new: counts[old] for new, old in enumerate(order) if old in counts}


@_carries("Squeeze", "Unsqueeze", "Reshape", "Flatten")
def _reshaped(call: Call, made: Node, bounds: Bounds) -> dict[int, Node] | None:
    """Along an axis that is in both shapes, with as many elements before it."""
    x, new = call.need(0).type.dims, made.type.dims
    found = {}
    for axis, count in bounds.of(call.need(0)).items():
        before = prod(x[:axis])
        fits = [a for a, d in enumerate(new) if d == x[axis] and prod(new[:a]) == before]
        if not fits or 0 in x or (x[axis] == 1 and len(fits) > 1):
            return None
        found[fits[-1] if x[axis] > 1 else fits[0]] = count
    return found


@_carries("Slice")
def _slice(call: Call, made: Node, bounds: Bounds) -> dict[int, Node] | None:
    """Along other axes."""
    axes = known_value(call.input(3))
    if axes is None:
        return None
    cut = {int(a) % made.type.rank for a in axes.ravel()}
    counts = bounds.of(call.need(0))
    return None if cut & set(counts) else dict(counts)


@_carries("Concat")
def _concat(call: Call, made: Node, bounds: Bounds) -> dict[int, Node] | None:
    """Along other axes, of equal counts."""
    axis = call.number("axis") % made.type.rank
    found = [dict(bounds.of(i)) for i in call.inputs]
    same = all(f.keys() == found[0].keys() for f in found)
    same = same and all(f[a] is found[0][a] for f in found for a in f)
    return found[0] if same and axis not in found[0] else None


@_carries("Softmax", "LogSoftmax", "ArgMax", "ArgMin")
def _along(call: Call, made: Node, bounds: Bounds) -> dict[int, Node] | None:
    """Along other axes, which are kept."""
    counts, axis = bounds.of(call.need(0)), call.number("axis")
    if axis % call.need(0).type.rank in counts or made.type.rank != call.need(0).type.rank:
        return None
    return dict(counts)
