"""ONNX's own test cases, as the onnx package brings them along, and what becomes of them."""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

import qcompiler
from qcompiler.ir import Array
from qcompiler.onnx_io.tensors import DTYPES, ExternalData, decode
from qcompiler.ops import OPERATORS

DTYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "precision", "stash_type", "softmax_precision"}
ULPS = 3
"""Tolerance of 16-bit floats in units in the last place: some references round every step."""

DRAWN = ("test_bernoulli",)
"""Cases of random numbers: ONNX says of their data that no implementation need give the same."""

Value = Any
"""An array; a list of arrays, of a sequence; None, of an optional without a value."""
Sets = list[tuple[list[Value], list[Value]]]


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


# Cases through the whole compiler.


def loaded(case: TestCase) -> tuple[ModelProto, Sets]:
    """A case's model and data."""
    if case.model is not None:
        sets = case.data_sets or []
        return case.model, [(list(map(value, i)), list(map(value, o))) for i, o in sets]
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    return model, [
        (_tensors(data, "input"), _tensors(data, "output"))
        for data in sorted(folder.iterdir())
        if data.is_dir()
    ]


def value(given: Any) -> Value:
    """What a case holds of an input or output -> arrays."""
    if given is None or isinstance(given, list):
        return given if given is None else [as_array(v) for v in given]
    if isinstance(given, onnx.TensorProto) and given.data_type not in DTYPES:
        return numpy_helper.to_array(given)
    return as_array(given)


def _tensors(folder: Path, stem: str) -> list[Array]:
    count = len(list(folder.glob(f"{stem}_*.pb")))
    files = (folder / f"{stem}_{i}.pb" for i in range(count))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(f.read_bytes())) for f in files]


def feeds_of(model: ModelProto, inputs: list[Value]) -> tuple[ModelProto, dict[str, Value]]:
    """A model and what a case gives it -> the model whose inputs these are, and they by name."""
    given = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input]
    if len(inputs) < len(names):
        names = [n for n in names if n not in given]
    feeds = dict(zip(names, inputs, strict=True))
    # old models list weights with initializers as inputs
    return _with_weights(model, feeds, given) if given & set(feeds) else (model, feeds)


def results(model: ModelProto, inputs: list[Value], target: str = "") -> list[Value]:
    """The outputs of a model compiled for these shapes, and for a GPU if a target is named."""
    model, feeds = feeds_of(model, inputs)
    shapes: dict[str, Any] = {}
    for i in [i for i in model.graph.input if i.name in feeds]:
        fed, kind = feeds[i.name], i.type.tensor_type
        if isinstance(fed, list):
            shapes[i.name] = [v.shape for v in fed]
        elif fed is None:
            shapes[i.name] = feeds.pop(i.name)
        elif any(not d.HasField("dim_value") for d in kind.shape.dim) or not kind.HasField("shape"):
            shapes[i.name] = tuple(fed.shape)
    if target:
        artifact = qcompiler.compile(model, input_shapes=shapes, target=target)
        made = qcompiler.load(artifact, device="cuda").run(feeds)
    else:
        made = qcompiler.load(qcompiler.compile(model, input_shapes=shapes)).run(feeds)
    return [made[o.name] for o in model.graph.output]


def _with_weights(
    model: ModelProto, feeds: dict[str, Value], given: set[str]
) -> tuple[ModelProto, dict[str, Value]]:
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = [i for i in copy.graph.input if i.name not in given]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    return copy, {n: a for n, a in feeds.items() if n not in given}


def assert_right(got: Value, want: Value, case: TestCase) -> None:
    """Within the tolerance of the case, of its dtype, and of sums of its largest numbers."""
    if isinstance(want, list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_right(a, b, case)
        return
    if want.dtype.kind in "OU":
        np.testing.assert_array_equal(got, want)
        return
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if case.name.startswith(DRAWN):
        assert set(got.ravel().tolist()) <= {0, 1}
        return
    if "float" not in want.dtype.name:
        np.testing.assert_array_equal(got, want)
        return
    bits = {"float16": 10, "bfloat16": 7, "float64": 52}.get(want.dtype.name, 23)
    wide = want.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0)
    atol = max(case.atol, ULPS * 2.0**-bits * largest) if bits > 10 else case.atol
    rtol = max(case.rtol, ULPS * 2.0**-bits)
    np.testing.assert_allclose(got.astype(np.float64), wide, rtol, atol)


def outcome(case: TestCase, target: str = "") -> tuple[str, str]:
    """-> ("passed", ""), ("refused", why) or ("wrong", how): anything but an Error is wrong."""
    return outcome_of(case, lambda model, inputs, _: results(model, inputs, target))


def outcome_of(
    case: TestCase, made: Callable[[ModelProto, list[Value], list[Value]], list[Value]]
) -> tuple[str, str]:
    """The outcome of what makes outputs of a case's model, its inputs and wanted outputs."""
    try:
        model, sets = loaded(case)
        for inputs, outputs in sets:
            for got, want in zip(made(model, inputs, outputs), outputs, strict=True):
                assert_right(got, want, case)
    except qcompiler.Error as e:
        return "refused", reason(e)
    except AssertionError as e:
        return "wrong", f"{case.name}: {e}"
    except Exception as e:
        return "wrong", f"{case.name}: {type(e).__name__}: {e}"
    return "passed", ""


def reason(error: qcompiler.Error) -> str:
    """An Error's text, without the case's names and numbers."""
    text = re.sub(r"'[^']*'|\b\w*test_\w*\b", "…", error.what)
    return re.sub(r"\?\d+|\d+", "n", " ".join(text.split()))[:160]
