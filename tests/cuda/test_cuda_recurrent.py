"""RNN, GRU and LSTM on a GPU: all steps in a kernel, and a launch for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulation import check_all, gpu

from qcompiler import plugins
from qcompiler.ir import Array, Node, Type, constant, placeholder
from qcompiler.kernels.gpu.rows.recurrent import Cut, gpu_recurrent
from qcompiler.ops import make
from qcompiler.ops.recurrent import GATES

plugins.load_all()
SLOW = pytest.mark.slow


def loop(
    kind: str,
    steps: int,
    batch: int,
    hidden: int,
    *,
    dtype: str = "float32",
    lengths: tuple[int, ...] | None = None,
    states: bool = True,
    peepholes: bool = False,
    bias: bool = False,
    **attrs: Any,
) -> list[Cut]:
    """One `recurrent` node against its meaning, cut in every way."""
    two, wide = 1 + (attrs.get("direction") == "bidirectional"), GATES[kind] * hidden
    shapes = {
        "sums": (steps, batch, two * wide),
        "r": (two, hidden, wide),
        "bias": (two, hidden) if bias else None,
        "lengths": None,
        "h0": (two, batch, hidden) if states else None,
        "c0": (two, batch, hidden) if states and kind == "LSTM" else None,
        "peepholes": (two, 3 * hidden) if peepholes else None,
    }
    arrays: dict[str, Array | None] = {
        name: None
        if shape is None
        else (0.5 * np.random.default_rng((i, *shape)).standard_normal(shape)).astype(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }
    arrays["lengths"] = None if lengths is None else np.array(lengths, np.int32)
    nodes: list[Node | None] = []
    inputs, values = [], []
    for name, array in arrays.items():
        if array is None or name == "r":
            nodes.append(None if array is None else constant(array))
            continue
        inputs.append(placeholder(name, Type(array.dtype.name, array.shape)))
        values.append(array)
        nodes.append(inputs[-1])
    while nodes[-1] is None:
        nodes.pop()
    y = make("recurrent", *nodes, kind=kind, **attrs)
    knobs = check_all(gpu_recurrent, y, y, values, inputs, gpu(), rtol=1e-5, atol=1e-5)
    return [k for k in knobs if isinstance(k, Cut)]


@pytest.mark.parametrize(
    "kind", ["LSTM", pytest.param("GRU", marks=SLOW), pytest.param("RNN", marks=SLOW)]
)
def test_every_kind_in_every_way(kind: str) -> None:
    cuts = loop(kind, 3, 1, 5, bias=kind == "GRU")
    assert {c.whole for c in cuts} == {0, 1}


@pytest.mark.slow
def test_both_directions_of_sequences_that_end_early() -> None:
    loop("LSTM", 4, 3, 6, direction="bidirectional", lengths=(2, 4, 0), peepholes=True)


@pytest.mark.slow
def test_more_units_than_a_warp_has_threads() -> None:
    loop("LSTM", 2, 3, 40, states=False, direction="reverse")
    loop("GRU", 2, 3, 40, linear_before_reset=1, bias=True, dtype="float64")
    loop("GRU", 3, 2, 40, direction="bidirectional", lengths=(1, 3))
    loop("RNN", 2, 9, 150, activations=("Relu",))
