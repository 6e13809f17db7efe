"""Symbolic proofs: a function is recognized if it is equal for every number, and only then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
from qcompiler.passes.fuse.activation import FuseActivation, evaluated, symbolized

from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.ops import evaluate, make
from qcompiler.ops.registry import OPERATORS
from qcompiler.ops.symbolic import SYMBOLS, VARIABLE, Stretches, Unknown, lifted, same

Tree = Callable[[Node], Node]


def c(value: float) -> Node:
    return constant(np.array(value, np.float32))


def where(compare: str, least: float, then: Tree, other: Tree) -> Tree:
    return lambda x: make("Where", make(compare, x, c(least)), then(x), other(x))


def x_(x: Node) -> Node:
    return x


def times(factor: float) -> Tree:
    return lambda x: make("Mul", x, c(factor))


def gelu(root: float, half: float = 0.5, one: float = 1.0) -> Tree:
    def tree(x: Node) -> Node:
        bent = make("Add", make("Erf", make("Div", x, c(root))), c(one))
        return make("Mul", make("Mul", x, bent), c(half))

    return tree


def gelu_tanh(cubic: float, root: float) -> Tree:
    def tree(x: Node) -> Node:
        cube = make("Mul", make("Mul", make("Mul", x, x), x), c(cubic))
        bent = make("Add", make("Tanh", make("Mul", make("Add", x, cube), c(root))), c(1))
        return make("Mul", make("Mul", x, c(0.5)), bent)

    return tree


def hard_swish(offset: float, highest: float, divisor: float) -> Tree:
    def tree(x: Node) -> Node:
        bounded = make("Clip", make("Add", x, c(offset)), c(0), c(highest))
        return make("Div", make("Mul", x, bounded), c(divisor))

    return tree


def mish_of_exponentials(x: Node) -> Node:
    e = make("Add", make("Exp", x), c(1))
    square = make("Mul", e, e)
    quotient = make("Div", make("Sub", square, c(1)), make("Add", square, c(1)))
    return make("Mul", x, quotient)


def elu(alpha: float, least: float) -> Tree:
    def bent(x: Node) -> Node:
        return make("Mul", make("Sub", make("Exp", x), c(1)), c(alpha))

    return where("Greater", least, x_, bent)


def swish(alpha: float, beta: float = 0.0) -> Tree:
    def tree(x: Node) -> Node:
        inner = make("Add", make("Mul", x, c(alpha)), c(beta))
        return make("Mul", x, make("Sigmoid", inner))

    return tree


def softplus(one: float) -> Tree:
    return lambda x: make("Log", make("Add", make("Exp", x), c(one)))


def leaky(slope: float) -> Tree:
    return lambda x: make("Max", x, make("Mul", x, c(slope)))


KNOWN = {
    "Gelu": gelu(1.4142135623730951),
    "Gelu, five digits": gelu(1.4142),
    "Gelu by tanh": gelu_tanh(0.044715, 0.7978845608),
    "Gelu by tanh, five digits": gelu_tanh(0.044715, 0.79788),
    "HardSwish": hard_swish(3, 6, 6),
    "twice HardSwish": hard_swish(3, 6, 3),
    "Mish of exponentials": mish_of_exponentials,
    "Swish": swish(1.0),
    "Swish of a slope": swish(1.702),
    "Softplus": softplus(1.0),
    "LeakyRelu": leaky(0.1),
    "LeakyRelu by choice": where("GreaterOrEqual", 0, x_, times(0.01)),
    "Elu": elu(1.0, 0),
    "Elu of a height": elu(0.7, 0),
    "Relu by choice": where("Less", 0, times(0), x_),
}

NEARLY = {
    "a threshold": where("Greater", 0.2, x_, times(0)),
    "a small threshold": where("Greater", 1e-6, x_, times(0)),
    "a threshold below 0": where("GreaterOrEqual", -0.1, x_, times(0)),
    "a threshold far away": where("Less", 5000, x_, times(0)),
    "a slope that begins late": where("Greater", 0.2, x_, times(0.1)),
    "a slope from a threshold far below": where("Greater", -150, leaky(0.1), x_),
    "a HardSwish a little higher": hard_swish(3, 6.0005, 6),
    "a HardSwish a little to the left": hard_swish(3.0001, 6, 6),
    "a Gelu of another root": gelu(1.41425),
    "a Gelu that does not reach 0": gelu(1.4142135, one=1.00001),
    "a Gelu by tanh of another cubic": gelu_tanh(0.04472, 0.7978845608),
    "a Swish a little to the left": swish(1.0, 1e-4),
    "a Softplus a little higher": softplus(1.00005),
    "an Elu from a threshold": elu(1.0, 0.01),
    "a point of its own": lambda x: make(
        "Where", make("Equal", x, c(0.33371)), c(7), make("Max", x, c(0))
    ),
    "all but a point": lambda x: make(
        "Where", make("Not", make("Equal", x, c(0.33371))), make("Max", x, c(0)), c(7)
    ),
    "a point where two conditions differ": lambda x: make(
        "Where",
        make("Xor", make("Greater", x, c(1.2347)), make("GreaterOrEqual", x, c(1.2347))),
        c(9),
        make("Max", x, c(0)),
    ),
    "a jump near 0": where("Greater", 0, x_, lambda x: make("Sub", times(0.1)(x), c(1e-5))),
}


def graph_of(tree: Tree, dtype: str = "float32", size: int = 4) -> Graph:
    x = placeholder("x", Type(dtype, (size,)))
    return Graph((x,), (tree(x),), ("y",))


def every_half() -> np.ndarray:
    """All values of float16 for which float32 formulas do not overflow, and NaN."""
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return np.append(values[np.abs(values) < 80], np.float32(np.nan))


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_function_is_recognized_and_equal_for_every_half(name: str) -> None:
    values = every_half()
    graph = graph_of(KNOWN[name], size=values.size)
    made = FuseActivation()(graph)
    operators = [n.op for n in made.nodes if n.op not in ("input", "constant", "Mul")]
    assert len(operators) == 1
    with np.errstate(all="ignore"):
        wanted, got = (evaluate(g, {"x": values})["y"] for g in (graph, made))
    there = np.isfinite(wanted)
    np.testing.assert_allclose(got[there], wanted[there], rtol=3e-6, atol=3e-6)
    assert np.isnan(got[-1]) == np.isnan(wanted[-1])


@pytest.mark.parametrize("name", NEARLY)
def test_a_function_that_only_resembles_a_known_one_is_left_alone(name: str) -> None:
    graph = graph_of(NEARLY[name])
    made = FuseActivation()(graph)
    whole = [n.op for n in made.nodes if n.op not in ("input", "constant")]
    assert len(whole) > 1
    few = np.array([0.33371, 1.2347], np.float32)
    values = np.concatenate([every_half(), few, np.linspace(-200, 6000, 4096, dtype=np.float32)])
    graph = graph_of(NEARLY[name], size=values.size)
    with np.errstate(all="ignore"):
        wanted, got = (evaluate(g, {"x": values})["y"] for g in (graph, FuseActivation()(graph)))
    np.testing.assert_allclose(got, wanted, rtol=3e-6, atol=3e-6)


def test_a_denominator_that_may_be_zero_proves_nothing() -> None:
    x = VARIABLE
    assert same(x * 2.0 / 2.0, x, 1e-6)
    assert not same(x * (x - 2.0) / (x - 2.0), x, 1e-6)


def test_what_symbols_do_not_reach_is_unknown() -> None:
    for formula in (lambda: SYMBOLS.floor(VARIABLE), lambda: SYMBOLS.max(SYMBOLS.exp(VARIABLE), 1)):
        with pytest.raises(Unknown):
            formula()


def test_symbols_know_the_identities_of_exponentials() -> None:
    x, m = VARIABLE, SYMBOLS
    assert same(m.tanh(x), 2.0 / (m.exp(x * -2.0) + 1.0) - 1.0, 1e-6)
    assert same(m.log(m.exp(x) + 1.0), m.max(x, 0) + m.log(m.exp(-m.abs(x)) + 1.0), 1e-6)
    assert same(m.erf(-x), -m.erf(x), 1e-6)
    assert not same(m.tanh(x), m.tanh(x * 1.00001), 1e-6)
    assert not same(m.erf(x), m.erf(x * 1.00001), 1e-6)


CUT = 1.2347
POINTS = (-3.0, -0.5, 0.0, 0.37, 1.0, CUT, 1.5, 40.0)
FORMULAS = sorted(n for n, o in OPERATORS.items() if o.formula is not None and n[0].isupper())
LOGICAL = ("And", "Not", "Or", "Xor")


def at(made: Stretches, x: float) -> float:
    """The symbolic value at one number; NaN for a division by zero."""
    known = dict(zip(made.cuts, made.points, strict=True))
    part = known[x] if x in known else made.over(x)
    with suppress(ZeroDivisionError):
        return float(part if isinstance(part, bool) else part.at(x))
    return np.nan


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_means_on_symbols_what_it_means_on_numbers(name: str) -> None:
    """Or raises Unknown: it misses no point, and never fails otherwise."""
    operator, x = OPERATORS[name], np.array(POINTS)
    numbers = ((VARIABLE, x), (lifted(CUT), np.full_like(x, CUT)), (VARIABLE * 2.0, x * 2))
    truths = ((VARIABLE > CUT, x > CUT), (VARIABLE == CUT, x == CUT), (VARIABLE <= 0, x <= 0))
    least, most = operator.arity
    for count in range(int(least), int(min(most, 3)) + 1):
        kinds = [truths if name in LOGICAL else numbers] * count
        if name == "Where":
            kinds[0] = truths
        for chosen in product(*kinds):
            symbols, arrays = [s for s, _ in chosen], [a for _, a in chosen]
            attrs = dict(operator.defaults)
            try:
                with np.errstate(all="ignore"):
                    wanted = evaluated(name, arrays, attrs)
            except (TypeError, ValueError, AttributeError):
                continue  # no operands of its
            try:
                made = lifted(symbolized(name, symbols, attrs))
                got = np.array([at(made, p) for p in POINTS])
            except Unknown:
                continue
            wanted = np.where(np.isfinite(wanted), wanted, np.nan)
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)
