"""x + f(x), and its rounding to bytes: what follows an operator reads what the operator reads, too,
in its own order, which may not be that in which the operator takes it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernel_harness import check, isas

from qcompiler.hardware.isa import Isa
from qcompiler.ir import Array, Node, Type, constant, placeholder
from qcompiler.ops import make

CHANNELS = 112
"""Columns that fill vectors of every width."""
Root = Callable[[Node, Array], Node]


def bytes_of(*shape: int, dtype: str = "int8") -> Array:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(shape)
    return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


def depthwise(x: Node, w: Array) -> Node:
    return make("conv", x, constant(w), pads=(1,) * 4, strides=(1, 1), group=CHANNELS, pad_value=3)


def pointwise(x: Node, w: Array) -> Node:
    return make("conv", x, constant(w), pads=(0,) * 4, strides=(1, 1))


def windowed(x: Node, w: Array) -> Node:
    return make("conv", x, constant(w), pads=(1,) * 4, strides=(1, 1), pad_value=3)


ROOTS: dict[str, tuple[Root, tuple[int, ...]]] = {
    "depthwise": (depthwise, (3, 3, 1, CHANNELS)),
    "1 x 1": (pointwise, (1, 1, CHANNELS, CHANNELS)),
    "3 x 3": (windowed, (3, 3, CHANNELS, CHANNELS)),
    "matmul": (lambda x, w: make("matmul", x, constant(w)), (CHANNELS, CHANNELS)),
}


@pytest.mark.parametrize("isa", isas(), ids=lambda i: i.name)
@pytest.mark.parametrize("name", ROOTS)
def test_what_an_operator_reads_is_added_to_its_result(name: str, isa: Isa) -> None:
    """Exactly, as bytes."""
    root_of, window = ROOTS[name]
    for dtype, zero in (("uint8", 0), ("int8", 128)):
        x = bytes_of(1, 5, 3, CHANNELS, dtype=dtype)
        node = placeholder("x", Type(dtype, x.shape))
        root = root_of(node, bytes_of(*window))
        scale = constant(np.float32(1 / 4))
        wide = make("Mul", make("Cast", root, to="float32"), constant(np.float32(2.0**-10)))
        total = make("Add", make("dequantize", node, scale, constant(np.int32(0))), wide)
        made = make("quantize", total, scale, constant(np.int32(zero)), dtype="uint8")
        check(made, root, [x], [node], isa)
