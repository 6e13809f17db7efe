"""Elementwise code grows with the number of nodes, not with how often their values are used.

What TVM does with an expression takes as long as the expression is written out. Where every node
of a chain uses the one before twice and names hide nothing, that doubles with every node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pytest
import tvm
from kernel_harness import device, region_of, vector_isas
from tvm import tirx

import qcompiler.kernels.cpu.elements.elementwise  # noqa: F401  (registers the generator)
from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.kernels.registry import Kernel, choose
from qcompiler.ops import OPERATORS, make

DTYPES = [
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "bfloat16", "float32", "float64"),
]
ELEMENTWISE = sorted(name for name, entry in OPERATORS.items() if entry.formula is not None)
ATTRIBUTES: dict[str, Sequence[dict[str, object]]] = {
    "Mod": [{}, {"fmod": 1}],
    "BitShift": [{"direction": "LEFT"}, {"direction": "RIGHT"}],
    "Cast": [{"to": d} for d in ("bool", "uint8", "int32", "uint64", "bfloat16", "float32")],
    "Gelu": [{}, {"approximate": "tanh"}],
    "quantize": [{"dtype": d} for d in ("uint8", "int8", "uint16", "int16")],
}
"""Those that choose between formulas."""
LARGE = ("Cast", "Cos", "Mish", "Mod", "Pow", "Sin", "Softplus")
"""Those of so much code that it takes seconds to make."""

LENGTHS = (1, 2, 3)
LONG = 30
"""Only tried once the short ones grow evenly: code that doubles would never be done.
"""


def again(op: str, attrs: dict[str, object], y: Node) -> Node:
    """A node of which every operand that can be is `y`, as `y`'s dtype again."""
    needed, possible = OPERATORS[op].arity
    count = int(needed if possible == float("inf") else possible)
    operands = [y] * max(count, 2 if possible == float("inf") else 1)
    if op == "Where":
        operands[0] = make("Cast", y, to="bool")
    elif op in ("quantize", "dequantize"):
        operands[1:] = [make("Cast", y, to=d) for d in ("float32", "int32")]
    elif op == "lookup":
        operands[1] = constant(np.arange(256).astype(y.dtype))
    return make("Cast", make(op, *operands, **attrs), to=y.dtype)


def written_out(op: str, attrs: dict[str, object], dtype: str, elements: int, nodes: int) -> int:
    """The length of a chain's code as text, with everything written out that TVM writes out; 0 for
    what there is no kernel for.
    """
    y = x = placeholder("x", Type(dtype, (elements,)))
    for _ in range(nodes):
        y = again(op, attrs, y)
    region = region_of(Graph((x,), (y,), ("y",)), None)
    kernel = choose(region, device(vector_isas()[-1])).kernel
    if not isinstance(kernel, Kernel):
        return 0
    module = tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")})
    passes = [tirx.transform.FlattenBuffer(), tirx.transform.StmtSimplify()]
    return len(str(tvm.ir.transform.Sequential(passes)(module)))


def kinds(op: str) -> Iterator[tuple[dict[str, object], str]]:
    """The attributes and dtypes that an operator is tried with."""
    for attrs in ATTRIBUTES.get(op, [{}]):
        for dtype in DTYPES:
            try:
                again(op, attrs, placeholder("x", Type(dtype, (1,))))
            except Error:
                continue
            yield attrs, dtype


@pytest.mark.parametrize("elements", [1, 64], ids=["scalars", "vectors"])
@pytest.mark.parametrize(
    "op", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in ELEMENTWISE]
)
def test_a_chain_of_one_operator_is_as_long_as_it_has_nodes(op: str, elements: int) -> None:
    made = 0
    for attrs, dtype in kinds(op):
        size = partial(written_out, op, attrs, dtype, elements)
        few, some, more = map(size, LENGTHS)
        made += few > 0
        assert more - some <= 1.05 * (some - few) + 10, f"{dtype} {attrs}: {few}, {some}, {more}"
        turn = (more - few) / (LENGTHS[-1] - LENGTHS[0])
        whole = size(LONG)
        assert whole <= 1.05 * (few + (LONG - LENGTHS[0]) * turn), f"{dtype} {attrs}: {whole}"
    assert made, f"{op} was tried with nothing"
