"""Recognize layer norms and root-mean-square norms exported as several operators.

d / sqrt(mean(d * d) + epsilon), d = x - mean(x)  ->  LayerNormalization(x)
x / sqrt(mean(x * x) + epsilon)                   ->  RMSNormalization(x)
LayerNormalization(x, s, b) * c                   ->  LayerNormalization(x, s * c, b * c)
LayerNormalization(x, s, b) + c                   ->  LayerNormalization(x, s, b + c)
Transpose(LayerNormalization(x)) * c              ->  Transpose(LayerNormalization(x) * c')

The means are over the last axes; for other axes, x is transposed. The
quotient may be a division, or a product with Reciprocal(Sqrt), 1 / Sqrt, or Pow(-0.5); the square a
Pow or a product.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule, taken
from qcompiler.rewrite.matching import (
    FLOATS,
    axes_of,
    const,
    exact,
    input_at,
    inverse,
    number,
    per_channel,
    perm_of,
    rebuilt,
    transpose,
)

C = taken(CONST)
NORMS = {"LayerNormalization", "RMSNormalization"}


@rule(op("Div|Mul", ANY, ANY))
def fuse_layer_norm(root: Node) -> Node | Skip | None:
    """d / sqrt(mean(d * d) + epsilon) -> LayerNormalization(x) or RMSNormalization(x)."""
    for scaled, variance in _quotients(root):
        parts = _mean_square(variance)
        if parts is None or root.dtype not in FLOATS:
            continue
        squared, axes, epsilon = parts
        if squared is not scaled:
            continue
        x = _centred(scaled, axes)
        if x is not None:
            return _normalized("LayerNormalization", x, axes, epsilon)
        return _normalized("RMSNormalization", scaled, axes, epsilon)
    return None


def _normalized(name: str, x: Node, axes: tuple[int, ...], epsilon: float) -> Node | Skip:
    """The norm over some axes, transposed to be the last ones."""
    if not x.type.static:
        return Skip(f"the shape {x.type} is unknown")
    rank = x.type.rank
    perm = (*(a for a in range(rank) if a not in axes), *axes)
    transposed = transpose(x, perm)
    first = rank - len(axes)
    ones = const(np.ones(transposed.type.dims[first:]), like=x)
    return transpose(
        make(name, transposed, ones, axis=first - rank, epsilon=epsilon), inverse(perm)
    )


def _quotients(root: Node) -> Iterator[tuple[Node, Node]]:
    """Every match of a node as x / sqrt(v): (x, v)."""
    a, b = root.operands
    if root.op == "Div":
        v = _root(b, 1)
        if v is not None:
            yield a, v
        return
    for x, y in ((a, b), (b, a)):
        v = _root(y, -1)
        if v is not None:
            yield x, v


def _root(node: Node, sign: int) -> Node | None:
    """sqrt(v) (sign 1) or 1 / sqrt(v) (sign -1), however written -> v."""
    if node.op == "Sqrt" and sign == 1:
        return node.operands[0]
    if node.op == "Pow" and number(node.operands[1]) == 0.5 * sign:
        return node.operands[0]
    if node.op == "Reciprocal":
        return _root(node.operands[0], -sign)
    if node.op == "Div" and number(node.operands[0]) == 1:
        return _root(node.operands[1], -sign)
    return None


def _mean_square(node: Node) -> tuple[Node, tuple[int, ...], float] | None:
    """mean(d * d, axes) + epsilon -> (d, axes, epsilon)."""
    if node.op != "Add":
        return None
    for mean, added in (node.operands, node.operands[::-1]):
        epsilon = number(added)
        if epsilon is None or mean.op != "ReduceMean" or not mean.int("keepdims"):
            continue
        square = _squared(mean.operands[0])
        axes = axes_of(mean, input_at(mean, 1), mean.type.rank)
        if square is not None and axes:
            return square, axes, epsilon
    return None


def _squared(node: Node) -> Node | None:
    """d * d or d ** 2 -> d."""
    if node.op == "Pow" and number(node.operands[1]) == 2:
        return node.operands[0]
    if node.op == "Mul" and node.operands[0] is node.operands[1]:
        return node.operands[0]
    return None


def _centred(node: Node, axes: tuple[int, ...]) -> Node | None:
    """x - mean(x, axes) -> x."""
    if node.op != "Sub":
        return None
    x, mean = node.operands
    same = mean.op == "ReduceMean" and mean.operands[0] is x and mean.int("keepdims")
    return x if same and axes_of(mean, input_at(mean, 1), x.type.rank) == axes else None


@rule(op("Mul", op("LayerNormalization|RMSNormalization", ANY, CONST, OPTIONAL), C, commutes=True))
def fuse_norm_scale(mul: Node, norm: Node, factor: Node) -> Node | Skip:
    """LayerNormalization(x, s, b) * c -> LayerNormalization(x, s * c, b * c)."""
    c = _whole(factor, norm)
    bias = input_at(norm, 2)
    if c is None or mul.type != norm.type or len(norm.types) > 1:
        return Skip("the factor is not per normalized element")
    if bias is not None and not bias.is_constant:
        return Skip("the bias is not constant")
    x, scale = norm.operands[:2]
    made = [x, const(exact(scale) * c, like=scale)]
    if bias is not None:
        made.append(const(exact(bias) * c, like=bias))
    return rebuilt(norm, made)


@rule(op("Mul|Add", op("Transpose", op("LayerNormalization|RMSNormalization")), C, commutes=True))
def fuse_norm_turned(root: Node, transposed: Node, norm: Node, c: Node) -> Node | Skip:
    """Transpose(LayerNormalization(x)) * c -> Transpose(LayerNormalization(x) * c')."""
    axis = perm_of(transposed).index(norm.type.rank - 1)
    flat = per_channel(c.array, root.type.rank, axis)
    if flat is None or root.type != transposed.type:
        return Skip("the constant is not per channel")
    return rebuilt(transposed, (make(root.op, norm, const(flat), name=root.name),))


@rule(op("Add", op("LayerNormalization", ANY, CONST, OPTIONAL), C, commutes=True))
def fuse_norm_bias(add: Node, norm: Node, added: Node) -> Node | Skip:
    """LayerNormalization(x, s, b) + c -> LayerNormalization(x, s, b + c)."""
    c = _whole(added, norm)
    bias = input_at(norm, 2)
    if c is None or add.type != norm.type or len(norm.types) > 1:
        return Skip("the constant is not per normalized element")
    if bias is not None and not bias.is_constant:
        return Skip("the bias is not constant")
    whole = c if bias is None else exact(bias) + c
    return rebuilt(norm, (*norm.operands[:2], const(whole, like=norm)))


def _whole(factor: Node, norm: Node) -> Numbers | None:
    """A constant that varies over the normalized axes only -> in their shape; else None."""
    shape = norm.type.dims[norm.int("axis") % norm.type.rank :]
    array = exact(factor)
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array[0]
    if array.ndim > len(shape):
        return None
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        return None
