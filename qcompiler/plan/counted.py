"""Regions of a graph whose sizes are open -> kernels, which end where what counts in a run does.

Kernels are made for the largest sizes. Where a value's first dimension of more than one position is
an open one, a run's positions come first in memory, row after row, and what belongs to the others
need not be computed: a kernel is told how many count (`Region.count`), and makes of those rows what
it would if it had been made for so many. Behind them memory holds anything then, also where the
padded graph (rewrite/padding) has a 0. So it matters who looks there:

    computes each row from the same row of an operand     if all of its rows are needed
    mixes rows, and ends where those that count do        never
    mixes rows                                            always

Steps are looked at from the last to the first. One that somebody needs all rows of does not end
early, nor do those that it needs all rows of in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from qcompiler.ir import SIZE, Graph, Node
from qcompiler.kernels.region import Region
from qcompiler.kernels.registry import Decision, Kernel
from qcompiler.onnx_io.dims import positive
from qcompiler.ops import known_value
from qcompiler.ops.kinds import VIEWS
from qcompiler.ops.quantized import TABLES
from qcompiler.plan.choose import Chooser
from qcompiler.plan.plan import Opened, Progress
from qcompiler.plan.regions import base, is_elementwise
from qcompiler.plan.repeats import Flat

Made = list[tuple[Region, Decision]]
Rule = Callable[[Node, int, int], bool]
"""Is a node's output row by row that of its operand at a position, whose dimension `axis` is open?
That its first dimension has as many positions is known."""
Places = frozenset[int]
"""Positions of operands."""


@dataclass(frozen=True)
class Extents:
    """The height and the width of images in a run, each int32[1], and the least that they are."""

    sizes: tuple[Node, Node]
    least: tuple[int, int]


class Refused(Exception):
    """There are `nodes` without a kernel that ends where images do."""

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__()
        self.nodes = nodes


def ending(
    flat: Flat,
    opened: Opened,
    chooser: Chooser,
    progress: Progress | None,
    images: Mapping[Node, Extents] = MappingProxyType({}),
) -> list[Made]:
    """A graph of largest sizes -> its regions in order, or their parts, and their kernels. None in
    a loop ends early: what it makes may be a state, of which a later iteration needs all rows.
    `images`: those that lie in memory as a run's own (images.py). Raises Refused if one of these is
    made or read by a region for which there is no such kernel.
    """
    graph, each = flat.kept, flat.regions
    rows = Rows(graph, opened)
    needs = _Needs(graph, rows)
    for loop in flat.loops:
        needs.demand((*loop.states, *loop.copies))
    found: list[Made] = []
    refused: list[Node] = []
    for i, region in reversed([*enumerate(each)]):
        if progress is not None:
            progress(len(each) - 1 - i, len(each), region.output.name)
        if any(loop.holds(i) for loop in flat.loops):
            found.append(chooser.kernels(region))
            needs.demand(region.inputs)
            continue
        if extents := _extents(region, images):
            inputs = (*region.inputs, *extents.sizes)
            ends = replace(region, inputs=inputs, least=extents.least)
            how = chooser.ending(ends)
            if how is None:
                refused += region.nodes if region.root is None else [region.root]
            else:
                found.append([(ends, how)])
            continue
        made = _ending(region, rows, needs, chooser) or chooser.kernels(region)
        for part, how in reversed(made):
            needs.see(part, how)
        found.append(made)
    if refused:
        raise Refused(refused)
    return found[::-1]


def _extents(region: Region, images: Mapping[Node, Extents]) -> Extents | None:
    """The sizes of the images that a region's anchor reads, or that it makes by itself."""
    root = region.root
    if root is not None and root.op == "lay":  # it reads them as operands
        return None
    image = region.output if root is None else root.operands[0] if root.operands else root
    return images.get(image)


def _ending(region: Region, rows: Rows, needs: _Needs, chooser: Chooser) -> Made | None:
    """The kernel of a region if it may end early, and does."""
    root = region.root
    mixed = rows.mixed(root) if root is not None else Places()
    summed = bool(mixed) and root is not None and root.op in SUMS
    count = rows.counts.get(root.operands[0] if summed and root is not None else region.output)
    if count is None or count in region.inputs or (needs.all_of(region.output) and not summed):
        return None
    if root is not None and not mixed and not (root.op in _ENDING and root in rows.counts):
        return None
    least = (max(rows.least[count.name], 1),)
    made = chooser.kernels(replace(region, inputs=(*region.inputs, count), least=least))
    kernel = made[0][1].kernel
    return made if len(made) == 1 and isinstance(kernel, Kernel) and kernel.counted else None


def ending_share(made: Made, turns: Sequence[int]) -> float:
    """The share of predicted time of kernels that end early, each of which runs so often."""
    each = [
        (isinstance(how.kernel, Kernel) and how.kernel.counted, how.predicted * times)
        for (_, how), times in zip(made, turns, strict=True)
    ]
    return sum(s for ends, s in each if ends) / max(sum(s for _, s in each), 1e-12)


class Rows:
    """What is known of rows. `counts`: values whose first dimension of more than one position is
    open, and the input that says how many of these count.
    """

    def __init__(self, graph: Graph, opened: Opened) -> None:
        sizes = {n.name: n for n in graph.inputs if n.name.startswith(SIZE)}
        self.least = {f"{SIZE}{s.name}": s.low for s in opened.inner}
        named = {s.name for s in opened.inner if positive(s) == s}  # others' are counted from 1
        self.counts: dict[Node, Node] = {}
        for node, dims in zip(graph.inputs, opened.shapes[0], strict=False):
            axis = _first(node)
            name = str(dims[axis]) if axis >= 0 else ""
            if name in named and f"{SIZE}{name}" in sizes:
                self.counts[node] = sizes[f"{SIZE}{name}"]
        for node in graph.nodes:
            if same := self.same(node):
                first = node.inputs[min(same)]
                assert first is not None
                self.counts[node] = self.counts[first]

    def same(self, node: Node) -> Places:
        """The operands whose rows are those of the output."""
        rule = _rule(node)
        found: dict[int, Node] = {}
        axis = _first(node)
        for at, operand in enumerate(node.inputs) if rule is not None and axis >= 0 else ():
            if operand is None or operand not in self.counts:
                continue
            its = _first(operand)
            as_many = operand.types[0].dims[its] == node.types[0].dims[axis]
            if as_many and rule is not None and rule(node, at, its):
                found[at] = self.counts[operand]
        first = next(iter(found.values()), None)
        return Places(at for at, count in found.items() if count is first)

    def read(self, node: Node) -> Places:
        """The operands of which a row of the output needs the same row only."""
        same = self.same(node) if node in self.counts else Places()
        return Places() if node.op in _ATTENTION and len(_heads(node)) == 1 else same

    def mixed(self, node: Node) -> Places:
        """The operands whose rows it mixes, if a kernel can end where those that count do."""
        if node.op in _ATTENTION:
            heads = _heads(node)
            alike = all(n in self.counts and n.type.rank == 3 for n in heads)
            counts = {(self.counts[n], n.type.dims[1]) for n in heads} if alike else set()
            return Places(range(len(heads))) if len(counts) == 1 else Places()
        # Integers that are summed may be zero points behind those that count, not 0.
        x = node.operands[0] if node.op in SUMS else None
        if x is None or "float" not in x.dtype or x not in self.counts:
            return Places()
        axes = axes_of(node)
        return Places([0]) if axes is not None and _first(x) in axes else Places()

    def picked(self, node: Node) -> Places:
        """The operands of which it takes rows that count, whatever is needed of its own."""
        x = node.operands[0] if node.op in ("Gather", "Slice") else None
        if x is None or x not in self.counts:
            return Places()
        axis = _first(x)
        if node.op == "Gather":
            return Places([0] if node.int("axis") % x.type.rank == axis else [])
        starts, ends = (known_value(n) for n in node.inputs[1:3])
        axes, least = sliced_axes(node), self.least.get(self.counts[x].name, 0)
        if starts is None or ends is None or axes is None or axis not in axes:
            return Places()
        start, end = (int(v.ravel()[axes.index(axis)]) for v in (starts, ends))
        return Places([0] if 0 <= start < end <= least else [])


class _Needs:
    """What those steps need that are behind the one at hand."""

    def __init__(self, graph: Graph, rows: Rows) -> None:
        self.rows = rows
        self.whole: set[Node] = set()
        """Values of which all rows are needed."""
        for node in graph.outputs:
            self._read(node, whole=False)
        self.demand((*graph.checks.values(), *graph.extents.values()))

    def all_of(self, node: Node) -> bool:
        """Are all of its rows needed?"""
        return base(node) in self.whole

    def see(self, region: Region, how: Decision) -> None:
        """Note what a step needs."""
        kernel, rows = how.kernel, self.rows
        ends = isinstance(kernel, Kernel) and kernel.counted and region.count is not None
        inside = set(region.nodes)
        whole = {region.output} if self.all_of(region.output) else set[Node]()
        for node in reversed(region.nodes):
            some = rows.picked(node) | (Places() if node in whole else rows.read(node))
            if ends and node is region.root:
                some |= rows.mixed(node)
            for at, operand in enumerate(node.inputs):
                if operand is None:
                    continue
                if operand not in inside:
                    self._read(operand, whole=at not in some)
                elif at not in some:
                    whole.add(operand)

    def demand(self, nodes: Sequence[Node]) -> None:
        """All rows of these are needed."""
        for node in nodes:
            self._read(node, whole=True)

    def _read(self, node: Node, *, whole: bool) -> None:
        while not whole and node.op in VIEWS:
            whole = node not in self.rows.counts
            node = node.operands[0]
        if whole or node not in self.rows.counts:
            self.whole.add(base(node))


def _first(node: Node) -> int:
    """Its first dimension of more than one position; -1 if there is none."""
    dims = node.types[0].dims
    return next((a for a, n in enumerate(dims) if n > 1), -1)


def _rule(node: Node) -> Rule | None:
    if node.op in ("input", "constant"):
        return None
    return _broadcast if is_elementwise(node) else _RULES.get(node.op)


def _heads(node: Node) -> list[Node]:
    """An attention's queries, keys and values; all in one where they are packed."""
    return [n for n in node.inputs[:3] if n is not None]


def axes_of(node: Node) -> list[int] | None:
    """The dimensions that a reduction is over."""
    x = node.operands[0]
    given = known_value(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    if given is None:
        over_all = len(node.operands) == 1 and not node.int("noop_with_empty_axes")
        return list(range(x.type.rank)) if over_all else None
    return [int(a) % x.type.rank for a in given.ravel()] or None


def sliced_axes(node: Node) -> list[int] | None:
    """The dimensions that are cut."""
    x, given = node.operands[0], node.inputs[3] if len(node.inputs) > 3 else None
    if given is None:
        return list(range(x.type.rank))
    axes = known_value(given)
    return None if axes is None else [int(a) % x.type.rank for a in axes.ravel()]


# -- rules


def _broadcast(node: Node, at: int, axis: int) -> bool:
    operand = node.inputs[at]
    assert operand is not None
    same = operand.type.rank - axis == node.type.rank - _first(node)
    return same and at not in TABLES.get(node.op, ())


def _viewed(node: Node, at: int, axis: int) -> bool:
    return at == 0


def _multiplied(node: Node, at: int, axis: int) -> bool:
    rank = node.operands[0].type.rank
    return at == 0 and axis < rank - 1 and rank - axis == node.type.rank - _first(node)


def _behind(node: Node, at: int, axis: int) -> bool:
    """What is done along a later dimension, or from one on."""
    return at == 0 and node.int("axis") % node.operands[0].type.rank > axis


def _reduced(node: Node, at: int, axis: int) -> bool:
    axes = axes_of(node)
    return at == 0 and axes is not None and min(axes) > axis


def _gathered(node: Node, at: int, axis: int) -> bool:
    x = node.operands[0]
    if at == 0:
        return node.int("axis") % x.type.rank > axis
    return all(n == 1 for n in x.type.dims[: node.int("axis") % x.type.rank])


def _joined(node: Node, at: int, axis: int) -> bool:
    return node.int("axis") % node.type.rank > axis


def _cut(node: Node, at: int, axis: int) -> bool:
    axes = sliced_axes(node)
    return at == 0 and axes is not None and axis not in axes


def _transposed(node: Node, at: int, axis: int) -> bool:
    perm = node.attrs["perm"]
    return isinstance(perm, Sequence) and perm[_first(node)] == axis


def _attended(node: Node, at: int, axis: int) -> bool:
    return at == 0 and axis == 1 and node.type.rank == node.operands[0].type.rank == 3


_ATTENTION = frozenset({"Attention", "attention"})
SUMS = frozenset(
    {"ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
)
_NORMS = ("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax")
_ENDING = frozenset({"matmul", "matmul_narrow", "Gather", "ReduceMean", *SUMS, *_NORMS})
"""Operators whose kernels may end early."""
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(VIEWS - {"BitCast"}, _viewed),
    **dict.fromkeys(("matmul", "matmul_narrow"), _multiplied),
    **dict.fromkeys((*_NORMS, "Split"), _behind),
    **dict.fromkeys((*SUMS, "ReduceMean"), _reduced),
    **dict.fromkeys(_ATTENTION, _attended),
    "item": _viewed,
    "Gather": _gathered,
    "Concat": _joined,
    "Slice": _cut,
    "Transpose": _transposed,
    "Expand": _broadcast,
}
