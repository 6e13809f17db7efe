"""An Einsum of two operands is a matrix product between reorderings.

Einsum(a, b, "bihd,bjhd->bhij")  ->  Transpose(Reshape(MatMul(Reshape(Transpose(a)), ...)))
Einsum(a, "ij->ji")              ->  Transpose(a)

Labels in both operands and the result are the batch, those in both operands only are summed, the
others are rows and columns. What an operand alone sums over is summed first.
"""

from __future__ import annotations

from math import prod

from qcompiler.ir import Node
from qcompiler.matching import int64s, reshape, transpose
from qcompiler.ops import make
from qcompiler.rewrite import Skip, op, rule


@rule(op("Einsum"))
def fold_einsum(node: Node) -> Node | Skip:
    """Einsum(a, b) -> Transpose(Reshape(MatMul(a', b')))."""
    left, arrow, right = "".join(node.str("equation").split()).partition("->")
    terms = left.split(",")
    if not arrow or "." in left:
        return Skip("the labels of the result, or of the operands, are not all written out")
    if any(len(set(t)) < len(t) for t in (*terms, right)):
        return Skip("a diagonal")
    if not all(i.type.static for i in node.operands):
        return Skip("a shape is not known")
    axes = [
        pair
        for term, x in zip(terms, node.operands, strict=True)
        for pair in zip(term, x.type.dims, strict=True)
    ]
    sizes = dict(axes)
    if any(sizes[label] != size for label, size in axes):
        return Skip("an axis of length 1 is broadcast")
    if len(terms) == 1:
        a, labels = _summed(node.operands[0], terms[0], set(right))
        return transpose(a, [labels.index(c) for c in right])
    if len(terms) > 2:
        return Skip(f"{len(terms)} operands")
    return _product(node, terms, right, sizes)


def _product(node: Node, terms: list[str], right: str, sizes: dict[str, int]) -> Node:
    a, p = _summed(node.operands[0], terms[0], {*terms[1], *right})
    b, q = _summed(node.operands[1], terms[1], {*terms[0], *right})
    batch = [c for c in right if c in p and c in q]
    inner = [c for c in p if c in q and c not in right]
    rows = [c for c in right if c in p and c not in q]
    columns = [c for c in right if c in q and c not in p]

    def matrix(x: Node, labels: str, *groups: list[str]) -> Node:
        turned = transpose(x, [labels.index(c) for c in (*batch, *groups[0], *groups[1])])
        shape = [sizes[c] for c in batch] + [prod(sizes[c] for c in g) for g in groups]
        return reshape(turned, shape)

    made = make("MatMul", matrix(a, p, rows, inner), matrix(b, q, inner, columns), name=node.name)
    order = [*batch, *rows, *columns]
    whole = reshape(made, [sizes[c] for c in order])
    return transpose(whole, [order.index(c) for c in right])


def _summed(x: Node, labels: str, needed: set[str]) -> tuple[Node, str]:
    """An operand without the axes that nothing else has, summed over them."""
    gone = [i for i, c in enumerate(labels) if c not in needed]
    if not gone:
        return x, labels
    summed = make("ReduceSum", x, int64s(gone), keepdims=0)
    return summed, "".join(c for c in labels if c in needed)
