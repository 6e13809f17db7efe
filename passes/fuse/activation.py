"""Recognize an activation function by its values, however it is written.

x * 0.5 * (1 + Erf(x / sqrt(2))), the 0.5 anywhere            ->  Gelu(x)
0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))  ->  Gelu(x, approximate="tanh")
x * Sigmoid(x)                                                ->  Swish(x)
x * Clip(x + 3, 0, 6) / 6,  x * HardSigmoid(x)                ->  HardSwish(x)
x * Tanh(Softplus(x)),  Max(x, 0.1 * x),  Log(1 + Exp(x))     ->  Mish, LeakyRelu, Softplus
Where(x < 0, 0, x),  Where(x > 0, x, 0)                       ->  Relu, ThresholdedRelu

A tree of elementwise operators on one value x and on numbers is a function of one variable. Its
values at some points suggest a known function and its parameters. A symbolic proof
(ops/symbolic.py) then shows that the two are equal everywhere, and their results for NaN are
compared, so that no function is mistaken for a similar one. A multiple of a known function (whose
factor 0.5 went into the next product's weights, say) becomes that multiple.

Constants are taken for the exact numbers they were rounded from: by the dtype's rounding, or, for
irrational ones, when written with five digits or more (1.41421).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import Attr, Graph, Node
from qcompiler.ops import OPERATORS, is_elementwise, make
from qcompiler.ops.math import NUMPY
from qcompiler.ops.registry import Formula
from qcompiler.ops.symbolic import SYMBOLS, VARIABLE, Stretches, Unknown, lifted, same
from qcompiler.rewrite import graph_pass
from qcompiler.rewrite.matching import FLOATS, const

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Guess:
    """factor * name(x)."""

    name: str
    attrs: dict[str, Attr]
    factor: float = 1.0

    @property
    def nodes(self) -> int:
        """The number of nodes it takes."""
        return 1 if self.factor == 1 else 2

    def of(self, x: Node, name: str) -> Node:
        """Build the node that computes it."""
        made = make(self.name, x, name=name, **self.attrs)
        return made if self.factor == 1 else make("Mul", made, const(self.factor, like=x))

    def values(self, points: Values) -> Values:
        """Its values at some points."""
        with np.errstate(all="ignore"):
            return evaluated(self.name, [points], self.attrs).astype(np.float64) * self.factor

    def symbols(self) -> Stretches:
        """Its symbolic value."""
        return symbolized(self.name, [VARIABLE], self.attrs) * self.factor


MAX_NODES = 14
"""Most nodes of a tree; Mish written with exponentials has ten."""

RESEMBLES = 1e-4
"""Relative error at the points below which a proof is tried."""

ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative error from rounding constants: a few float32 roundings."""

IRRATIONAL = tuple(
    c * factor
    for c in (math.sqrt(2), math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi), 1 / 6)
    for factor in (0.5, 1.0, 2.0)
)
"""Constants of activation functions that exporters write with a few digits only."""

POINTS = np.array(
    [0.0, 1.0, -1.0, 0.25, -30.0, 30.0, *np.linspace(-9.7, 9.7, 41), -100.0, 100.0, 1e3, -1e3]
)
ZERO, ONE, MINUS_ONE, QUARTER, LOW, HIGH = range(6)
"""Indices of the points that parameters are derived from."""

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
"""An activation has at least one of these."""


@graph_pass
class FuseActivation:
    """A tree of elementwise operators on one value -> the activation function it computes."""

    def __call__(self, graph: Graph) -> Graph:
        """Replace the largest tree under each node that is a known function."""
        index = {n: i for i, n in enumerate(graph.nodes)}
        found: dict[Node, tuple[Node, Guess]] = {}
        for node in graph.nodes:
            if _is_part(node) and (match := _largest(node, index, graph)):
                found[node] = match
        return _replaced(graph, found) if found else graph


def _replaced(graph: Graph, found: dict[Node, tuple[Node, Guess]]) -> Graph:
    """The graph with each root rebuilt on its tree's source."""
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
    """Elementwise nodes, in topological order, that read one source and constants only."""

    source: Node
    nodes: tuple[Node, ...]

    def values(self, points: Values) -> Values:
        """The function's values at some points."""
        known: dict[Node, NDArray[np.generic]] = {self.source: points}
        with np.errstate(all="ignore"):
            for node in self.nodes:
                inputs = [None if i is None else _value(i, known) for i in node.inputs]
                known[node] = evaluated(node.op, inputs, dict(node.attrs))
        return np.asarray(known[self.nodes[-1]], np.float64)

    def symbols(self) -> Stretches:
        """The function's symbolic value."""
        known = {self.source: VARIABLE}
        for node in self.nodes:
            inputs = [
                None if i is None else known[i] if i in known else lifted(_number(i))
                for i in node.inputs
            ]
            known[node] = symbolized(node.op, inputs, dict(node.attrs))
        return known[self.nodes[-1]]


def _value(node: Node, known: dict[Node, NDArray[np.generic]]) -> NDArray[np.generic]:
    return np.asarray(_number(node)) if node.is_constant else known[node]


def _number(constant: Node) -> bool | float:
    """A one-element constant's value, or the exact number it was rounded from."""
    array = constant.array.reshape(())
    if array.dtype == bool:
        return bool(array)
    given = float(array)
    rounded = (c for c in IRRATIONAL if any(_writes(given, c, n) for n in range(5, 10)))
    return next(rounded, given)


def _writes(given: float, number: float, digits: int) -> bool:
    """Is it the float32 of `number` written with this many digits?"""
    return bool(np.float32(given) == np.float32(f"{number:.{digits}g}"))


def evaluated(
    name: str, inputs: Sequence[NDArray[np.generic] | None], attrs: dict[str, Attr]
) -> NDArray[np.generic]:
    """An elementwise operator's formula on arrays."""
    formula, known = _formula(name, attrs)
    return np.asarray(formula(NUMPY, *inputs, **known))


def symbolized(name: str, inputs: Sequence[Stretches | None], attrs: dict[str, Attr]) -> Stretches:
    """An elementwise operator's formula on symbols. Raises Unknown."""
    formula, known = _formula(name, attrs)
    made: Stretches = formula(SYMBOLS, *inputs, **known)
    return made


def _formula(name: str, attrs: dict[str, Attr]) -> tuple[Formula, dict[str, object]]:
    operator = OPERATORS[name]
    assert operator.formula is not None
    return operator.formula, {k: attrs.get(k, v) for k, v in operator.defaults.items()}


def _largest(root: Node, index: dict[Node, int], graph: Graph) -> tuple[Node, Guess] | None:
    """The largest tree under a root that is a known function, with that function."""
    found = None
    for tree in _trees(root, index, graph):
        if tree.source.type == root.type and any(n.op in CURVED for n in tree.nodes):
            guess = recognized(tree)
            if guess is not None and len(tree.nodes) > guess.nodes:
                found = tree.source, guess
    return found


def _trees(root: Node, index: dict[Node, int], graph: Graph) -> Iterator[Tree]:
    """Every tree of at least two nodes under a root, from the smallest.

    The last node in the graph's order that is not yet included is added next: when it is the only
    one, the nodes included so far read nothing else.
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
    if node.op == "Cast" or not is_elementwise(node):
        return False
    floats = node.dtype in FLOATS or node.dtype == "bool"
    return floats and all(not i.is_constant or i.type.size == 1 for i in node.operands)


def recognized(tree: Tree) -> Guess | None:
    """A tree -> the known function it computes."""
    values = tree.values(POINTS)
    finite = np.isfinite(values)
    if finite.sum() < len(POINTS) - 6 or not finite[: HIGH + 1].all():
        return None
    near: list[tuple[float, Guess]] = []
    for guess in guesses(values):
        error = np.abs(guess.values(POINTS) - values)[finite] / np.maximum(
            1, np.abs(values[finite])
        )
        if error.max() < RESEMBLES:
            near.append((float(error.max()), guess))
    return next((g for _, g in sorted(near, key=lambda n: n[0]) if proved(tree, g)), None)


def proved(tree: Tree, guess: Guess) -> bool:
    """Is a tree equal to the guessed function, for every number and for NaN?"""
    nothing = np.array([np.nan])
    if not np.array_equal(tree.values(nothing), guess.values(nothing), equal_nan=True):
        return False
    try:
        tolerance = ROUNDING.get(tree.source.dtype, 2.0**-20)
        return same(tree.symbols(), guess.symbols(), tolerance)
    except Unknown:
        return False


def guesses(values: Values) -> Iterator[Guess]:
    """Functions that the values suggest, with parameters derived from them."""
    zero = float(values[ZERO])
    if abs(zero) < RESEMBLES:
        yield Guess("Tanh", {})
        yield Guess("Softsign", {})
        factor = _rounded(float(values[HIGH]) / POINTS[HIGH])
        if 0.1 < factor < 10:
            yield from _ramps(values / factor, 1.0 if abs(factor - 1) < RESEMBLES else factor)
    elif 0 < zero < 1:
        yield Guess("Sigmoid", {})
        yield Guess("Softplus", {})
        slope = (float(values[QUARTER]) - zero) * 4
        yield Guess("HardSigmoid", {"alpha": _rounded(slope), "beta": _rounded(zero)})


def _ramps(values: Values, factor: float) -> Iterator[Guess]:
    """Functions that are 0 at 0 and x for large x."""
    for name in ("Relu", "HardSwish", "Mish"):
        yield Guess(name, {}, factor)
    yield Guess("ThresholdedRelu", {"alpha": 0.0}, factor)  # a Relu that maps NaN to 0
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
    """A parameter derived from values -> a short decimal with the same float32, if any."""
    short = float(f"{parameter:.6g}")
    return short if np.float32(short) == np.float32(parameter) else float(parameter)
