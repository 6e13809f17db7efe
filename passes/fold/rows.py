"""Drop Reshapes that merge rows for a product only, and split them again after it.

Reshape(MatMul(Reshape(x), w))      ->  MatMul(Reshape(x), w)
Reshape(MatMul(Reshape(x), w) + b)  ->  MatMul(Reshape(x), w) + b

Then the operators that follow (an activation, a residual sum) fuse with the product. Exporters
write such Reshapes for matrix-only operators: Gemm, TensorFlow's dense layers, GPT-2's Conv1D.
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.rewrite import ANY, CONST, Skip, op, rule, taken
from qcompiler.rewrite.matching import const, rebuilt, reshape

PRODUCT = op("MatMul", op("Reshape", shared=True), CONST)


@rule(op("Reshape", PRODUCT, ANY))
def fold_rows(view: Node, product: Node, inner: Node) -> Node | Skip | None:
    """Reshape(MatMul(Reshape(x), w)) -> MatMul(Reshape(x), w)."""
    return _parted(view, product, inner)


@rule(op("Reshape", op("Add", PRODUCT, taken(CONST), commutes=True), ANY))
def fold_rows_biased(
    view: Node, add: Node, product: Node, inner: Node, bias: Node
) -> Node | Skip | None:
    """Reshape(MatMul(Reshape(x), w) + b) -> MatMul(Reshape(x), w) + b."""
    if add.type != product.type or bias.type.size not in (1, bias.type.dims[-1]):
        return Skip("the addend differs from row to row")
    made = _parted(view, product, inner)
    if not isinstance(made, Node):
        return made
    return rebuilt(add, (made, const(bias.array.reshape(-1))))


def _parted(view: Node, product: Node, inner: Node) -> Node | Skip | None:
    """The product with the rows of `view`."""
    weights = product.operands[1]
    if not (view.type.static and inner.type.static) or weights.type.rank != 2:
        return None
    if view.type.rank < 2 or view.type.dims[-1] != weights.type.dims[1]:
        return Skip("columns are split too")
    rows = (*view.type.dims[:-1], weights.type.dims[0])
    return rebuilt(product, (reshape(inner.operands[0], rows), weights))
