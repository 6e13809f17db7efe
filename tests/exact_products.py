"""A model for onnxruntime -> the same with integer products that it computes exactly here.

Where a CPU has no VNNI it multiplies uint8 by int8 with VPMADDUBSW, whose sums of two products
saturate at 16 bits; its products of uint8 by uint8 are exact. Its own option for exactness,
`session.x64quantprecision`, changes constant weights alone, and not without optimizations.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from qcompiler.hardware.cpu import features

OPERANDS = {
    "MatMulInteger": (0, 1, 3),
    "ConvInteger": (0, 1, 3),
    "QLinearMatMul": (0, 3, 5),
    "QLinearConv": (0, 3, 5),
}
"""Operators -> the places of the first operand, of the second, and of its zero point."""


@functools.cache
def saturates() -> bool:
    """Does this CPU multiply bytes only by instructions that saturate?"""
    return platform.machine() == "x86_64" and not features() & {"avx512_vnni", "avx_vnni"}


def exact(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself where nothing of it saturates; else int8 operands beside uint8 ones are
    uint8, and larger by 128, as their zero points are.
    """
    if not saturates():
        return model
    made = inliner.inline_local_functions(model)
    made = onnx.shape_inference.infer_shapes(made)
    _change(made.graph, {})
    return made


def _change(graph: onnx.GraphProto, outer: dict[str, int]) -> None:
    """Rewrites a graph, and those within; `outer` has the types of values around it."""
    values = [*graph.input, *graph.value_info, *graph.output]
    types = outer | {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                _change(inner, types)
        nodes += _by_uint8(node, types)
    del graph.node[:]
    graph.node.extend(nodes)


def _by_uint8(node: onnx.NodeProto, types: dict[str, int]) -> Iterator[onnx.NodeProto]:
    """One node -> itself, and before it what makes its second operand uint8."""
    a, b, zero = OPERANDS.get(node.op_type, (0, 0, 0))
    if b and (types.get(node.input[a]), types.get(node.input[b])) == (
        TensorProto.UINT8,
        TensorProto.INT8,
    ):
        node.input.extend([""] * (zero + 1 - len(node.input)))
        for place in (b, zero):
            made = f"{node.output[0]}:{place}"
            yield from _raised(node.input[place], made)
            node.input[place] = made
    yield node


def _raised(name: str, made: str) -> Iterator[onnx.NodeProto]:
    """Nodes that compute an int8 value + 128 as uint8; 128 where the value is left out."""
    step = numpy_helper.from_array(np.array(128, np.int32))
    yield helper.make_node("Constant", [], [f"{made}:step"], value=step)
    total = f"{made}:step"
    if name:
        yield helper.make_node("Cast", [name], [f"{made}:wide"], to=TensorProto.INT32)
        total = f"{made}:sum"
        yield helper.make_node("Add", [f"{made}:wide", f"{made}:step"], [total])
    yield helper.make_node("Cast", [total], [made], to=TensorProto.UINT8)
