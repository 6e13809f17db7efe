"""Graph of ONNX operators -> ONNX model of opset 26, with quantization in QDQ form.

The compiler's own `quantize` and `dequantize` are written as exactly equal ONNX arithmetic, and
`recurrent` as a layer (recurrent.py). Its other operators have no ONNX form, so a graph must be
written before the layout stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from qcompiler.errors import Error
from qcompiler.files import replacing
from qcompiler.ir import Array, Attr, Graph, Node, Type, numpy_dtype
from qcompiler.onnx_io.recurrent import with_layers
from qcompiler.onnx_io.schema import DTYPE_ATTRIBUTES, Schema, schema
from qcompiler.onnx_io.tensors import CODES, encode
from qcompiler.ops import OPERATORS

OPSET = 26
IR_VERSION = 13
"""The newest opset that onnxruntime 1.31 runs, and its IR version."""

MAX_INLINE_BYTES = 1 << 30
"""Larger weights are saved in a separate file: a protobuf file is limited to 2 GB."""
_EXTERNAL_BYTES = 1 << 10
_ALIGNMENT = 4096


def write(graph: Graph) -> ModelProto:
    """Graph -> ONNX model with the same inputs, outputs, nodes and names.

    Raises Error for an operator or dtype that ONNX lacks.
    """
    return _Writer(with_layers(graph)).model()


def save(graph: Graph, path: str | Path) -> None:
    """Graph -> ONNX file, written atomically.

    Weights of more than 1 GB go to `<path>.data`.
    """
    path = Path(path)
    model = write(graph)
    weights = sum(len(t.raw_data) for t in model.graph.initializer)
    if weights > MAX_INLINE_BYTES:
        data = path.with_name(path.name + ".data")
        _write(data, _moved_out(model, data.name))
    _write(path, [model.SerializeToString()])


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with replacing(path) as file:
        file.writelines(chunks)


def _moved_out(model: ModelProto, location: str) -> Iterator[bytes]:
    """Move the large weights out of a model; yields their bytes, each at an aligned offset."""
    offset = 0
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        if len(raw) < _EXTERNAL_BYTES:
            continue
        gap = -offset % _ALIGNMENT
        yield bytes(gap)
        yield raw
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        facts = {"location": location, "offset": offset + gap, "length": len(raw)}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        offset += gap + len(raw)


class _Writer:
    """The conversion of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = {i.name for i in graph.inputs} | set(graph.output_names)
        self.called: set[str] = set()
        self.names: dict[Node, str] = {}
        self.items: dict[Node, dict[int, str]] = {}
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def model(self) -> ModelProto:
        """The graph's model."""
        outputs = dict(
            zip(reversed(self.graph.outputs), reversed(self.graph.output_names), strict=True)
        )
        for node in self.graph.nodes:
            wanted = outputs.get(node)
            if node.op == "input":
                self.names[node] = node.name
            else:
                self.names[node] = wanted or self.unique(node.name or node.op)
            if node.op == "item":
                self.items.setdefault(node.operands[0], {})[node.int("index")] = self.names[node]
        for node in self.graph.nodes:
            self.write(node)
        for node, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            if self.names[node] != name:  # an input, or a value that is two outputs
                self.add("Identity", [self.names[node]], [name], f"{name}.output")
        body = helper.make_graph(
            self.nodes,
            self.graph.name,
            [_info(i.name, i.type) for i in self.graph.inputs],
            [
                _info(name, node.type)
                for node, name in zip(self.graph.outputs, self.graph.output_names, strict=True)
            ],
            self.weights,
        )
        model = helper.make_model(
            body,
            producer_name="qcompiler",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        helper.set_model_props(model, dict(self.graph.notes))
        return model

    def unique(self, name: str) -> str:
        """A unique name of a value."""
        return _unique(name, self.taken)

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        attrs: Mapping[str, Attr] = MappingProxyType({}),
    ) -> None:
        """Append one ONNX node."""
        spec = schema(op, OPSET)
        if spec is None:
            hint = "write the graph before the layout stage"
            hint = "read the model with its loops unrolled" if op in ("loop", "room") else hint
            raise Error(f"ONNX has no operator {op}", where=name, hint=hint if op.islower() else "")
        called = (
            _unique(name, self.called) if name else ""
        )  # onnxruntime refuses duplicate node names
        node = NodeProto(op_type=op, name=called, input=inputs, output=outputs)
        node.attribute.extend(_attributes(op, spec, attrs, f"{name} ({op})"))
        self.nodes.append(node)

    def weight(self, what: str, array: Array) -> str:
        """Append an initializer; returns its name."""
        name = self.unique(what)
        self.weights.append(encode(array, name))
        return name

    def write(self, node: Node) -> None:
        """Append the ONNX form of one node."""
        own = _OWN.get(node.op)
        if own is not None:
            own(self, node)
            return
        inputs = ["" if i is None else self.names[i] for i in node.inputs]
        self.add(node.op, inputs, self.outputs(node), node.name, node.attrs)

    def outputs(self, node: Node) -> list[str]:
        """The names of a node's outputs; an unused one is empty where ONNX allows it."""
        if len(node.types) == 1:
            return [self.names[node]]
        read = self.items.get(node, {})
        names = [read.get(i, "") for i in range(len(node.types))]
        if node.op == "Split":
            return [n or self.unique(f"{node.name}.{i}") for i, n in enumerate(names)]
        while not names[-1]:
            names.pop()
        names[0] = names[0] or self.unique(f"{node.name}.0")
        return names


def _nothing(_: _Writer, __: Node) -> None:
    """Inputs and items have names only."""


def _constant(writer: _Writer, node: Node) -> None:
    writer.weights.append(encode(node.array, writer.names[node]))


def _quantize(writer: _Writer, node: Node) -> None:
    """saturate(round(x * factor) + zero), bit-exact: quantize the product (quotient) at scale 1."""
    x, factor, zero = node.operands
    name = writer.names[node]
    scaled, sign = writer.unique(f"{name}.scaled"), "Div" if node.attrs["divide"] else "Mul"
    writer.add(sign, [writer.names[x], writer.names[factor]], [scaled], f"{node.name}.{sign}")
    one = writer.weight(f"{name}.one", np.array(1, np.float32))
    zero_name = writer.weight(f"{name}.zero", _zero(zero, node.dtype, node))
    writer.add("QuantizeLinear", [scaled, one, zero_name], [name], node.name)


def _dequantize(writer: _Writer, node: Node) -> None:
    x, scale, zero = node.operands
    points = np.broadcast_to(_zero(zero, x.dtype, node), scale.type.dims)
    inputs = [writer.names[x], writer.names[scale]]
    if x.dtype != "int32":  # ONNX has no zero point of int32
        inputs.append(writer.weight(f"{writer.names[node]}.zero", points))
    elif points.any():
        raise Error("ONNX cannot dequantize int32 with a zero point", where=node.name)
    axis = max(x.type.rank - 1, 0)
    writer.add("DequantizeLinear", inputs, [writer.names[node]], node.name, {"axis": axis})


def _swish(writer: _Writer, node: Node) -> None:
    """x * Sigmoid(alpha * x): onnxruntime 1.31 has no kernel for ONNX's Swish."""
    x, name, alpha = writer.names[node.operands[0]], writer.names[node], node.attrs["alpha"]
    scaled, gate = x, writer.unique(f"{name}.gate")
    if alpha != 1:
        scaled = writer.unique(f"{name}.scaled")
        factor = writer.weight(f"{name}.alpha", np.array(alpha, numpy_dtype(node.dtype)))
        writer.add("Mul", [x, factor], [scaled], f"{node.name}.alpha")
    writer.add("Sigmoid", [scaled], [gate], f"{node.name}.gate")
    writer.add("Mul", [x, gate], [name], node.name)


def _zero(zero: Node, dtype: str, node: Node) -> Array:
    if not zero.is_constant:
        raise Error("ONNX needs a constant zero point", where=node.name)
    return zero.array.astype(numpy_dtype(dtype))


_OWN: Mapping[str, Callable[[_Writer, Node], None]] = {
    "input": _nothing,
    "item": _nothing,
    "constant": _constant,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "Swish": _swish,
}


def _unique(name: str, taken: set[str]) -> str:
    """A free name: the given one or with a number appended. It is added to `taken`."""
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


def _info(name: str, type: Type) -> ValueInfoProto:
    if type.dtype not in CODES:
        raise Error(f"ONNX has no tensors of {type.dtype}", where=name)
    return helper.make_tensor_value_info(name, CODES[type.dtype], list(type.shape))


def _attributes(
    op: str, spec: Schema, attrs: Mapping[str, Attr], where: str
) -> Iterator[AttributeProto]:
    """Our attributes -> ONNX's, with the types in its schema.

    None is dropped, and so are defaults: onnxruntime does not know the newest attributes.
    """
    for key, value in sorted(attrs.items()):
        if value is None or key == "outputs":  # ONNX counts the output names instead
            continue
        if not isinstance(value, np.ndarray) and value == spec.defaults.get(key):
            continue
        kind = spec.attributes.get(key)
        if kind is None and value == OPERATORS[op].defaults.get(key):
            continue  # newer than the opset
        if kind is None:
            raise Error(f"ONNX has no attribute {key!r}", where=where)
        if key in DTYPE_ATTRIBUTES and isinstance(value, str):
            value = CODES[value]
        proto = AttributeProto(name=key, type=kind)  # type: ignore[arg-type]
        if isinstance(value, np.ndarray):
            proto.t.CopyFrom(encode(value))
        elif kind == AttributeProto.FLOAT:
            proto.f = float(value)  # type: ignore[arg-type]
        elif kind == AttributeProto.INT:
            proto.i = int(value)  # type: ignore[arg-type]
        elif kind == AttributeProto.STRING:
            proto.s = str(value).encode()
        elif kind == AttributeProto.FLOATS:
            proto.floats.extend(float(v) for v in value)  # type: ignore[union-attr]
        elif kind == AttributeProto.INTS:
            proto.ints.extend(int(v) for v in value)  # type: ignore[union-attr]
        else:
            proto.strings.extend(str(v).encode() for v in value)  # type: ignore[union-attr]
        yield proto
