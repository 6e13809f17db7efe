"""A case in float32 -> the same in float16 or float64, as exporters write those."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from qcompiler.ir import numpy_dtype
from qcompiler.onnx_io.schema import DTYPE_ATTRIBUTES
from qcompiler.onnx_io.tensors import CODES, encode

from .checks import Outcome, check
from .generate import Case

WIDE = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Resize"})
"""Operators with operands that stay float32: such cases are left as they are."""


def check_retyped(case: Case) -> Outcome:
    """The case in float16 and in float64; one that operators of the case do not have is refused."""
    ended = [check(c) for dtype in ("float16", "float64") if (c := retyped(case, dtype))]
    outcome = Outcome(refused="; ".join(o.refused for o in ended if o.refused))
    for each in ended:
        outcome.faults += each.faults
        outcome.elements += each.elements
        outcome.unknown += each.unknown
    return outcome


def retyped(case: Case, dtype: str) -> Case | None:
    """A case whose float32 values are all of another dtype; None where some are float32 always."""
    if WIDE & {n.op_type for n in case.model.graph.node}:
        return None
    model = ModelProto()
    model.CopyFrom(case.model)
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type
        kind.elem_type = _other(kind.elem_type, dtype)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(numpy_dtype(dtype))
            tensor.CopyFrom(encode(array, tensor.name))
    for node in model.graph.node:
        _cast(node, dtype)
    feeds = tuple(
        {k: a.astype(numpy_dtype(dtype)) if a.dtype == np.float32 else a for k, a in feed.items()}
        for feed in case.feeds
    )
    return replace(case, model=model, feeds=feeds, precision="float32")


def _cast(node: NodeProto, dtype: str) -> None:
    for attribute in node.attribute:
        if attribute.name in DTYPE_ATTRIBUTES:
            attribute.i = _other(attribute.i, dtype)


def _other(code: int, dtype: str) -> int:
    return CODES[dtype] if code == TensorProto.FLOAT else code
