"""ONNX's own node test cases, as the onnx package brings them along."""

import warnings
from collections import defaultdict
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from qcompiler.ir import Array
from qcompiler.onnx_io.tensors import DTYPES, ExternalData, decode
from qcompiler.ops import OPERATORS

DTYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "precision", "stash_type", "softmax_precision"}


@lru_cache(maxsize=1)
def node_cases() -> dict[str, list[TestCase]]:
    """The cases by operator; those that ONNX expands into several nodes under ""."""
    found: dict[str, list[TestCase]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model_tests(kind="node")
    for case in loaded:
        nodes = case.model.graph.node
        found[nodes[0].op_type if len(nodes) == 1 else ""].append(case)
    return found


def as_array(value: Any) -> Array:
    """numpy cannot hold every dtype: some values come as TensorProto."""
    if isinstance(value, onnx.TensorProto):
        return decode(value, ExternalData(None), "test data")
    return np.asarray(value)


def foreign(value: Any) -> bool:
    """Whether an input of a case is of a dtype that we do not have."""
    if isinstance(value, onnx.TensorProto):
        return value.data_type not in DTYPES
    return not isinstance(value, np.ndarray | np.generic) or value.dtype.kind in "OSU"


def attributes(proto: NodeProto) -> dict[str, Any]:
    """The attributes of a node as our nodes have them, what is implicit left implicit."""
    attrs = {a.name: _native(helper.get_attribute_value(a)) for a in proto.attribute}
    for key in DTYPE_ATTRIBUTES & attrs.keys():
        attrs[key] = DTYPES.get(attrs[key], "string")
    if "outputs" in OPERATORS[proto.op_type].defaults:
        attrs["outputs"] = len(proto.output)
    return attrs


def _native(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return tuple(map(_native, value)) if isinstance(value, list) else value
