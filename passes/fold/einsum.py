"""Lower Einsum to matrix products, transposes and reshapes.

Einsum(a, b, "bihd,bjhd->bhij")  ->  Transpose(Reshape(MatMul(Reshape(Transpose(a)), ...)))
Einsum(a, "ij->ji")              ->  Transpose(a)
Einsum(a, "ii->i")               ->  every (n + 1)-th element of a
Einsum(a, b, c, ...)             ->  Einsum(Einsum(a, b), c, ...)

Labels in both operands and the result are batch axes, those in both operands only are summed, the
others are rows and columns. A label in one operand only is summed first. An ellipsis stands for
labels of its own, with an axis of length 1 that is broadcast if it is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import Skip, op, rule
from qcompiler.rewrite.matching import int64s, reshape, transpose

_OWN = 0xE000
"""First label for an ellipsis' axes; no equation uses it."""


@dataclass(frozen=True)
class _Term:
    """An operand with a label per axis."""

    x: Node
    labels: str


@rule(op("Einsum"))
def fold_einsum(node: Node) -> Node | Skip:
    """Einsum(a, b) -> Transpose(Reshape(MatMul(a', b')))."""
    if not all(i.type.static for i in node.operands):
        return Skip("a shape is unknown")
    terms, right = _labelled(node)
    sizes: dict[str, int] = {}
    for term in terms:
        for label, size in zip(term.labels, term.x.type.dims, strict=True):
            sizes[label] = size if sizes.get(label, 1) == 1 else sizes[label]
    left = [_plain(t, sizes) for t in terms]
    made = left.pop(0)
    if not left:
        made = _summed(made, set(right))
    while left:
        other = left.pop(0)
        later = {*right, *(c for t in left for c in t.labels)}
        made = _product(node, made, other, later, sizes)
    shape = [sizes[c] for c in right]
    kept = [c for c in right if c in made.labels]
    transposed = transpose(made.x, [made.labels.index(c) for c in kept])
    seen = reshape(transposed, [sizes[c] if c in kept else 1 for c in right])
    return seen if seen.type.dims == tuple(shape) else make("Expand", seen, int64s(shape))


def _labelled(node: Node) -> tuple[list[_Term], str]:
    """The operands and the result, with a label for each axis, including an ellipsis' axes."""
    left, arrow, right = "".join(node.str("equation").split()).partition("->")
    terms, most = [], 0
    for text, x in zip(left.split(","), node.operands, strict=True):
        spare = x.type.rank - len(text.replace("...", ""))
        most = max(most, spare if "..." in text else 0)
        terms.append(
            _Term(x, text.replace("...", "".join(chr(_OWN - i) for i in range(spare, 0, -1))))
        )
    if not arrow:
        flat = left.replace(",", "").replace("...", "")
        right = "..." * ("..." in left) + "".join(
            sorted(c for c in set(flat) if flat.count(c) == 1)
        )
    return terms, right.replace("...", "".join(chr(_OWN - i) for i in range(most, 0, -1)))


def _plain(term: _Term, sizes: dict[str, int]) -> _Term:
    """Remove duplicate labels, and those of axes of length 1 that are broadcast."""
    x, labels = term.x, term.labels
    for label in dict.fromkeys(labels):
        if labels.count(label) > 1:
            x, labels = _diagonal(x, labels, label)
    kept = [i for i, c in enumerate(labels) if x.type.dims[i] == sizes[c]]
    if len(kept) == len(labels):
        return _Term(x, labels)
    return _Term(reshape(x, [x.type.dims[i] for i in kept]), "".join(labels[i] for i in kept))


def _diagonal(x: Node, labels: str, label: str) -> tuple[Node, str]:
    """Merge the axes of one label into the diagonal."""
    along = [i for i, c in enumerate(labels) if c == label]
    others = [i for i, c in enumerate(labels) if c != label]
    size, rest = x.type.dims[along[0]], [x.type.dims[i] for i in others]
    flat = reshape(transpose(x, [*others, *along]), [*rest, size ** len(along)])
    step = sum(size**i for i in range(len(along)))
    cut = [int64s([v]) for v in (0, size ** len(along), len(rest), step)]
    return make("Slice", flat, *cut), "".join(labels[i] for i in others) + label


def _product(
    node: Node, first: _Term, second: _Term, later: set[str], sizes: dict[str, int]
) -> _Term:
    """The product of two operands, summed over the labels not used later."""
    a = _summed(first, {*second.labels, *later})
    b = _summed(second, {*first.labels, *later})
    batch = [c for c in a.labels if c in b.labels and c in later]
    inner = [c for c in a.labels if c in b.labels and c not in later]
    rows = [c for c in a.labels if c not in b.labels]
    columns = [c for c in b.labels if c not in a.labels]

    def matrix(term: _Term, *groups: list[str]) -> Node:
        order = (*batch, *groups[0], *groups[1])
        transposed = transpose(term.x, [term.labels.index(c) for c in order])
        shape = [sizes[c] for c in batch] + [prod(sizes[c] for c in g) for g in groups]
        return reshape(transposed, shape)

    made = make("MatMul", matrix(a, rows, inner), matrix(b, inner, columns), name=node.name)
    order = [*batch, *rows, *columns]
    return _Term(reshape(made, [sizes[c] for c in order]), "".join(order))


def _summed(term: _Term, needed: set[str]) -> _Term:
    """An operand summed over the axes that no other term has."""
    gone = [i for i, c in enumerate(term.labels) if c not in needed]
    if not gone:
        return term
    summed = make("ReduceSum", term.x, int64s(gone), keepdims=0)
    return _Term(summed, "".join(c for c in term.labels if c in needed))
