"""Sink Transposes toward the outputs until they cancel or must be materialized.

Every value is represented as `Transpose(node, perm)` without making that Transpose. An operator
that can work on permuted axes (those in `THROUGH`, and all elementwise ones) passes the permutation
on; for any other one the Transpose is made. So none is left between two convolutions, which both
read and write channels last.

    @through("Softmax")
    def _(node, inputs, sinking):        # f(Transpose(x)) -> Transpose(f'(x))
        x, = inputs
        return Seen(rebuilt(node, [x.node], axis=x.perm[axis]), x.perm)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from qcompiler.ir import Graph, Node
from qcompiler.ops import is_elementwise, make
from qcompiler.ops.quantized import TABLES
from qcompiler.rewrite.matching import const, inverse, perm_of, rebuilt, reshape, transpose

Perm = tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """A value of the graph: Transpose(node, perm); an empty `perm` is the identity."""

    node: Node
    perm: Perm = ()

    @property
    def permuted(self) -> bool:
        """Is the permutation not the identity?"""
        return bool(self.perm)

    def order(self, rank: int) -> Perm:
        """The node's axis for each axis of the value."""
        return self.perm or tuple(range(rank))


Handler = Callable[[Node, "list[Seen | None]", "Sinking"], "Seen | None"]
THROUGH: dict[str, Handler] = {}
"""Operator -> its handler for permuted inputs, which returns None where it does not apply."""


def through(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler of operators on permuted inputs."""

    def register(handler: Handler) -> Handler:
        for name in names:
            if name in THROUGH:
                raise ValueError(f"{name} is handled twice")
            THROUGH[name] = handler
        return handler

    return register


class Sinking:
    """One walk over a graph: the representation of each value, and the Transposes made so far."""

    def __init__(self) -> None:
        self.made: dict[tuple[Node, Perm], Node] = {}

    def run(self, graph: Graph) -> Graph:
        """Graph -> the same one with its Transposes moved; itself if none did."""
        seen: dict[Node, Seen] = {}
        for node in graph.nodes:
            seen[node] = self.visit(node, [None if i is None else seen[i] for i in node.inputs])
        return graph.with_outputs(self.plain(seen[o]) for o in graph.outputs)

    def visit(self, node: Node, inputs: list[Seen | None]) -> Seen:
        """One node on the representations of its inputs."""
        if node.op == "Transpose":
            return self.transposed(node, inputs[0])
        if any(i is not None and i.permuted for i in inputs):
            handler = elementwise if is_elementwise(node) else THROUGH.get(node.op)
            result = handler(node, inputs, self) if handler and _static(node) else None
            if result is not None:
                return result
        return Seen(node.with_inputs(None if i is None else self.plain(i) for i in inputs))

    def transposed(self, node: Node, source: Seen | None) -> Seen:
        """A Transpose of the graph: only its permutation is recorded."""
        assert source is not None
        perm = perm_of(node)
        both = tuple(source.order(len(perm))[a] for a in perm)
        if not source.permuted and not free(source.node, both):
            # Reuse the graph's own Transpose if one is needed.
            self.made.setdefault((source.node, both), node.with_inputs((source.node,)))
        return seen_as(source.node, both)

    def plain(self, value: Seen) -> Node:
        """The value with its axes in the graph's order."""
        return self.transpose(value.node, value.perm)

    def physical(self, value: Seen, layout: Perm) -> Node:
        """The node such that the value is `Transpose(node, layout)`."""
        order = value.order(len(layout))
        return self.transpose(value.node, tuple(order[a] for a in inverse(layout)))

    def transpose(self, node: Node, perm: Perm) -> Node:
        """Transpose(node, perm), made once; a Reshape if no element moves."""
        if perm == tuple(range(len(perm))):
            return node
        key = (node, perm)
        if key not in self.made:
            moved = node.is_constant or not free(node, perm)
            self.made[key] = (
                transpose(node, perm) if moved else reshape(node, [node.type.dims[a] for a in perm])
            )
        return self.made[key]


def free(node: Node, perm: Perm) -> bool:
    """Does a Transpose move axes of length 1 only, so that no element moves?"""
    if not node.type.static:
        return False
    dims = node.type.dims
    long = [a for a in perm if dims[a] != 1]
    return long == sorted(long) or prod(dims) == 0


def elementwise(node: Node, inputs: list[Seen | None], sinking: Sinking) -> Seen | None:
    """f(Transpose(x), y) -> Transpose(f(x, y')): lower-rank operands are permuted too."""
    rank = node.type.rank
    layout = common_layout([i for i in inputs if i is not None], rank)
    if layout == tuple(range(rank)):
        return None
    tables = TABLES.get(node.op, ())
    operands: list[Node | None] = []
    for place, i in enumerate(inputs):
        if i is None:
            operands.append(None)
        elif place in tables:
            operands.append(sinking.plain(i))
        else:
            operands.append(operand(i, layout, sinking))
    return seen_as(rebuilt(node, operands), layout)


def common_layout(inputs: Sequence[Seen], rank: int) -> Perm:
    """The axis order that moves the fewest bytes; channels last on a tie."""
    identity = tuple(range(rank))
    same_rank = [i for i in inputs if i.node.type.rank == rank and not i.node.is_constant]
    candidates = dict.fromkeys(i.order(rank) for i in same_rank)

    def cost(layout: Perm) -> tuple[int, int]:
        moved = sum(_moved_bytes(i, layout) for i in same_rank)
        preference = 0 if rank > 3 and layout == to_first(rank) else 1 if layout == identity else 2
        return moved, preference

    return min(candidates, key=cost, default=identity)


def _moved_bytes(value: Seen, layout: Perm) -> int:
    order = value.order(len(layout))
    perm = tuple(order[a] for a in inverse(layout))
    return 0 if free(value.node, perm) or perm == tuple(range(len(perm))) else value.node.type.bytes


def operand(value: Seen, layout: Perm, sinking: Sinking) -> Node:
    """An operand permuted to `layout`; missing leading axes count as 1."""
    rank = len(layout)
    missing = rank - value.node.type.rank
    if missing == 0 and not value.node.is_constant:
        return sinking.physical(value, layout)
    plain = sinking.plain(value)
    if plain.type.rank <= 1 and plain.type.size == 1:
        return plain
    dims = (1,) * missing + plain.type.dims
    order = inverse(layout)
    if plain.is_constant:
        array = plain.array.reshape(dims).transpose(order)
        while array.ndim > 1 and array.shape[0] == 1:
            array = array[0]
        return const(array)
    return sinking.physical(Seen(reshape(plain, dims)), layout)


def to_first(rank: int) -> Perm:
    """Channels last seen as channels first: [N,H,W,C] -> [N,C,H,W]."""
    return (0, rank - 1, *range(1, rank - 1))


def to_last(rank: int) -> Perm:
    """Channels first seen as channels last: [N,C,H,W] -> [N,H,W,C]."""
    return (0, *range(2, rank), 1)


def seen_as(node: Node, perm: Perm) -> Seen:
    """Transpose(node, perm), with the identity as the empty permutation."""
    return Seen(node, () if perm == tuple(range(len(perm))) else perm)


def _static(node: Node) -> bool:
    return all(t.static for t in node.types) and all(
        t.static for i in node.operands for t in i.types
    )


@through("item")
def _item(node: Node, inputs: list[Seen | None], sinking: Sinking) -> Seen | None:
    """Every output of a permuted node is permuted, except those of another rank."""
    source = inputs[0]
    assert source is not None
    made = make("item", source.node, name=node.name, index=node.int("index"))
    return seen_as(made, source.perm) if made.type.rank == len(source.perm) else Seen(made)
