"""Attributes and inputs of a file's nodes, checked and completed by ONNX's schemas.

Type rules may then rely on them. The schemas are static tables of the onnx package; no untrusted
data but an operator's name reaches its native code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto

from qcompiler.errors import Error
from qcompiler.ir import Attr, Node, constant
from qcompiler.onnx_io.tensors import CODES, ExternalData, Unsupported, decode, dense, dtype_name
from qcompiler.ops import OPERATORS

_SPELLED = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "float4_e2m1fn": "tensor(float4e2m1)",
    "float8_e8m0fnu": "tensor(float8e8m0)",
    **{
        d: f"tensor({d.replace('_', '')})"
        for d in CODES
        if d not in ("float16", "float32", "float64", "float4_e2m1fn", "float8_e8m0fnu")
    },
}
"""dtype -> its spelling in schemas."""
NEWEST = 28
"""The newest opset reviewed; none since 26, the one of our graphs, changed semantics."""
OLDEST = 1

DTYPE_ATTRIBUTES = ("dtype", "output_dtype", "precision", "softmax_precision", "stash_type", "to")
_KINDS = dict(AttributeProto.AttributeType.items())
_UNREAD = (AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.TYPE_PROTO)


@dataclass(frozen=True)
class Formal:
    """A formal input: its allowed dtypes; all inputs of a `group` have the same."""

    name: str
    dtypes: frozenset[str]
    group: str
    optional: bool
    variadic: bool


@dataclass(frozen=True)
class Schema:
    """The signature of an operator in one opset."""

    attributes: Mapping[str, int]
    required: frozenset[str]
    defaults: Mapping[str, Attr]
    inputs: tuple[Formal, ...]
    min_inputs: int
    max_inputs: int
    max_outputs: int


@cache
def schema(op: str, opset: int, domain: str = "") -> Schema | None:
    """The schema of an operator of a domain of ONNX's at an opset, or None."""
    try:
        found = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
    constraints = {c.type_param_str: c.allowed_type_strs for c in found.type_constraints}
    known = {spelled: dtype for dtype, spelled in _SPELLED.items()} | {"tensor(string)": "string"}
    inputs = tuple(
        Formal(
            i.name,
            frozenset(known[t] for t in constraints.get(i.type_str, [i.type_str]) if t in known),
            i.type_str if i.is_homogeneous and i.type_str in constraints else "",
            i.option is onnx.defs.OpSchema.FormalParameterOption.Optional,
            i.option is onnx.defs.OpSchema.FormalParameterOption.Variadic,
        )
        for i in found.inputs
    )
    nothing = ExternalData(None)
    return Schema(
        {
            k: int(a.type.value)  # type: ignore[attr-defined]
            for k, a in found.attributes.items()
        },
        frozenset(k for k, a in found.attributes.items() if a.required),
        {
            k: value_of(a.default_value, nothing, op)
            for k, a in found.attributes.items()
            if a.default_value.name
        },
        inputs,
        found.min_input,
        found.max_input,
        found.max_output,
    )


def value_of(proto: AttributeProto, external: ExternalData, where: str) -> Attr:
    """AttributeProto -> number, text, tuple or array."""
    kind = proto.type
    if kind == AttributeProto.FLOAT:
        return float(proto.f)
    if kind == AttributeProto.INT:
        return int(proto.i)
    if kind == AttributeProto.STRING:
        return _text(proto.s, proto.name, where)
    if kind == AttributeProto.TENSOR:
        return decode(proto.t, external, f"{where}, attribute {proto.name!r}")
    if kind == AttributeProto.SPARSE_TENSOR:
        return dense(proto.sparse_tensor, external, f"{where}, attribute {proto.name!r}")
    if kind == AttributeProto.FLOATS:
        return tuple(proto.floats)
    if kind == AttributeProto.INTS:
        return tuple(proto.ints)
    if kind == AttributeProto.STRINGS:
        return tuple(_text(s, proto.name, where) for s in proto.strings)
    known = AttributeProto.AttributeType.values()
    spelled = AttributeProto.AttributeType.Name(kind) if kind in known else f"number {kind}"
    raise Unsupported(f"attribute {proto.name!r} of type {spelled} is not supported", where=where)


def _text(raw: bytes, key: str, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise Error(f"attribute {key!r} is not text", where=where) from e


def checked_attributes(
    spec: Schema, protos: Sequence[AttributeProto], external: ExternalData, where: str
) -> dict[str, Attr]:
    """A node's attributes -> values, without subgraphs, with defaults filled in."""
    given: dict[str, Attr] = {}
    seen: set[str] = set()
    for proto in protos:
        if proto.name in seen:
            raise Error(f"attribute {proto.name!r} is given twice", where=where)
        seen.add(proto.name)
        wanted = spec.attributes.get(proto.name)
        if wanted is None:
            raise Error(f"unknown attribute {proto.name!r}", where=where)
        if proto.type != wanted:
            raise Error(f"attribute {proto.name!r} is of the wrong type", where=where)
        if proto.type not in _UNREAD:
            given[proto.name] = value_of(proto, external, where)
    missing = sorted(spec.required - seen)
    if missing:
        raise Error(f"attribute {missing[0]!r} is missing", where=where)
    return {**spec.defaults, **given}


def check_inputs(spec: Schema, inputs: Sequence[Node | None], where: str) -> None:
    """Raise Error unless the number of inputs and their dtypes fit the schema."""
    count = len(inputs)
    if not spec.min_inputs <= count <= spec.max_inputs:
        endless = spec.max_inputs > 1 << 20
        most = " or more" if endless else f" to {spec.max_inputs}"
        needed = f"{spec.min_inputs}{most if spec.max_inputs > spec.min_inputs else ''}"
        raise Error(f"{count} inputs where {needed} are needed", where=where)
    bound: dict[str, str] = {}
    for index, node in enumerate(inputs):
        formal = spec.inputs[min(index, len(spec.inputs) - 1)]
        if node is None:
            if not formal.optional:
                raise Error(f"input {formal.name!r} is missing", where=where)
            continue
        if node.dtype not in formal.dtypes:
            raise Error(f"input {formal.name!r} cannot be {node.dtype}", where=where)
        if formal.group and bound.setdefault(formal.group, node.dtype) != node.dtype:
            other = bound[formal.group]
            raise Error(f"inputs of {other} and {node.dtype} do not match", where=where)


def known_attributes(op: str, given: Mapping[str, Attr], where: str) -> dict[str, Attr]:
    """Attributes of our operator: dtypes by name, unknown ones with ONNX's default dropped."""
    known = OPERATORS[op].defaults if op in OPERATORS else {}
    spec = schema(op, NEWEST)
    attrs: dict[str, Attr] = {}
    for key, value in given.items():
        if key in known and value is not None:
            code = isinstance(value, int) and key in DTYPE_ATTRIBUTES
            attrs[key] = (dtype_name(value, where) if value else None) if code else value  # type: ignore[arg-type]
        elif value is not None and (spec is None or spec.defaults.get(key) != value):
            raise Unsupported(f"attribute {key}={value}", where=where)
    return attrs


def constant_of(attrs: Mapping[str, Attr], name: str, where: str) -> Node:
    """The attributes of a Constant -> its node."""
    given = [(k, v) for k, v in attrs.items() if v is not None]
    if len(given) != 1:
        raise Error(f"{len(given)} values where 1 is needed", where=where)
    key, value = given[0]
    if isinstance(value, np.ndarray):  # of value or sparse_value
        return constant(value, name)
    if key in ("value_int", "value_ints"):
        return constant(np.array(value, np.int64), name)
    if key in ("value_float", "value_floats"):
        return constant(np.array(value, np.float32), name)
    raise Unsupported(f"constants of {key} are not supported", where=where)


def bound(
    proto: AttributeProto, attributes: Mapping[str, AttributeProto] | None, where: str
) -> AttributeProto | None:
    """An attribute with a function's reference resolved; None if the caller omitted it."""
    if not proto.ref_attr_name:
        return proto
    if attributes is None:
        raise Error(
            f"attribute {proto.name!r} refers to {proto.ref_attr_name!r} outside a function",
            where=where,
        )
    if proto.ref_attr_name not in attributes:
        return None
    bound = AttributeProto()
    bound.CopyFrom(attributes[proto.ref_attr_name])
    bound.name = proto.name
    return bound


@cache
def function_body(op: str, opset: int) -> FunctionProto | None:
    """The body of an operator that ONNX defines as a function, with defaults filled in."""
    try:
        found = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
    if not found.has_function:  # type: ignore[attr-defined]
        return None
    body = FunctionProto()
    body.CopyFrom(found.function_body)
    defaults = (a.default_value for a in found.attributes.values() if a.default_value.name)
    body.attribute_proto.extend(defaults)
    return body
