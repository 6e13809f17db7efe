"""Lower matrix products: operands of rank 2 or more, transposed right operands read in place.

MatMul(a, b)                          ->  matmul(a, b)               at least two axes
matmul(a, Transpose(b))               ->  matmul(a, b, transpose_b)
matmul(Reshape(Transpose(x)), w)      ->  matmul(Reshape(x), w')     its rows reordered
"""

from __future__ import annotations

from math import prod

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.rewrite import ANY, CONST, Skip, op, rule
from qcompiler.rewrite.layouts import Perm
from qcompiler.rewrite.matching import const, inverse, perm_of, rebuilt, reshape, transpose

PRODUCTS = ("float32", "float16", "bfloat16", "float64", "int32", "int64", "uint32", "uint64")


@rule(op("MatMul", ANY, ANY))
def layout_matmul(node: Node) -> Node | Skip:
    """MatMul(a, b) -> matmul(a, b)."""
    a, b = node.operands
    if node.dtype not in PRODUCTS:
        return Skip(f"there are no {node.dtype} products")
    if not (a.type.static and b.type.static):
        return Skip(f"the shapes {a.type} and {b.type} are unknown")
    a, b = matrix(a, row=True), matrix(b, row=False)
    made = make("matmul", a, b, name=node.name)
    if made.dtype != node.dtype:
        made = make("Cast", made, to=node.dtype)
    return reshape(made, node.type.dims)


def matrix(x: Node, *, row: bool) -> Node:
    """A vector -> a matrix with one row or one column."""
    if x.type.rank != 1:
        return x
    shape = (1, x.type.size) if row else (x.type.size, 1)
    return const(x.array.reshape(shape)) if x.is_constant else reshape(x, shape)


@rule(op("matmul", ANY, op("Transpose", ANY, shared=True)))
def layout_transposed_right_side(matmul: Node, transposed: Node) -> Node | None:
    """matmul(a, Transpose(b)) -> matmul(a, b, transpose_b), if rows stay contiguous."""
    perm = perm_of(transposed)
    swapped = (*perm[:-2], perm[-1], perm[-2])
    if swapped[-1] != len(perm) - 1:
        return None
    b = transpose(transposed.operands[0], swapped, transposed.name)
    flag = 1 - matmul.int("transpose_b")
    return rebuilt(matmul, (matmul.operands[0], b), transpose_b=flag)


@rule(op("matmul", op("Reshape", op("Transpose", ANY), ANY), CONST))
def layout_flattened(matmul: Node, flat: Node, transposed: Node) -> Node | Skip | None:
    """matmul(Reshape(Transpose(x)), w) -> matmul(Reshape(x), w'), if samples are flattened."""
    x, w = transposed.operands[0], matmul.operands[1]
    perm = perm_of(transposed)
    kept = _kept(perm, transposed.type.dims, flat.type.dims)
    if kept is None:
        return None
    if matmul.int("transpose_b") or w.type.rank != 2:
        return Skip("the weights are not a single plain matrix")
    rows = reordered_rows(
        w.array, transposed.type.dims[kept:], tuple(p - kept for p in perm[kept:])
    )
    return rebuilt(matmul, (reshape(x, flat.type.dims), const(rows)))


def _kept(perm: Perm, dims: tuple[int, ...], flat: tuple[int, ...]) -> int | None:
    """The number of leading axes in place, if the Reshape merges exactly the others."""
    for kept in range(len(perm)):
        whole = prod(dims[kept:]) == flat[-1] and perm[:kept] == tuple(range(kept))
        if whole and kept < len(perm) - 1:
            return kept
    return None


def reordered_rows(w: Numbers, dims: tuple[int, ...], perm: Perm) -> Numbers:
    """w[prod(dims), N] with rows in the order of a Transpose's output -> in that of its input."""
    cube = w.reshape(*dims, w.shape[1])
    return cube.transpose(*inverse(perm), len(dims)).reshape(w.shape)
