"""Recognize attention as PyTorch and transformers export it.

MatMul(Softmax(MatMul(q * c, Transpose(k)) * d + mask), v)  ->  Attention(q, k, v, mask, c * d)
MatMul(Where(IsNaN(p), 0, p), v), p = Softmax(... + Where(keep, 0, -inf))
                                                            ->  Attention(q, k, v, keep)
MatMul(Softmax(tanh(MatMul(q, Transpose(k)) / c) * c), v)   ->  Attention(q, k, v){softcap=c}
(MatMul(q, k) * c + mask) + other                           ->  MatMul(q, k) * c + (mask + other)
MatMul(Softmax(Where(position < size, scores, -inf)), v)   ->  Attention(q, k, v, mask)
Attention(q, repeat(k), repeat(v))                          ->  Attention(q, k, v)

c and d are numbers: products or divisions, before q k' (on q, on k, or its square root on both) or
after it. The mask is added, or selected by Where(keep, scores, lowest). q[B,H,S,D], k[B,H,T,D] and
v[B,H,T,E] keep their layout; products of three dimensions get a fourth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite

import numpy as np
from ml_dtypes import finfo

from qcompiler.ir import SIZE, Node, numpy_dtype
from qcompiler.ops import make
from qcompiler.rewrite import ANY, OPTIONAL, Skip, op, rule, taken
from qcompiler.rewrite.matching import (
    FLOATS,
    const,
    either,
    number,
    perm_of,
    rebuilt,
    reshape,
    transpose,
)

LOWEST, NO_WEIGHT = -1e30, -1e8
"""Adding a mask of the first value or below equals replacing the scores, since they are lost in
rounding, even in a fully masked row. Scores masked by the second get no weight next to an unmasked
one.
"""


@dataclass(frozen=True)
class Scores:
    """q k' * scale + mask; with a cap, cap * tanh(q k' * scale / cap) + mask."""

    q: Node
    k: Node
    scale: float
    cap: float
    mask: Node | None


@rule(op("MatMul", op("Softmax"), ANY))
def fuse_attention(product: Node, softmax: Node) -> Node | Skip | None:
    """MatMul(Softmax(scores), v) -> Attention(q, k, v, mask)."""
    return _fused(product, softmax)


@rule(op("MatMul", op("Where", op("IsNaN"), ANY, op("Softmax")), ANY))
def fuse_attention_without_nan(
    product: Node, where: Node, is_nan: Node, softmax: Node
) -> Node | Skip | None:
    """MatMul(Where(IsNaN(p), 0, p), v), p = Softmax(scores) -> Attention(q, k, v, mask)."""
    if is_nan.operands[0] is not softmax or number(where.operands[1]) != 0:
        return None
    return _fused(product, softmax, hidden_are_zero=True)


def _fused(product: Node, softmax: Node, hidden_are_zero: bool = False) -> Node | Skip | None:
    v, scores_of = product.operands[1], softmax.operands[0]
    rank = product.type.rank
    if softmax.int("axis") not in (-1, rank - 1) or product.dtype not in FLOATS - {"float64"}:
        return None
    scores = _scores(scores_of)
    if scores is None or isinstance(scores, Skip):
        return scores
    q, k, mask = scores.q, scores.k, scores.mask
    if hidden_are_zero and mask is not None:
        telling = _marking_masked_rows(mask)
        if isinstance(telling, Skip):
            return telling
        mask = telling
    if rank not in (3, 4) or any(n.type.rank != rank or not n.type.static for n in (q, k, v)):
        return Skip(f"products of {rank} dimensions with different or unknown shapes")
    if not q.shape[: rank - 2] == k.shape[: rank - 2] == v.shape[: rank - 2]:
        return Skip("q, k and v are broadcast against each other")
    if rank == 3:
        q, k, v = (reshape(n, (n.type.dims[0], 1, *n.type.dims[1:])) for n in (q, k, v))
        mask = mask and _with_heads(mask)
    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    made = make("Attention", *inputs, scale=scores.scale, softcap=scores.cap)
    return reshape(made, product.type.dims)


def _marking_masked_rows(mask: Node) -> Node | Skip:
    """An additive mask -> one with which fully masked rows give 0: a boolean one, if masked scores
    are -inf. If all of the mask is finite, it is kept.
    """
    if mask.is_constant and np.isfinite(mask.array).any(-1).all():
        return mask
    if mask.op == "Where":
        keep, (kept, hidden) = mask.operands[0], map(number, mask.operands[1:])
        if kept is not None and hidden is not None and isfinite(kept) and isfinite(hidden):
            return mask
        if (kept, hidden) == (0, -inf):
            return keep
        if (kept, hidden) == (-inf, 0):
            return make("Not", keep)
    return Skip("the mask may cover a whole row")


def _with_heads(mask: Node) -> Node:
    """A mask of [B,S,T] -> of [B,1,S,T]."""
    if mask.type.rank < 3:
        return mask
    return reshape(mask, (mask.type.dims[0], 1, *mask.type.dims[1:]))


def _scores(node: Node) -> Scores | Skip | None:
    """The softmax's input -> q, k, scale, cap and mask."""
    if node.op == "Where" and number(node.operands[2]) == -inf and _never_empty(node.operands[0]):
        return _hiding(node.operands[0], _scores(node.operands[1]))
    outer, node = _unscaled(node)
    mask = None
    if node.op == "Add":
        found = either(node, _product)
        if found is None:
            return None
        product, mask = found
        inner, node = _unscaled(product)
    elif node.op == "Where":
        chosen = _chosen(node)
        if chosen is None or isinstance(chosen, Skip):
            return chosen
        mask, product = chosen
        inner, node = _unscaled(product)
    else:
        inner = 1.0
    scale, cap, node = _uncapped(outer * inner, node)
    if node.op != "MatMul":
        return None
    if mask is not None:
        if outer != 1:
            return Skip("the mask is scaled with the scores")
        if not mask.type.static or mask.type.rank > node.type.rank:
            return Skip(f"the mask is {mask.type}")
    left, right = node.operands
    q_scale, q = _unscaled(left)
    k_scale, k = _unscaled_transpose(right)
    return Scores(q, k, scale * q_scale * k_scale, cap, mask)


def _chosen(where: Node) -> tuple[Node, Node] | Skip | None:
    """Where(keep, scores, lowest) or Where(hide, lowest, scores) -> (mask to add, scores)."""
    condition, a, b = where.operands
    if not condition.type.static:
        return None
    for scores, other, kept in ((a, b, True), (b, a, False)):
        if not _product(scores):
            continue
        lowest = number(other)
        if lowest is None or lowest > (NO_WEIGHT if _keeps_some(condition, kept) else LOWEST):
            return Skip("masked scores are not set to a very low number")
        pair = (const(0.0, like=where), const(lowest, like=where))
        return make("Where", condition, *(pair if kept else pair[::-1])), scores
    return None


def _hiding(valid: Node, scores: Scores | Skip | None) -> Scores | Skip | None:
    """Scores of which only valid ones count, also in a row where all of these are masked: what
    else is masked stays above what is not valid.
    """
    if scores is None or isinstance(scores, Skip):
        return scores
    if scores.mask is None:
        return replace(scores, mask=valid)
    lowest = finfo(numpy_dtype(scores.mask.dtype)).min  # type: ignore[no-untyped-call]
    least = max(-1e38, float(lowest))
    raised = make("Max", scores.mask, const(least, like=scores.mask))
    return replace(scores, mask=make("Where", valid, raised, const(-inf, like=scores.mask)))


def _never_empty(mask: Node) -> bool:
    """Is it where positions are below sizes of a run, and so true at the first?"""
    while mask.op in ("Reshape", "And"):
        if mask.op == "And" and not _never_empty(mask.operands[1]):
            return False
        mask = mask.operands[0]
    if mask.op != "Less" or not mask.operands[0].is_constant:
        return False
    places, size = mask.operands[0].array, mask.operands[1]
    first = places.size > 0 and not places.flat[0]
    return bool(first and size.op == "input" and size.name.startswith(SIZE))


def _keeps_some(condition: Node, kept: bool) -> bool:
    """Is every row known to have an unmasked score?"""
    return condition.is_constant and bool(np.any(condition.array == kept, axis=-1).all())


def _product(node: Node) -> bool:
    """Is it a product, possibly scaled and capped?"""
    return _uncapped(*_unscaled(node))[2].op == "MatMul"


def _uncapped(scale: float, node: Node) -> tuple[float, float, Node]:
    """tanh(x * c) * scale -> (c * scale, scale, x); anything else -> (scale, 0, itself)."""
    if node.op != "Tanh" or scale <= 0:
        return scale, 0.0, node
    inner, x = _unscaled(node.operands[0])
    return inner * scale, scale, x


@rule(op("Add", op("Add", ANY, ANY), taken(ANY), commutes=True))
def fuse_masks(add: Node, inner: Node, other: Node) -> Node | None:
    """(MatMul(q, k) * c + mask) + other -> MatMul(q, k) * c + (mask + other)."""
    found = either(inner, _product)
    if found is None or not add.type.static or found[0].type != add.type:
        return None
    product, mask = found
    if _product(mask) or _product(other):
        return None  # a sum of products: which one is the mask is ambiguous
    scores = _uncapped(*_unscaled(product))[2]
    if any(i.is_constant for i in scores.operands):
        return None  # not scores: a layer, its bias, and a residual
    return make("Add", product, make("Add", mask, other), name=add.name)


def _unscaled(node: Node) -> tuple[float, Node]:
    """x * c, x / c, repeatedly -> (the product of the numbers, x)."""
    scale = 1.0
    while node.op in ("Mul", "Div"):
        a, b = node.operands
        factor, other = number(b), number(a)
        if factor is not None and node.type == a.type and factor != 0:
            scale, node = (scale * factor if node.op == "Mul" else scale / factor), a
        elif node.op == "Mul" and other is not None and node.type == b.type:
            scale, node = scale * other, b
        else:
            break
    return scale, node


def _unscaled_transpose(node: Node) -> tuple[float, Node]:
    """A right operand k' (the last two axes swapped, possibly scaled) -> (scale, k)."""
    scale, node = _unscaled(node)
    rank = node.type.rank
    swap = (*range(rank - 2), rank - 1, rank - 2)
    if node.op == "Reshape" and _swaps_matrices(node.operands[0], node.type.dims):
        dims = node.type.dims
        return scale, reshape(node.operands[0].operands[0], tuple(dims[a] for a in swap), node.name)
    if node.op != "Transpose":
        return scale, transpose(node, swap)
    inner, source = _unscaled(node.operands[0])
    perm = perm_of(node)
    return scale * inner, transpose(source, tuple(perm[a] for a in swap), node.name)


def _swaps_matrices(node: Node, dims: tuple[int, ...]) -> bool:
    """Is it a Transpose of the last two axes whose result ends in the last two of `dims`?"""
    if node.op != "Transpose" or len(dims) < 2 or node.type.dims[-2:] != dims[-2:]:
        return False
    rank = node.type.rank
    return perm_of(node) == (*range(rank - 2), rank - 1, rank - 2)


EXPANDED = op("Expand", op("Reshape", shared=True), ANY, shared=True)
REPEATED = op("Reshape", EXPANDED, ANY, shared=True)


@rule(op("Attention", ANY, REPEATED, REPEATED, OPTIONAL))
def fuse_grouped_heads(attention: Node, *repeated: Node) -> Node | Skip | None:
    """Attention(q, repeat(k), repeat(v)) -> Attention(q, k, v): heads of q share heads of k."""
    k, v = _grouped(*repeated[:3]), _grouped(*repeated[3:])
    if k is None or v is None or k.shape[1] != v.shape[1]:
        return Skip("equal heads of k and v are not adjacent")
    return rebuilt(attention, (attention.operands[0], k, v, *attention.inputs[3:]))


def _grouped(whole: Node, expand: Node, split: Node) -> Node | None:
    """[B,H,S,D] reshaped to [B,H,1,S,D], repeated n times, reshaped to [B,H*n,S,D] -> [B,H,S,D]."""
    if not (whole.type.static and split.type.static) or split.type.rank != 5:
        return None
    batch, heads, one, length, size = split.type.dims
    times = expand.type.dims[2]
    fits = one == 1 and expand.shape == (batch, heads, times, length, size)
    if not fits or whole.shape != (batch, heads * times, length, size):
        return None
    return reshape(split.operands[0], (batch, heads, length, size))
