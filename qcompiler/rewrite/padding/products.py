"""Products of padded values. Along an open size that is summed, what is not valid is 0 on one side,
and finite on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim, Node
from qcompiler.ops import make
from qcompiler.rewrite.matching import const, int64s, reshape, to_dtype
from qcompiler.rewrite.padding.digits import Digits, digits_of, is_open
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.repeats import repeated
from qcompiler.rewrite.padding.rules import NONE, pads, together

_LINEAR = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "item", "Split"})
_LINEAR |= {"Add", "Sub", "Mul", "Div", "Cast"}
"""What is followed from values of attention to the product that they come from."""
_SCORES = frozenset({"Add", "Mul", "Div"})
"""What is followed from scores to their product."""


def finite(p: Padding, value: Padded, axis: int, source: Node) -> Padded:
    """A value that is finite where it is not valid along a dimension. Where it is made by a product
    with constants, what that product reads is best set to 0: it serves several such values.
    """
    if not is_open(value.dims[axis]) or axis in value.zero | value.calm:
        return value
    origin = _origin(p, source)
    if origin is not None:
        p.wanted.add(origin)
    return p.masked(value, [axis], 0)


def want_finite_keys(p: Padding, scores: Node) -> None:
    """See to it that scores of keys that are not valid are finite, so that a mask which is added
    hides them as well as one that selects: attention is one kernel then.
    """
    while scores.op in _SCORES:
        scores = next((i for i in scores.operands if not i.is_constant and i in p.known), scores)
        if scores.op not in (*_SCORES, "MatMul"):
            return
    keys = scores.operands[1] if scores.op == "MatMul" else None
    if keys is None or keys not in p.known or keys.is_constant:
        return
    value = p.value(keys)
    axis = value.rank - 1
    if value.rank > 1 and is_open(value.dims[axis]) and axis not in value.zero | value.calm:
        origin = _origin(p, keys)
        p.wanted.add(keys if origin is None or origin in p.zeroed else origin)


def _origin(p: Padding, node: Node) -> Node | None:
    """What the product with constants reads that a value is made by; None for other values."""
    while node.op in _LINEAR:
        moving = [i for i in node.operands if i in p.known and not i.is_constant]
        if not moving or any(not p.value(i).node.is_constant for i in moving[1:]):
            return None
        node = moving[0]
    if node.op not in ("MatMul", "Gemm") or not p.value(node.operands[1]).node.is_constant:
        return None
    source = node.operands[0]
    return source if source.op not in ("input", "item") and len(source.types) == 1 else None


@pads("MatMul")
def _matmul(p: Padding, node: Node) -> Padded:
    a, b = (p.value(i) for i in node.operands)
    if min(a.rank, b.rank) < 2 and (a.open or b.open):
        (a, b), (one, other) = (_matrix(p, v, i) for i, v in enumerate((a, b))), (a, b)
        made = _product(p, node, a, b)
        axes = ([made.rank - 2] if one.rank < 2 else []) + (
            [made.rank - 1] if other.rank < 2 else []
        )
        return _dropped(p, made, axes)
    return _product(p, node, a, b)


def _matrix(p: Padding, value: Padded, side: int) -> Padded:
    """A vector as a row on the left, or a column on the right."""
    if value.rank > 1:
        return value
    count = value.node.type.size
    shape = (1, count) if side == 0 else (count, 1)
    dims = ((), value.dims[0]) if side == 0 else (value.dims[0], ())
    return Padded(make("Reshape", value.node, int64s(shape)), dims)


def _dropped(p: Padding, value: Padded, axes: list[int]) -> Padded:
    kept = [i for i in range(value.rank) if i not in axes]
    shape = int64s([value.node.type.dims[i] for i in kept])
    return Padded(make("Reshape", value.node, shape), tuple(value.dims[i] for i in kept))


def _product(p: Padding, node: Node, a: Padded, b: Padded) -> Padded:
    if a.dims[-1] != b.dims[-2]:
        a, b = p.prefix(a, -1), p.prefix(b, -2)
    if a.dims[-1] != b.dims[-2]:
        raise p.refused("what it sums is only equally long for some sizes")
    if is_open(a.dims[-1]):
        k, other = a.rank - 1, b.rank - 2
        if k not in a.zero and other in b.zero:
            a = finite(p, a, k, node.operands[0])
        else:
            a, b = p.masked(a, [k], 0), finite(p, b, other, node.operands[1])
    batch = max(a.rank, b.rank) - 2
    outer = [Padded(v.node, v.dims[:-2]) for v in (a, b)]
    same, dims = together(p, outer, batch)
    a, b = (
        Padded(s.node, (*s.dims, *v.dims[-2:]), v.zero, v.calm)
        for s, v in zip(same, (a, b), strict=True)
    )
    made = make("MatMul", a.node, b.node, name=node.name)
    rows = NONE
    if b.node.is_constant and _finite(b.node):
        rows = a.zero - {a.rank - 1}
    return Padded(made, (*dims, a.dims[-2], b.dims[-1]), rows, rows)


def _finite(constant: Node) -> bool:
    return bool(np.isfinite(constant.array.astype(np.float64)).all())


@pads("Gemm")
def _gemm(p: Padding, node: Node) -> Padded:
    a, b = (p.value(i) for i in node.operands[:2])
    summed = (0 if node.int("transA") else 1, 1 if node.int("transB") else 0)
    if a.dims[summed[0]] != b.dims[summed[1]]:
        a, b = p.prefix(a, summed[0]), p.prefix(b, summed[1])
    if is_open(a.dims[summed[0]]):
        a, b = p.masked(a, [summed[0]], 0), p.masked(b, [summed[1]], 0)
    dims = (a.dims[1 - summed[0]], b.dims[1 - summed[1]])
    nodes = [a.node, b.node]
    for i in node.operands[2:]:
        c = p.value(i)
        shifted = dict(zip(range(2 - c.rank, 2), c.dims, strict=True))
        if any(d and d != dims[at] for at, d in shifted.items()):
            raise p.refused("what it adds is not open as the product is")
        nodes.append(c.node)
    made = make("Gemm", *nodes, name=node.name, **node.attrs)
    plain = all(n.is_constant and _finite(n) for n in nodes[1:]) and not node.int("transA")
    calm = a.zero & {0} if plain else NONE
    return Padded(made, dims, NONE, calm)


@pads("Einsum")
def _einsum(p: Padding, node: Node) -> Padded:
    """Letters that are summed are 0 on all sides where they are not valid."""
    values = [p.value(i) for i in node.operands]
    terms, result = _letters(node.str("equation"), [v.rank for v in values])
    lengths = {n for t in terms for n in t}
    for letter in lengths:
        places = [(i, a) for i, t in enumerate(terms) for a, n in enumerate(t) if n == letter]
        if len({values[i].dims[a] for i, a in places} - {()}) > 1:
            for i, a in places:
                values[i] = p.prefix(values[i], a)
    found: dict[str, Digits] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, digits in zip(term, value.dims, strict=True):
            if found.setdefault(letter, digits) in ((), digits) or not digits:
                found[letter] = digits or found[letter]
            else:
                raise p.refused(f"{letter} is only equally long for some sizes")
    hidden = [
        p.masked(v, [i for i, letter in enumerate(t) if letter not in result], 0)
        for t, v in zip(terms, values, strict=True)
    ]
    made = make("Einsum", *(h.node for h in hidden), name=node.name, **node.attrs)
    return Padded(made, tuple(found[letter] for letter in result))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """An equation -> the letters of each operand, and of the result; those that dots stand for
    are numbers, from behind.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    most = 0
    listed = []
    for term, rank in zip(terms, ranks, strict=True):
        before, dots, after = term.partition("...")
        spare = rank - len(before + after) if dots else 0
        most = max(most, spare)
        listed.append([*before, *map(str, range(-spare, 0)), *after])
    if not arrow:
        once = sorted(n for n in set(left) if n.isalpha() and left.count(n) == 1)
        right = "..." * ("..." in left) + "".join(once)
    before, dots, after = right.partition("...")
    stacked = map(str, range(-most, 0)) if dots else ()
    return listed, [*before, *stacked, *after]


_PLACES = {"MatMulInteger": (1, 2, 3), "QLinearMatMul": (3, 2, 5)}
"""Where the right matrix, and the zero points of both, are among operands."""


@pads("MatMulInteger", "QLinearMatMul")
def _integers(p: Padding, node: Node) -> Padded:
    """What is not valid is the zero point along the size that is summed."""
    right, *zeros = _PLACES[node.op]
    given = (*node.inputs, None, None, None)
    sides = [p.value(node.operands[0]), p.value(node.operands[right])]
    others = [i for at, i in enumerate(node.inputs) if at not in (0, right) and i is not None]
    if any(p.value(i).open for i in others) or min(s.rank for s in sides) < 2:
        raise p.refused("scales, zero points, or vectors of an open size")
    a, b = p.prefix(sides[0], -1), p.prefix(sides[1], -2)
    if is_open(a.dims[-1]) or is_open(b.dims[-2]):
        if a.dims[-1] != b.dims[-2]:
            raise p.refused("what it sums is only equally long for some sizes")
        points = [None if n is None else p.value(n).node for n in (given[z] for z in zeros)]
        if any(z is not None and z.type.size > 1 for z in points):
            raise p.refused("several zero points, of a sum along an open size")
        fills = [0.0 if z is None else reshape(z, ()) for z in points]
        a, b = p.masked(a, [a.rank - 1], fills[0]), p.masked(b, [b.rank - 2], fills[1])
    outer = [Padded(v.node, v.dims[:-2]) for v in (a, b)]
    (left, other), dims = together(p, outer, max(a.rank, b.rank) - 2)
    nodes = [None if i is None else p.value(i).node for i in node.inputs]
    nodes[0], nodes[right] = left.node, other.node
    made = make(node.op, *nodes, name=node.name, **node.attrs)
    return Padded(made, (*dims, a.dims[-2], b.dims[-1]))


@pads("Attention")
def _attention(p: Padding, node: Node) -> Padded:
    """Keys that are not valid are hidden by a mask; features that are not valid are 0."""
    if any(node.inputs[4:]) or len(node.types) > 1:
        raise p.refused("past keys, lengths, or several outputs")
    values = [p.value(i) for i in node.operands[:3]]
    if values[0].rank == 3 and any(is_open(v.dims[2]) for v in values):
        return _of_open_width(p, node, values)
    return _attended(p, node, values, node.type.shape[-1], node.operands[0].shape[-1])


def _of_open_width(p: Padding, node: Node, values: Sequence[Padded]) -> Padded:
    """[batch, length, heads * features], of an open number of features -> each head by itself."""
    heads, sizes = [], list[Dim]()
    counts = [node.int(f"{side}_num_heads") for side in ("q", "kv", "kv")]
    for x, value, count in zip(node.operands, values, counts, strict=False):
        batch, length, width = x.shape
        size = Size.of(width).over(count)
        if size is None:
            raise p.refused(f"{width} does not divide into {count} heads for some sizes")
        sizes.append(settled(size))
        heads.append(_swapped(p.reshaped(value, (batch, length, count, sizes[-1]))))
    made = _swapped(_attended(p, node, heads, sizes[2], sizes[0]))
    return p.reshaped(made, node.type.shape)


def _swapped(x: Padded) -> Padded:
    """Length and heads change places."""
    dims = (x.dims[0], x.dims[2], x.dims[1], x.dims[3])
    return Padded(make("Transpose", x.node, perm=(0, 2, 1, 3)), dims)


def _attended(
    p: Padding, node: Node, values: Sequence[Padded], features: Dim, scaled: Dim
) -> Padded:
    """Attention to values of some features; `scaled`: those of queries and keys."""
    at = values[0].rank - 2
    q, k, v = (p.prefix(x, at) for x in values)
    if k.dims[at] != v.dims[at] or not q.dims[0] == k.dims[0] == v.dims[0]:
        raise p.refused("keys and values are only equally long for some sizes")
    width = digits_of([features])
    if any(is_open(d) for x in (q, k, v) for d in (*x.dims[1:at], x.dims[-1])):
        q, k, v = _open_heads(p, node, q, k, v, scaled)
        width = v.dims[-1]
    dims = (*q.dims[: q.rank - 1], width)
    mask = None if len(node.operands) < 4 else p.value(node.operands[3])
    if mask is not None and mask.dims[-2] not in ((), q.dims[at]):
        raise p.refused("its mask is only as long as the queries for some sizes")
    k, v = finite(p, k, at, node.operands[1]), finite(p, v, at, node.operands[2])
    if is_open(k.dims[at]) and not (node.int("is_causal") and q.dims[at] == k.dims[at]):
        mask = _hiding(p, mask, k.dims[at])
    nodes = [q.node, k.node, v.node, *([mask.node] if mask else [])]
    return Padded(make("Attention", *nodes, name=node.name, **node.attrs), dims)


def _open_heads(
    p: Padding, node: Node, q: Padded, k: Padded, v: Padded, features: Dim
) -> tuple[Padded, Padded, Padded]:
    """Queries, keys and values of any number of heads, or of features, by which the scores are
    divided. Keys and values are repeated for the queries that share them.
    """
    closed = not any(is_open(x.dims[1]) for x in (q, k, v) if x.rank == 4)
    if q.rank == 4 and not closed and q.dims[1] != k.dims[1] == v.dims[1]:
        heads, groups = (i.shape[1] for i in node.operands[:2])
        share = Size.of(heads).over(groups)
        if share is None:
            raise p.refused(f"{heads} heads of queries may not be a multiple of {groups}")
        k, v = (repeated(p, x, 1, settled(share), heads) for x in (k, v))
    equal = closed or q.dims[1] == k.dims[1] == v.dims[1]
    if q.rank != 4 or not equal or q.dims[3] != k.dims[3]:
        raise p.refused("heads of open size")
    if not is_open(q.dims[3]):
        return q, k, v
    q, k = (p.masked(x, [3], 0) for x in (q, k))
    if node.attrs["scale"] is None:
        size = p.size(features, "float32")
        scale = make("Sqrt", make("Div", const([p.whole(q.dims[3])], "float32"), size))
        q = Padded(make("Mul", q.node, to_dtype(scale, q.node.dtype)), q.dims, q.zero)
    return q, k, v


def _hiding(p: Padding, mask: Padded | None, keys: tuple[int | str, ...]) -> Padded:
    """A mask that also hides keys that are not valid."""
    valid = p.valid(keys)
    if mask is None:
        return Padded(make("Reshape", valid, int64s((1, 1, 1, valid.type.size))), ())
    if mask.dims[-1] != keys:
        raise p.refused("its mask is not as long as the keys")
    both = (
        make("And", mask.node, valid)
        if mask.node.dtype == "bool"
        else make("Where", valid, mask.node, const(-inf, mask.node.dtype))
    )
    return Padded(both, mask.dims)
