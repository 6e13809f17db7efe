"""Open sizes that must be equal to others, or to a number -> inputs whose types say so.

    batch of one input, batch_1 of another; channels where weights have 64; a size in 8 heads

What must be equal is found as the model is read. Inside the model, one of the sizes is then
replaced by the other; every run checks that its inputs are so. Nothing is lost by that: runs in
which they are not equal have no meaning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd

import numpy as np

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Number, Size, parts, settled
from qcompiler.errors import Error
from qcompiler.ir import CHECK, Dim, Graph, Node, Type, constant
from qcompiler.onnx_io.spellings import replaced
from qcompiler.ops import make
from qcompiler.ops.equal import Equal
from qcompiler.ops.known_sizes import never_below_0
from qcompiler.ops.runs import at_least
from qcompiler.ops.shapes import multiple

log = logging.getLogger(__name__)

Sizes = Mapping[str, tuple[int, int]]
"""Open sizes by name, and the least and the largest number of each."""
Settled = Mapping[str, tuple[Dim, str]]
"""A symbol -> what it is equal to, and the node that needs it."""
Owners = Mapping[str, tuple[Node, int]]
"""Open sizes -> an input and its dimension that is of that size."""
Require = Callable[[Node, str], None]


def with_equal_sizes(
    read: Callable[[Settled, Equal], Graph], sizes: Sizes
) -> tuple[Graph, Settled]:
    """Read a model until no more of its open sizes are found to be equal to others."""
    known: dict[str, tuple[Dim, str]] = {}
    while True:
        found = Equal(ranges=sizes)
        result: Graph | Error
        try:
            result = read(known, found)
        except Error as e:
            result = e
        more = _solved(found, sizes, known)
        if more is not None:
            name, size, where = more
            _demand_possible(name, size, where, sizes)
            known = {k: (replaced(old, {name: size}), why) for k, (old, why) in known.items()}
            known[name] = (size, where)
        elif isinstance(result, Error):
            raise result
        else:
            _warn(known)
            return result, known


def _warn(known: Settled) -> None:
    for name, (size, where) in known.items():
        if isinstance(size, int):
            log.warning("the size %s can only be %s: %s", name, size, where)


def checked(graph: Graph, found: Equal, known: Settled, ranges: Sizes) -> Graph:
    """A graph, with checks that fail the runs in which sizes differ that must be equal, where none
    could be replaced by another, or one is below what it must be, if it may be. `ranges`: of the
    symbols in types.
    """
    owners = owners_of(graph.inputs)
    names, nodes = list(graph.output_names), list(graph.outputs)
    seen: set[tuple[Dim, Dim]] = {(name, size) for name, (size, _) in known.items()}
    for (a, b), where in found.pairs.items():
        pair = without_common(a, b)
        if _symbols(a) | _symbols(b) <= found.inputs and not {pair, pair[::-1]} & seen:
            seen.add(pair)
            names.append(f"{CHECK}{where}: the size {pair[0]} is not {pair[1]}")
            nodes.append(make("Equal", *(size_node(s, owners) for s in pair), name="same size"))
    symbols = tuple(Symbol(name, low, high, high) for name, (low, high) in ranges.items())
    for (least, size), where in found.least.items():
        if not _symbols(least) | _symbols(size) <= ranges.keys():
            continue
        if not at_least(settled(Size.of(size) - least), 0, symbols):
            names.append(f"{CHECK}{where}: the size {size} is below {least}")
            sides = (size_node(s, owners) for s in (least, size))
            nodes.append(make("LessOrEqual", *sides, name="large enough"))
    return replace(graph, output_names=tuple(names), outputs=tuple(nodes))


def _solved(found: Equal, sizes: Sizes, known: Settled) -> tuple[str, Dim, str] | None:
    """The first symbol that is found to equal something else."""
    open_ = {
        k: r
        for k, r in sizes.items()
        if k in found.inputs and (k not in known or k in _symbols(known[k][0]))
    }
    alike = {
        pair: where
        for pair, where in found.broadcast.items()
        if all(_symbols(d) <= open_.keys() for d in pair)
        and min(Size.of(d).bounds(open_)[0] for d in pair) > 1
    }
    for (a, b), where in {**found.pairs, **alike}.items():
        pair = _known(*without_common(a, b))
        if pair is not None and _symbols(pair[0]) | _symbols(pair[1]) <= open_.keys():
            for name, size in (*_solutions(*pair), *_whole(*pair, known)):
                whole = _refined(name, size, known)
                if whole is not None:
                    return whole[0], _only(_above_0(*whole, sizes), sizes), where
    return None


def _above_0(name: str, size: Dim, sizes: Sizes) -> Dim:
    """k * (q // k), or the same rounded up where a run of q below k, which fails, would give 0."""
    if not isinstance(size, str) or not _is_multiple(size, name):
        return size
    (quotient,) = (f for m in Size.of(size).terms for f, _ in m if f[0] == "(")
    below = Size.of(parts(quotient)[1])
    if not below.symbols <= sizes.keys() or Size.of(size).bounds(sizes)[0] >= 1:
        return size
    return settled((Size.of(name) + below - 1) // below * below) if below.symbols else size


def _only(size: Dim, sizes: Sizes) -> Dim:
    """A size, or the only number in these ranges that it may be: of 4 to 7, the multiple of 4."""
    found = Size.of(size).bounds_if_known(sizes)
    return found[0] if found is not None and found[0] == found[1] else size


def _known(a: Dim, b: Dim) -> tuple[Dim, Dim] | None:
    """Two sizes -> what is known of them; of q = k * ?, where ? may be anything, that q is a
    multiple of k. None if nothing is.
    """
    for whole, product in ((a, b), (b, a)):
        unknown = [s for s in _symbols(product) if s[0] == "?"]
        if len(unknown) == 1:
            by = Size.of(product).over(unknown[0])
            return None if by is None else multiple(whole, settled(by))
    return a, b


def _refined(name: str, size: Dim, known: Settled) -> tuple[str, Dim] | None:
    """What equals a symbol, or the quotient of one that is known to be a multiple -> what the
    symbol equals; None for other quotients, and for symbols that are known.
    """
    if name[0] != "(":
        return None if name in known else (name, size)
    above, below = map(Size.of, parts(name))
    multiple = settled(Size.of(name) * below)
    if below.isdecimal() and above in known and known[above][0] == multiple:
        return above, settled(Size.of(size) * below)
    return None


def without_common(a: Dim, b: Dim) -> tuple[Dim, Dim]:
    """Two products -> the same without the factors that both have, which are not 0."""
    both = [Size.of(s).terms for s in (a, b)]
    if any(len(terms) != 1 for terms in both):
        return a, b
    ((mine, c),), ((others, d),) = (terms.items() for terms in both)
    common = Size.of(gcd(c, d))
    for factor, power in mine:
        for _ in range(min(power, dict(others).get(factor, 0))):
            common = common * factor
    left = (Size.of(s).over(common) for s in (a, b))
    one, other = (Size.of(0) if s is None else s for s in left)
    return settled(one), settled(other)


def _symbols(size: Dim) -> frozenset[str]:
    return Size.of(size).symbols if isinstance(size, str) else frozenset()


def _solutions(a: Dim, b: Dim) -> Iterator[tuple[str, Dim]]:
    """Two sizes -> symbols, and what each must be for them to be equal; no differences, which may
    be below 0.
    """
    for name, other in ((a, b), (b, a)):
        if isinstance(name, str) and name.isidentifier() and _is_multiple(other, name):
            yield name, other
            return
    atoms = {f for s in (a, b) for m in Size.of(s).terms for f, _ in m}
    for name in sorted(atoms, reverse=True):
        by = (Size.of(a) - b).terms.get(((name, 1),), 0)
        rest = Size.of(a) - b - Size.of(name) * by
        whole = (rest * -1).over(by) if by and not rest.symbols & _symbols(name) else None
        if whole is not None and never_below_0(whole):
            yield name, settled(whole)


def _whole(a: Dim, b: Dim, known: Settled) -> Iterator[tuple[str, Dim]]:
    """s // 2 == (s + 1) // 2, as of two halves, says that s is a multiple of 2; where s is known to
    be a multiple of 3, s // 6 == (s + 3) // 6 that s // 3 is one.
    """
    quotients = [s for s in (a, b) if isinstance(s, str) and list(Size.of(s).terms) == [((s, 1),)]]
    if len(quotients) != 2 or any(q[0] != "(" for q in quotients):
        return
    (low, n), (high, m) = sorted(([*map(Size.of, parts(q))] for q in quotients), key=_added)
    more = settled(high - low)
    if n != m or not n.isdecimal() or not isinstance(more, int) or not low.isidentifier():
        return
    divisors = [d for d in range(1, int(n)) if int(n) % d == 0]
    unit = next((d for d in divisors if low in known and known[low][0] == low // d * d), 1)
    if 0 < int(n) - more <= unit:
        yield str(low // unit), settled(low // n * (int(n) // unit))


def _added(quotient: Sequence[Size]) -> int:
    return quotient[0].terms.get((), 0)


def _is_multiple(size: Dim, name: str) -> bool:
    """Is a size the largest multiple of another that is not above the size of this name?"""
    quotients = [f for m in Size.of(size).terms for f, _ in m if f[0] == "("]
    if len(quotients) != 1:
        return False
    above, below = map(Size.of, parts(quotients[0]))
    return above == name and size == above // below * below


def _demand_possible(name: str, size: Dim, where: str, sizes: Sizes) -> None:
    """Raise Error if no run can have a size that the model needs."""
    low, high = sizes[name]
    least, most = Size.of(size).bounds(sizes)
    if most < low or least > high:
        what = f"the size {name} can only be {size}, and not {low} to {high}"
        raise Error(what, where=where, hint=f"--dim {name} must allow for it")


def applied(inputs: Sequence[Node], equal: Settled, require: Require) -> dict[str, Node]:
    """Inputs of a model -> their values by name, whose sizes are settled; runs check that these are
    as settled.
    """
    owners = owners_of(inputs)
    for name, (size, where) in equal.items():
        holds = make("Equal", size_node(name, owners), size_node(size, owners), name="same size")
        require(holds, f"{where}: the size {name} is not {size}")
    values = {name: size for name, (size, _) in equal.items()}
    return {node.name: _settled(node, values, owners) for node in inputs}


def sizes_of_names(
    named: Mapping[str, Type], types: Mapping[str, Type], equal: Settled
) -> dict[str, Dim]:
    """Types of inputs as the file has them, and as they are read -> what became of its names."""
    values = {name: size for name, (size, _) in equal.items()}
    pairs = [p for k, t in named.items() for p in zip(t.shape, types[k].shape, strict=True)]
    return {str(d): replaced(size, values) for d, size in pairs if isinstance(d, str)}


def owners_of(inputs: Sequence[Node]) -> Owners:
    """Inputs -> open sizes, and which dimension of which input is of each."""
    owners: dict[str, tuple[Node, int]] = {}
    for node in inputs:
        for axis, size in enumerate(node.shape):
            if isinstance(size, str):
                owners.setdefault(size, (node, axis))
    return owners


def _settled(node: Node, values: Mapping[str, Dim], owners: Owners) -> Node:
    """An input -> the same, reshaped for each size that is settled."""
    made = node
    for axis, size in enumerate(node.shape):
        other = replaced(size, values)
        if other != size:
            shape = [*made.shape[:axis], other, *made.shape[axis + 1 :]]
            pieces = [size_node(d, owners) for d in shape]
            target = make("Concat", *pieces, axis=0, name=f"{node.name}.shape")
            made = make("Reshape", made, target, name=f"{node.name}.{axis}", allowzero=1)
    return made


def size_node(size: Number, owners: Owners) -> Node:
    """A size of inputs that have its symbols as sizes -> int64[1] that computes it."""
    if isinstance(size, int):
        return constant(np.array([size]))
    if size in owners:
        node, axis = owners[size]
        return make("Shape", node, start=axis, end=axis + 1, name=f"size {size}")
    if Size.of(size).symbols == {size}:
        for other in owners:  # past - 1, of a size that may be 0
            more = settled(Size.of(size) - other)
            if isinstance(more, int):
                return make(
                    "Add", size_node(other, owners), constant(np.array([more])), name="size"
                )
        raise Error(f"no input is of size {size}")
    terms = [_term(factors, c, owners) for factors, c in Size.of(size).terms.items()]
    return _over("Add", terms)


def _term(factors: Sequence[tuple[str, int]], by: int, owners: Owners) -> Node:
    each = [_factor(f, owners) for f, power in factors for _ in range(power)]
    return _over("Mul", [*each, *([constant(np.array([by]))] if by != 1 or not each else [])])


def _factor(factor: str, owners: Owners) -> Node:
    if factor[0] != "(":
        return size_node(factor, owners)
    for other in owners:  # 32 * (height // 32), of a size with a step
        by = Size.of(other).over(factor)
        if by is not None and by.isdecimal():
            sides = size_node(other, owners), constant(np.array([int(by)]))
            return make("Div", *sides, name=f"size {factor}")
    above, below = (size_node(settled(Size.of(p)), owners) for p in parts(factor))
    return make("Div", above, below, name=f"size {factor}")


def _over(op: str, nodes: Sequence[Node]) -> Node:
    made = nodes[0]
    for node in nodes[1:]:
        made = make(op, made, node, name="size")
    return made
