"""Split a product that is only read in slices into a product per slice.

Split(MatMul(x, w) + b, axis)                        ->  MatMul(x, w1) + b1, MatMul(x, w2) + b2, ...
Split(Transpose(Reshape(MatMul(x, w) + b)), axis)    ->  the same, each reshaped and transposed
Gather(Transpose(Reshape(MatMul(x, w) + b)), index)  ->  one of them
Slice(Transpose(Reshape(MatMul(x, w) + b)), ...)     ->  one of them, if all readers are Slices that
                                                         do not overlap

Then queries, keys and values from one product are stored as they are read, without a copy to split
them. The axis must be the columns of w, or the leading part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from qcompiler.ir import Graph, Node
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Explain, Skip, graph_pass, op, rule
from qcompiler.rewrite.matching import const, either, ints, number, perm_of, reshape, transpose


@dataclass(frozen=True)
class Source:
    """The sliced value: Transpose(Reshape(MatMul(x, w) + b)); the outer two are optional."""

    x: Node
    weights: Node
    bias: Node | None
    shape: tuple[int, ...]
    """Shape of the Reshape."""
    perm: tuple[int, ...]
    name: str

    def piece(self, axis: int, begin: int, size: int) -> Node | Skip:
        """Entries [begin, begin + size) of an axis of the whole."""
        cut = self.perm[axis]
        if prod(self.shape[:cut]) != prod(self.x.type.dims[:-1]):
            return Skip("the sliced axis is not the leading part of the columns")
        inner = prod(self.shape[cut + 1 :])
        columns = slice(begin * inner, (begin + size) * inner)
        made = make("MatMul", self.x, const(self.weights.array[:, columns]), name=self.name)
        if self.bias is not None:
            made = make("Add", made, const(self.bias.array.reshape(-1)[columns]))
        shape = (*self.shape[:cut], size, *self.shape[cut + 1 :])
        return transpose(reshape(made, shape), self.perm)


def source(node: Node) -> Source | None:
    """The input of a Split or Gather -> the product it comes from."""
    if not node.type.static:
        return None
    perm = tuple(range(node.type.rank))
    if node.op == "Transpose":
        perm, node = perm_of(node), node.operands[0]
    shape = node.type.dims
    if node.op == "Reshape":
        node = node.operands[0]
    bias = None
    if node.op == "Add":
        found = either(node, lambda i: i.is_constant)
        if found is None or found[1].type != node.type:
            return None
        bias, product = found
        if bias.type.dims[-1:] != (bias.type.size,):  # also if the bias is a scalar
            return None
        node = product
    if node.op != "MatMul":
        return None
    x, weights = node.operands
    if not weights.is_constant or weights.type.rank != 2 or x.type.rank < 2:
        return None
    if bias is not None and bias.type.size != weights.type.dims[1]:
        return None
    return Source(x, weights, bias, shape, perm, node.name)


@rule(op("item", op("Split", ANY, OPTIONAL, shared=True)))
def fuse_split(item: Node, split: Node) -> Node | Skip | None:
    """Split(Transpose(Reshape(MatMul(x, w) + b))) -> a product per piece."""
    found = source(split.operands[0])
    if found is None:
        return None
    axis = split.int("axis") % split.operands[0].type.rank
    sizes, index = [t.dims[axis] for t in split.types], item.int("index")
    return found.piece(axis, sum(sizes[:index]), sizes[index])


@rule(op("Gather", ANY, CONST))
def fuse_gathered(gather: Node) -> Node | Skip | None:
    """Gather(Transpose(Reshape(MatMul(x, w) + b)), index) -> the product for that index."""
    found, index = source(gather.operands[0]), number(gather.operands[1])
    if found is None or index is None or gather.operands[1].type.rank:
        return None
    axis = gather.int("axis") % gather.operands[0].type.rank
    length = gather.operands[0].type.dims[axis]
    piece = found.piece(axis, int(index) % length, 1)
    return piece if isinstance(piece, Skip) else reshape(piece, gather.type.dims)


@graph_pass
class FuseSlices:
    """Slice(Transpose(Reshape(MatMul(x, w) + b))) -> the product for that part."""

    explain: Explain | None = None

    def __call__(self, graph: Graph) -> Graph:
        """Split every product whose only readers are Slices that do not overlap."""
        cuts = {node: cut for node in graph.nodes if (cut := _cut(node)) is not None}
        read: dict[Node, list[Node]] = {}
        for node in cuts:
            read.setdefault(node.operands[0], []).append(node)
        alone = {n for n, slices in read.items() if graph.readers[n] == len(slices)}
        apart = {n for n in alone if _apart([cuts[i] for i in read[n]])}
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
            new[node] = moved
            if node in cuts and node.operands[0] in apart:
                new[node] = self._made(moved, *cuts[node])
        return graph.with_outputs(new[o] for o in graph.outputs)

    def _made(self, node: Node, axis: int, begin: int, size: int) -> Node:
        found = source(node.operands[0])
        if found is None:
            return node
        piece = found.piece(axis, begin, size)
        if not isinstance(piece, Skip):
            return piece
        if self.explain is not None:
            self.explain("fuse_slices", node, piece.reason)
        return node


def _cut(node: Node) -> tuple[int, int, int] | None:
    """A contiguous Slice along one axis -> (axis, first, count)."""
    if node.op != "Slice" or not (node.type.static and node.operands[0].type.static):
        return None
    starts, _, axes, steps = (ints(i) for i in (*node.inputs[1:], None, None)[:4])
    if starts is None or axes is None or len(starts) != 1 or steps not in (None, (1,)):
        return None
    axis = axes[0] % node.type.rank
    length, size = node.operands[0].type.dims[axis], node.type.dims[axis]
    begin = starts[0] + length if starts[0] < 0 else starts[0]
    return axis, min(max(begin, 0), length - size), size


def _apart(cuts: Sequence[tuple[int, int, int]]) -> bool:
    """Are there several, along one axis and without overlap?"""
    ordered = sorted(cuts, key=lambda c: c[1])
    pairs = pairwise(ordered)
    return len(cuts) > 1 and all(a[0] == b[0] and a[1] + a[2] <= b[1] for a, b in pairs)
