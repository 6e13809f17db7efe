"""A product that is only cut into pieces is a product for each piece.

Split(MatMul(x, w) + b, axis)                        ->  MatMul(x, w1) + b1, MatMul(x, w2) + b2, ...
Split(Transpose(Reshape(MatMul(x, w) + b)), axis)    ->  the same, each reshaped and transposed
Gather(Transpose(Reshape(MatMul(x, w) + b)), index)  ->  one of them

So queries, keys and values that come out of one product lie where they are read,
and no copy cuts them apart. The axis must be, or be the front part of, the columns of w.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from qcompiler.ir import Node
from qcompiler.matching import const, ints, number, perm_of, reshape, transpose
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, Skip, op, rule


@dataclass(frozen=True)
class Source:
    """What is cut: Transpose(Reshape(MatMul(x, w) + b)), the last two of which may be missing."""

    x: Node
    weights: Node
    bias: Node | None
    shape: tuple[int, ...]
    """Of the Reshape."""
    perm: tuple[int, ...]
    name: str

    @property
    def columns_at(self) -> int | None:
        """The first axis of the Reshape that is made of columns; None where rows mix with them."""
        rows = self.x.type.dims[:-1]
        return len(rows) if self.shape[: len(rows)] == rows else None

    def piece(self, axis: int, begin: int, size: int) -> Node | Skip:
        """Entries begin ... begin + size of an axis of the whole."""
        cut, first = self.perm[axis], self.columns_at
        if first is None or cut != first:
            return Skip("what is cut is not the front part of the columns")
        inner = prod(self.shape[cut + 1 :])
        columns = slice(begin * inner, (begin + size) * inner)
        made = make("MatMul", self.x, const(self.weights.array[:, columns]), name=self.name)
        if self.bias is not None:
            made = make("Add", made, const(self.bias.array.reshape(-1)[columns]))
        shape = (*self.shape[:cut], size, *self.shape[cut + 1 :])
        return transpose(reshape(made, shape), self.perm)


def source(node: Node) -> Source | None:
    """What a Split or Gather reads -> the product it comes from."""
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
        product = next((i for i in node.operands if i.op == "MatMul"), None)
        bias = next((i for i in node.operands if i.is_constant), None)
        if product is None or bias is None or product.type != node.type:
            return None
        if bias.type.size != bias.type.dims[-1]:
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


@rule(op("item", op("Split", ANY, CONST, shared=True)))
def fuse_split(item: Node, split: Node) -> Node | Skip | None:
    """Split(Transpose(Reshape(MatMul(x, w) + b))) -> a product for each piece."""
    found, sizes = source(split.operands[0]), ints(split.operands[1])
    if found is None or sizes is None:
        return None
    index = item.int("index")
    axis = split.int("axis") % split.operands[0].type.rank
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
