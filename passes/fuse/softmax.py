"""Recognize a softmax exported as several operators.

Exp(x - ReduceMax(x)) / ReduceSum(Exp(..))  ->  Softmax(x)

Along one axis; also without the maximum.
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import ANY, Skip, op, rule
from qcompiler.rewrite.matching import axes_of, input_at


@rule(op("Div", op("Exp", ANY, shared=True), op("ReduceSum", op("Exp", ANY, shared=True), ANY)))
def fuse_softmax(div: Node, exp: Node, total: Node, summed: Node) -> Node | Skip | None:
    """Exp(x - max) / ReduceSum(Exp(x - max)) -> Softmax(x)."""
    if exp is not summed:
        return None
    rank = exp.type.rank
    axes = axes_of(total, input_at(total, 1), rank)
    if axes is None or len(axes) != 1 or not total.int("keepdims"):
        return Skip("the sum is not along one axis with keepdims")
    x = exp.operands[0]
    if x.op == "Sub" and x.operands[1].op == "ReduceMax":
        value, largest = x.operands
        same = largest.operands[0] is value and largest.int("keepdims")
        if same and axes_of(largest, input_at(largest, 1), rank) == axes:
            x = value
    return make("Softmax", x, axis=axes[0])
