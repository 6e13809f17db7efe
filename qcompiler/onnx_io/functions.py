"""An operator's call -> the body that ONNX defines for it as a function, or None.

Some bodies are fixed; others depend on the attributes given, on which inputs and outputs are
present, and on the inputs' types. Operators without a definition of our own are read by their
bodies, and so are those forms of our own operators that no kernel computes (`@by_function`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto, helper

from qcompiler.errors import Error
from qcompiler.ir import Node
from qcompiler.onnx_io.call import Call, adapted
from qcompiler.onnx_io.schema import NEWEST, function_body
from qcompiler.onnx_io.tensors import CODES
from qcompiler.ops import OPERATORS
from qcompiler.ops.shapes import agree

_FORMS: dict[str, Callable[[Call], bool]] = {}


def by_function(op: str) -> Callable[[Callable[[Call], bool]], Callable[[Call], bool]]:
    """Register which calls of an operator of our own are read by the operator's function."""

    def register(form: Callable[[Call], bool]) -> Callable[[Call], bool]:
        _FORMS[op] = form
        return form

    return register


@by_function("Attention")
def _rare_attention(call: Call) -> bool:
    """Past keys, lengths, windows, and outputs besides the first."""
    windows = (call.get("left_window_size"), call.get("right_window_size"))
    extra = any(i is not None for i in call.inputs[4:])
    wide = call.need(0).dtype == "float64"
    return wide or extra or call.read > 1 or any(w not in (None, -1) for w in windows)


@by_function("LayerNormalization")
def _with_statistics(call: Call) -> bool:
    """With mean and inverse deviation as outputs."""
    return call.read > 1


@by_function("CausalConvWithState")
def _of_known_window(call: Call) -> bool:
    """With as many channels, and weights, as are known."""
    x, w = call.need(0).type, call.need(1).type
    if x.rank != 3 or w.rank != 3:
        return True
    agree(x.shape[1], w.shape[0])
    return all(isinstance(d, int) for d in (x.shape[1], *w.shape))


def has_function(op: str, opset: int, domain: str = "") -> bool:
    """Does ONNX define the operator as a function, maybe of its inputs' types?"""
    try:
        found = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return False
    return bool(found.has_function or found.has_context_dependent_function)  # type: ignore[attr-defined]


def body_of(
    call: Call, opset: int, attributes: Sequence[AttributeProto], domain: str = ""
) -> FunctionProto | None:
    """The body by which to read a call, whose attributes have passed the schema's check; None: our
    own operators define it.
    """
    own = call.op in OPERATORS or adapted(call.op)
    if own and not (call.op in _FORMS and _FORMS[call.op](call)):
        return None
    fixed = None if domain else function_body(call.op, opset)
    return _built(call, opset, attributes, domain) if fixed is None else fixed


def _built(
    call: Call, opset: int, attributes: Sequence[AttributeProto], domain: str
) -> FunctionProto | None:
    """The body that depends on how the operator is called."""
    schema = onnx.defs.get_schema(call.op, opset, domain)
    versions = [
        v
        for v in schema.context_dependent_function_opset_versions  # type: ignore[attr-defined]
        if v <= opset
    ]
    if not versions:
        return None
    node = NodeProto(op_type=call.op, domain=domain)
    node.input.extend(f"i{i}" if x is not None else "" for i, x in enumerate(call.inputs))
    node.output.extend(f"o{i}" for i in range(call.outputs))
    node.attribute.extend(attributes)
    types = [_type_proto(x).SerializeToString() for x in call.inputs]
    body = FunctionProto()
    try:
        made = schema.get_context_dependent_function_with_opset_version(  # type: ignore[attr-defined]
            max(versions), node.SerializeToString(), types
        )
    except (RuntimeError, ValueError) as e:
        raise Error(
            f"its inputs and attributes do not fit ({e})", where=f"{call.name} ({call.op})"
        ) from e
    body.ParseFromString(made)
    if all(i.domain for i in body.opset_import):
        body.opset_import.add(version=NEWEST)
    given = {a.name for a in attributes}
    body.attribute_proto.extend(
        a.default_value
        for a in schema.attributes.values()
        if a.default_value.name and a.name not in given
    )
    made_here = {o for node in body.node for o in node.output}
    while body.output and body.output[-1] not in made_here:  # an optional one, left out
        del body.output[-1]
    return body if body.node else None


def _type_proto(x: Node | None) -> TypeProto:
    """A value's type as a file holds it; symbols stay open."""
    if x is None:
        return TypeProto()
    dims = [d if isinstance(d, int) else None for d in x.shape]
    return helper.make_tensor_type_proto(CODES[x.dtype], dims)
