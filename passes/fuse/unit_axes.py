"""Drop Reshapes around a sum that only add axes of length 1, by reshaping the other operand.

Reshape(Add(Reshape(x), m))           ->  Add(x, Reshape(m))            likewise Mul
Reshape(Softmax(Add(Reshape(x), m)))  ->  Softmax(Add(x, Reshape(m)))

where the outer Reshape restores x's shape. So attention masks (of a window, of a batch) are added
to the scores in their own shape. It fuses, and does not fold: the layout stage moves such Reshapes
the other way.
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.rewrite import ANY, Skip, op, rule, taken
from qcompiler.rewrite.matching import rebuilt, reshape

ADDED = op("Add|Mul", op("Reshape", ANY, ANY), taken(ANY), commutes=True)


@rule(op("Reshape", ADDED, ANY))
def fuse_unit_axes(view: Node, add: Node, inner: Node, other: Node) -> Node | Skip | None:
    """Reshape(Add(Reshape(x), m)) -> Add(x, Reshape(m))."""
    return _without(view, add, inner, other)


@rule(op("Reshape", op("Softmax", ADDED), ANY))
def fuse_unit_axes_softmax(
    view: Node, softmax: Node, add: Node, inner: Node, other: Node
) -> Node | Skip | None:
    """Reshape(Softmax(Add(Reshape(x), m))) -> Softmax(Add(x, Reshape(m)))."""
    if softmax.int("axis") not in (-1, softmax.type.rank - 1):
        return None
    made = _without(view, add, inner, other)
    return rebuilt(softmax, (made,), axis=-1) if isinstance(made, Node) else made


def _without(view: Node, add: Node, inner: Node, other: Node) -> Node | Skip | None:
    x = inner.operands[0]
    if not (view.type.static and inner.type.static and other.type.static):
        return None
    dims, wide = view.type.dims, add.type.dims
    if x.type != view.type or inner.type != add.type:
        return None
    if [d for d in dims if d != 1] != [d for d in wide if d != 1]:
        return Skip("the Reshape does more than add axes of length 1")
    if dims[-1:] != wide[-1:]:
        return Skip("the last axis differs")
    full = (1,) * (len(wide) - other.type.rank) + other.type.dims
    kept = iter([size for size, whole in zip(full, wide, strict=True) if whole != 1])
    fitting = reshape(other, tuple(1 if d == 1 else next(kept) for d in dims))
    return rebuilt(add, tuple(x if i is inner else fitting for i in add.operands))
