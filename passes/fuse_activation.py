"""Recognize an activation function by what it computes, however it is spelled.

x * 0.5 * (1 + Erf(x / sqrt(2))), the 0.5 anywhere            ->  Gelu(x)
0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))  ->  Gelu(x, approximate="tanh")
x * Sigmoid(x)                                                ->  Swish(x)
x * Clip(x + 3, 0, 6) / 6,  x * HardSigmoid(x)                ->  HardSwish(x)
x * Tanh(Softplus(x)),  Max(x, 0.1 * x),  Log(1 + Exp(x))     ->  Mish, LeakyRelu, Softplus

A tree of elementwise operators on one value x and on numbers is a function of one variable. It is
evaluated at some points; the known function that has the same values there takes its place. One
that is a multiple of a known function (its 0.5 has gone into the weights of the next product, say)
becomes that multiple.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import Attr, Graph, Node
from qcompiler.matching import FLOATS, const
from qcompiler.ops import OPERATORS, make
from qcompiler.ops.math import NUMPY
from qcompiler.rewrite import graph_pass

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Guess:
    """factor * name(x)."""

    name: str
    attrs: dict[str, Attr]
    factor: float = 1.0

    @property
    def nodes(self) -> int:
        """How many nodes it takes."""
        return 1 if self.factor == 1 else 2

    def of(self, x: Node, name: str) -> Node:
        """The node that computes it."""
        made = make(self.name, x, name=name, **self.attrs)
        return made if self.factor == 1 else make("Mul", made, const(self.factor, like=x))

    def values(self) -> Values:
        """Its values at the points."""
        with np.errstate(all="ignore"):
            return evaluated(self.name, [POINTS], self.attrs).astype(np.float64) * self.factor


MAX_NODES = 14
"""Mish of plain exponentials takes ten."""

TOLERANCE = 1e-4
"""The two Gelus are 5e-4 apart; constants that were rounded to float16 move one by 1e-4 at most."""

POINTS = np.array(
    [0.0, 1.0, -1.0, 0.25, -30.0, 30.0, *np.linspace(-9.7, 9.7, 41), -100.0, 100.0, 1e3, -1e3]
)
ZERO, ONE, MINUS_ONE, QUARTER, LOW, HIGH = range(6)
"""Where the points stand that parameters are read off."""

CURVED = {
    "Abs",
    "Clip",
    "Erf",
    "Exp",
    "HardSigmoid",
    "LeakyRelu",
    "Log",
    "Max",
    "Min",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "Where",
}
"""Without one of these a function is no activation."""


@graph_pass
class FuseActivation:
    """A tree of elementwise operators on one value -> the activation function it computes."""

    def __call__(self, graph: Graph) -> Graph:
        """The largest tree under each node that is a known function."""
        index = {n: i for i, n in enumerate(graph.nodes)}
        found: dict[Node, tuple[Node, Guess]] = {}
        for node in graph.nodes:
            if _is_part(node) and (match := _largest(node, index, graph)):
                found[node] = match
        return _replaced(graph, found) if found else graph


def _replaced(graph: Graph, found: dict[Node, tuple[Node, Guess]]) -> Graph:
    """The graph with each root made anew from its tree's one source."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in found:
            source, guess = found[node]
            new[node] = guess.of(new[source], node.name)
        else:
            new[node] = node.with_inputs(None if i is None else new[i] for i in node.inputs)
    return graph.with_outputs(new[o] for o in graph.outputs)


@dataclass(frozen=True)
class Tree:
    """Elementwise nodes (each after its inputs) that read one source and numbers only."""

    source: Node
    nodes: tuple[Node, ...]

    def values(self) -> Values:
        """The function's values at the points."""
        known: dict[Node, NDArray[np.generic]] = {self.source: POINTS}
        with np.errstate(all="ignore"):
            for node in self.nodes:
                inputs = [None if i is None else _value(i, known) for i in node.inputs]
                known[node] = evaluated(node.op, inputs, dict(node.attrs))
        return np.asarray(known[self.nodes[-1]], np.float64)


def _value(node: Node, known: dict[Node, NDArray[np.generic]]) -> NDArray[np.generic]:
    if not node.is_constant:
        return known[node]
    array = node.array.reshape(())
    return array if array.dtype == bool else array.astype(np.float64)


def evaluated(
    name: str, inputs: Sequence[NDArray[np.generic] | None], attrs: dict[str, Attr]
) -> NDArray[np.generic]:
    """An elementwise operator's formula on arrays."""
    operator = OPERATORS[name]
    assert operator.formula is not None
    known = {k: attrs.get(k, v) for k, v in operator.defaults.items()}
    return np.asarray(operator.formula(NUMPY, *inputs, **known))


def _largest(root: Node, index: dict[Node, int], graph: Graph) -> tuple[Node, Guess] | None:
    """The largest tree under a root that is a known function, and which."""
    found = None
    for tree in _trees(root, index, graph):
        if tree.source.type == root.type and any(n.op in CURVED for n in tree.nodes):
            guess = recognized(tree.values())
            if guess is not None and len(tree.nodes) > guess.nodes:
                found = tree.source, guess
    return found


def _trees(root: Node, index: dict[Node, int], graph: Graph) -> Iterator[Tree]:
    """Every tree of at least two nodes under a root, from the smallest.

    Of the nodes not yet taken in, the last in the graph's order is next: when it is the only
    one, all that was taken in reads nothing but it.
    """
    inside = [root]
    reads: dict[Node, int] = {}
    heap: list[tuple[int, Node]] = []

    def enter(node: Node) -> None:
        for i in node.operands:
            if not i.is_constant:
                if i not in reads:
                    heapq.heappush(heap, (-index[i], i))
                reads[i] = reads.get(i, 0) + 1

    enter(root)
    while heap and len(inside) < MAX_NODES:
        if len(heap) == 1 and len(inside) > 1:
            yield Tree(heap[0][1], tuple(reversed(inside)))
        _, node = heapq.heappop(heap)
        if not _is_part(node) or reads[node] < graph.readers[node]:
            return
        inside.append(node)
        enter(node)


def _is_part(node: Node) -> bool:
    """An elementwise operator on floats and one-element constants."""
    if node.op == "Cast" or node.op not in OPERATORS or OPERATORS[node.op].formula is None:
        return False
    floats = node.dtype in FLOATS or node.dtype == "bool"
    return floats and all(not i.is_constant or i.type.size == 1 for i in node.operands)


def recognized(values: Values) -> Guess | None:
    """Values at the points -> the known function that has them."""
    finite = np.isfinite(values)
    if finite.sum() < len(POINTS) - 6 or not finite[: HIGH + 1].all():
        return None
    best, least = None, TOLERANCE
    for guess in guesses(values):
        error = np.abs(guess.values() - values)[finite] / np.maximum(1, np.abs(values[finite]))
        if error.max() < least:
            best, least = guess, error.max()
    return best


def guesses(values: Values) -> Iterator[Guess]:
    """The functions that values could belong to, with parameters read off them."""
    zero = float(values[ZERO])
    if abs(zero) < TOLERANCE:
        yield Guess("Tanh", {})
        yield Guess("Softsign", {})
        factor = _rounded(float(values[HIGH]) / POINTS[HIGH])
        if 0.1 < factor < 10:
            yield from _ramps(values / factor, 1.0 if abs(factor - 1) < TOLERANCE else factor)
    elif 0 < zero < 1:
        yield Guess("Sigmoid", {})
        yield Guess("Softplus", {})
        slope = (float(values[QUARTER]) - zero) * 4
        yield Guess("HardSigmoid", {"alpha": _rounded(slope), "beta": _rounded(zero)})


def _ramps(values: Values, factor: float) -> Iterator[Guess]:
    """Functions that are 0 at 0 and x for large x."""
    for name in ("Relu", "HardSwish", "Mish"):
        yield Guess(name, {}, factor)
    yield Guess("Gelu", {"approximate": "none"}, factor)
    yield Guess("Gelu", {"approximate": "tanh"}, factor)
    one, minus_one, low = (float(values[i]) for i in (ONE, MINUS_ONE, LOW))
    if 0 < one < 1:
        yield Guess("Swish", {"alpha": _rounded(np.log(one / (1 - one)))}, factor)
    if 0 < -minus_one < 1:
        yield Guess("LeakyRelu", {"alpha": _rounded(-minus_one)}, factor)
    if low < 0:
        yield Guess("Elu", {"alpha": _rounded(-low)}, factor)


def _rounded(parameter: float) -> float:
    """A parameter read off values -> the short number that was meant, where there is one near."""
    short = float(f"{parameter:.6g}")
    return short if abs(short - parameter) < 1e-6 * abs(parameter) else float(parameter)
