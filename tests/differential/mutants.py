"""Index -> a model damaged in a few places, which must be refused, or be right.

The changes know what a model is made of: they exchange names, attributes, operators, dtypes, sizes
and numbers for ones that are near a limit, so that most pass the first look.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import ModelProto, helper

from qcompiler import plugins
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.onnx_io.reader import read
from qcompiler.ops import OPERATORS
from qcompiler.options import Options
from qcompiler.runtime import load

from .builder import Builder
from .checks import differs
from .generate import generate
from .reference import references
from .shards import Job, Result

INTEGERS = (0, 1, -1, 2, 3, 5, 7, 16, 63, 65, 255, 1000, 65536, 1 << 20, 1 << 28, (1 << 31) - 1)
INTEGERS = (*INTEGERS, 1 << 31, -(1 << 31), 1 << 33, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), 1e-45, 1e38, -1e38, 255.0)
WORDS = (
    "",
    "nearest",
    "cubic",
    "SAME_UPPER",
    "reflect",
    "wrap",
    "VALID",
    "ij,jk",
    "max",
    "é\u202e",
)
WORDS = (*WORDS, "../../etc/passwd", "x" * 3000, "BIDIRECTIONAL", "%s%n", "align_corners")
ATTRIBUTES = ("axis", "axes", "group", "strides", "pads", "dilations", "kernel_shape", "perm", "to")
ATTRIBUTES = (*ATTRIBUTES, "alpha", "hidden_size", "keepdims", "mode", "num_outputs", "ceil_mode")
SKIPPED = ("doc_string", "producer_name", "producer_version", "ir_version")
LARGE = 1 << 22
"""Models of more elements are compiled, but not run."""


def job(out: Path) -> Job:
    """What is done with an index; a mutant that is not refused and not right is written there."""
    plugins.load_all()

    def run(index: int) -> Result:
        model = mutant(index)
        (out / "mutants").mkdir(exist_ok=True)
        path = out / "mutants" / f"{index}.onnx"
        path.write_bytes(model.SerializeToString())
        result = tried(path)
        if not result.get("faults"):
            path.unlink()
        return result

    return run


def mutant(index: int) -> ModelProto:
    """The damaged model of an index."""
    r = random.Random(f"mutant {index}")
    model = ModelProto()
    while True:
        model.CopyFrom(generate(index).model)
        for _ in range(r.choice((1, 1, 1, 2, 3))):
            if r.random() < 0.5:
                _structure(model, r)
            else:
                _field(model, r)
        try:
            model.SerializeToString()
        except Exception:  # a name that protobuf does not write
            continue
        return model


def tried(path: Path) -> Result:
    """A model's file -> a refusal, or what differs from its meaning."""
    try:
        model = load(Compilation(path, Options(threads=1)).artifact)
    except Error as e:
        return {"refused": str(e)[:200]}
    graph = read(onnx.load(path), {v.name: v.shape for v in model.inputs if 0 not in v.shape})
    if sum(t.size for n in graph.nodes for t in n.types) > LARGE:
        return {"note": "compiled; too large to compute here"}
    builder = Builder(np.random.default_rng(0), 1)
    feed = {n.name: builder.random(n.type.dims, n.dtype, 1.0) for n in graph.inputs}
    try:
        got = model.run(feed)
    except Error as e:
        return {"refused": str(e)[:200]}
    try:
        wanted = references(graph, feed, kernels=False)
    except Error:
        return {"note": "the meaning refuses these values"}
    faults = [(n, d) for n, r in wanted.items() if (d := differs(got[n], r))]
    return {"faults": faults}


def _structure(m: ModelProto, r: random.Random) -> None:
    """One change to how the model hangs together."""
    graph = m.graph
    if not graph.node:
        return
    node = r.choice(graph.node)
    kind = r.randrange(10)
    if kind == 0:
        node.op_type = r.choice(sorted(n for n in OPERATORS if n[0].isupper()))
    elif kind == 1 and node.input:
        node.input[r.randrange(len(node.input))] = r.choice(_names(m))
    elif kind == 2 and node.input:
        del node.input[r.randrange(len(node.input)) :]
    elif kind == 3 and node.attribute:
        del node.attribute[r.randrange(len(node.attribute))]
    elif kind == 4:
        value = r.choice((r.choice(INTEGERS), [r.choice(INTEGERS)] * 4, r.choice(FLOATS), "max"))
        node.attribute.append(helper.make_attribute(r.choice(ATTRIBUTES), value))
    elif kind == 5 and graph.input:
        shape = r.choice(graph.input).type.tensor_type.shape.dim
        if shape:
            r.choice(shape).dim_value = max(-(1 << 62), r.choice(INTEGERS))
    elif kind == 6 and graph.initializer:
        tensor = r.choice(graph.initializer)
        tensor.data_type = r.randrange(26)
    elif kind == 7 and graph.initializer:
        tensor = r.choice(graph.initializer)
        if tensor.dims:
            tensor.dims[r.randrange(len(tensor.dims))] = r.choice(INTEGERS)
    elif kind == 8:
        graph.output.append(onnx.ValueInfoProto(name=r.choice(_names(m))))
    else:
        graph.node.append(r.choice(graph.node))


def _names(m: ModelProto) -> list[str]:
    names = [o for n in m.graph.node for o in (*n.input, *n.output)]
    return [*names, *(i.name for i in m.graph.input), ""]


def _field(m: ModelProto, r: random.Random) -> None:
    """One field of the file, anywhere in it, gets another value."""
    message, field, index = r.choice(list(_fields(m)))
    value = getattr(message, field.name)
    try:
        if index is None:
            setattr(message, field.name, _fresh(field, r, value))
        elif index >= 0:
            value[index] = _fresh(field, r, value[index])
        elif r.random() < 0.5 or field.message_type is None:
            del value[r.randrange(len(value))]
        else:
            value.append(r.choice(value))
    except (ValueError, TypeError):  # protobuf checks what fits into a field
        return


def _fields(message: Any) -> Iterator[tuple[Any, FieldDescriptor, int | None]]:
    """Every field of a message and of those inside: (message, field, index among several)."""
    for field, value in message.ListFields():
        if field.name in SKIPPED:
            continue
        many = not isinstance(value, (int, float, str, bytes)) and hasattr(value, "__len__")
        if field.message_type is not None:
            for inner in value if many else [value]:
                yield from _fields(inner)
            if many:
                yield message, field, -1
        elif many:
            yield from ((message, field, i) for i in range(min(len(value), 8)))
            yield message, field, -1
        else:
            yield message, field, None


def _fresh(field: FieldDescriptor, r: random.Random, old: Any) -> Any:
    """Another value for a field."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return r.choice(INTEGERS) if r.random() < 0.7 else old + r.choice((-2, -1, 1, 2))
    if isinstance(old, float):
        return r.choice(FLOATS)
    if isinstance(old, str):
        return r.choice(WORDS)
    return _bytes(old, r)


def _bytes(old: bytes, r: random.Random) -> bytes:
    """Text, or the raw data of a tensor: cut, made longer, or with a strange number."""
    kind = r.randrange(4)
    if kind == 0 or not old:
        return r.choice(WORDS).encode()
    if kind == 1:
        return old[: len(old) // 2] if r.random() < 0.5 else old + bytes(r.choice((1, 4, 8)))
    data = bytearray(old)
    if len(data) >= 8 and kind == 2:
        at = r.randrange(len(data) // 8) * 8
        data[at : at + 8] = r.choice(INTEGERS).to_bytes(8, "little", signed=True)
    else:
        data[r.randrange(len(data))] = r.randrange(256)
    return bytes(data)
