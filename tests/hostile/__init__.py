"""Models made to hurt: each generator writes one into a folder -> the path to read.

`REFUSED` must give an Error; `BOMBS` an Error or a graph, either way at once and in little memory.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
)
from onnx.helper import make_node, make_opsetid, make_tensor_value_info

from qcompiler.onnx_io.tensors import encode

Attack = Callable[[Path], Path]
REFUSED: dict[str, Attack] = {}
BOMBS: dict[str, Attack] = {}
FLOAT = TensorProto.FLOAT


def model_of(
    nodes: list[NodeProto],
    weights: list[TensorProto] = (),  # type: ignore[assignment]
    *,
    inputs: dict[str, list[int | str]] | None = None,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 21,
    dtype: int = FLOAT,
) -> ModelProto:
    """Nodes and weights -> a model of inputs of one dtype, unchecked."""
    shapes = {"x": [1, 3, 8, 8]} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "g",
        [make_tensor_value_info(n, dtype, s) for n, s in shapes.items()],
        [make_tensor_value_info(n, FLOAT, None) for n in outputs],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=10)


def tensor(name: str, values: object, dtype: type = np.float32) -> TensorProto:
    """Values -> an honest tensor."""
    return encode(np.asarray(values, dtype), name)


def small_model() -> bytes:
    """A valid model with a bit of everything, for damaging."""
    rng = np.random.default_rng(0)
    nodes = [
        make_node("Conv", ["x", "w", "b"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make_node("Relu", ["c"], ["r"], "relu"),
        make_node("MaxPool", ["r"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        make_node("Constant", [], ["shape"], value=tensor("", [1, -1], np.int64)),
        make_node("Reshape", ["m", "shape"], ["f"], "flatten"),
        make_node("Gemm", ["f", "v"], ["g"], "gemm", transB=1, alpha=0.5),
        make_node("Softmax", ["g"], ["y"], "softmax", axis=-1),
    ]
    weights = [
        tensor("w", rng.standard_normal((4, 3, 3, 3))),
        tensor("b", rng.standard_normal(4)),
        tensor("v", rng.standard_normal((5, 64))),
    ]
    return model_of(nodes, weights).SerializeToString()


def _file(folder: Path, data: bytes | ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def _add_attack(name: str, make: Callable[[], ModelProto | bytes], to: dict[str, Attack]) -> None:
    def attack(folder: Path) -> Path:
        return _file(folder, make())

    to[name] = attack


# Files that are no models.

for _name, _data in {
    "empty": b"",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(64),
    "pickle": pickle.dumps({"weights": [1, 2, 3]}),
    "text": b"just some words, and a few more of them\n" * 9,
    "zip": b"PK\x03\x04" + bytes(200),
    "zeros": bytes(1000),
    "no graph": ModelProto(ir_version=8).SerializeToString(),
    "bare": ModelProto(ir_version=8, graph=GraphProto(name="g")).SerializeToString(),
}.items():
    _add_attack(f"file: {_name}", lambda d=_data: d, REFUSED)  # type: ignore[misc]


def _folder(folder: Path) -> Path:
    return folder


def _absent(folder: Path) -> Path:
    return folder / "nothing.onnx"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.onnx")
    return folder / "pipe.onnx"


def _three_gigabytes(folder: Path) -> Path:
    path = _file(folder, small_model())
    os.truncate(path, 3 << 30)  # a hole, not stored
    return path


REFUSED |= {
    "file: folder": _folder,
    "file: absent": _absent,
    "file: pipe": _pipe,
    "file: 3 GB": _three_gigabytes,
}


# External data.


def external_model(where: str = "weight", **entries: str) -> ModelProto:
    """A model with one tensor of 16 floats outside, as an initializer or in a constant."""
    outside = TensorProto(name="w", data_type=FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        outside.external_data.add(key=key.rstrip("_"), value=value)
    shapes: dict[str, list[int | str]] = {"x": [16]}
    add = make_node("Add", ["x", "w"], ["y"])
    if where == "weight":
        return model_of([add], [outside], inputs=shapes)
    return model_of([make_node("Constant", [], ["w"], value=outside), add], inputs=shapes)


SECRET = np.arange(16, dtype=np.float32).tobytes()


def _outside(link: Callable[[Path, Path], None] | None, **entries: str) -> Attack:
    """A secret outside the model's folder, and a model that reads it."""

    def attack(folder: Path) -> Path:
        inner = folder / "model"
        inner.mkdir()
        (folder / "secret.bin").write_bytes(SECRET)
        if link is not None:
            link(inner, folder / "secret.bin")
        return _file(inner, external_model(**entries))

    return attack


def _link_parent(inner: Path, secret: Path) -> None:
    (inner / "d").symlink_to(secret.parent)


def _good_data(inner: Path, _: Path) -> None:
    (inner / "w.bin").write_bytes(SECRET)


REFUSED |= {
    "external: absolute": lambda f: _outside(None, location=str(f / "secret.bin"))(f),
    "external: parent": _outside(None, location="../secret.bin"),
    "external: parent in the middle": _outside(None, location="a/../../secret.bin"),
    "external: parent with backslashes": _outside(None, location="..\\secret.bin"),
    "external: Windows drive": _outside(None, location="C:\\secret.bin"),
    "external: Windows root": _outside(None, location="\\secret.bin"),
    "external: symbolic link": _outside(lambda d, s: (d / "w.bin").symlink_to(s), location="w.bin"),
    "external: linked folder": _outside(_link_parent, location="d/secret.bin"),
    "external: hard link": _outside(lambda d, s: os.link(s, d / "w.bin"), location="w.bin"),
    "external: pipe": _outside(lambda d, s: os.mkfifo(d / "w.bin"), location="w.bin"),
    "external: device": _outside(
        lambda d, s: (d / "w.bin").symlink_to("/dev/zero"), location="w.bin"
    ),
    "external: folder": _outside(lambda d, s: (d / "w.bin").mkdir(), location="w.bin"),
    "external: absent": _outside(None, location="w.bin"),
    "external: no location": _outside(None),
    "external: itself": _outside(None, location="."),
    "external: NUL": _outside(_good_data, location="w.bin\0"),
    "external: long name": _outside(_good_data, location="w" * 5000),
    "external: in a constant": _outside(None, where="constant", location="../secret.bin"),
    "external: offset past the end": _outside(_good_data, location="w.bin", offset="1"),
    "external: negative offset": _outside(_good_data, location="w.bin", offset="-4"),
    "external: huge offset": _outside(_good_data, location="w.bin", offset=str(1 << 62)),
    "external: offset of words": _outside(_good_data, location="w.bin", offset="0x0"),
    "external: petabyte length": _outside(_good_data, location="w.bin", length=str(1 << 50)),
    "external: short length": _outside(_good_data, location="w.bin", length="60"),
    "external: digits without end": _outside(_good_data, location="w.bin", offset="1" * 10000),
    "external: location twice": _outside(_good_data, location="w.bin", location_="../secret.bin"),
}


# Tensors.


def _tensor_attack(name: str, **fields: object) -> None:
    broken = TensorProto(**{"name": "w", "data_type": FLOAT, "dims": [2], **fields})  # type: ignore[arg-type]
    shapes: dict[str, list[int | str]] = {"x": [2]}
    add = make_node("Add", ["x", "w"], ["y"])
    _add_attack(f"tensor: {name}", lambda: model_of([add], [broken], inputs=shapes), REFUSED)


_tensor_attack("negative dimension", dims=[-2], raw_data=bytes(8))
_tensor_attack("two negative dimensions", dims=[-1, -2], raw_data=bytes(8))
_tensor_attack("too little data", raw_data=bytes(7))
_tensor_attack("too much data", raw_data=bytes(12))
_tensor_attack("no data")
_tensor_attack("too few floats", float_data=[1.0])
_tensor_attack("floats in the wrong field", double_data=[1.0, 2.0])
_tensor_attack("2 ** 124 elements", dims=[1 << 62, 1 << 62], raw_data=bytes(8))
_tensor_attack("overflow to zero", dims=[1 << 32, 1 << 32], raw_data=b"")
_tensor_attack("empty but huge", dims=[0, 1 << 62, 1 << 62], raw_data=b"")
_tensor_attack("rank 1000", dims=[1] * 1000, raw_data=bytes(4))
_tensor_attack("strings", data_type=TensorProto.STRING, string_data=[b"a", b"b"])
_tensor_attack("complex", data_type=TensorProto.COMPLEX64, raw_data=bytes(16))
_tensor_attack("unknown dtype", data_type=99, raw_data=bytes(8))
_tensor_attack("undefined dtype", data_type=0, raw_data=bytes(8))
_tensor_attack("segment", raw_data=bytes(8), segment=TensorProto.Segment(begin=0, end=1))


def sparse_model(where: str = "weight", **fields: object) -> ModelProto:
    """A sparse tensor float32[2, 3], an initializer or in a constant, added to x."""
    parts = {"dims": [2, 3], "values": tensor("w", [1, 2]), "indices": tensor("", [1, 5], np.int64)}
    sparse = SparseTensorProto(**{**parts, **fields})  # type: ignore[arg-type]
    add = make_node("Add", ["x", "w"], ["y"])
    if where == "weight":
        model = model_of([add], inputs={"x": [2, 3]})
        model.graph.sparse_initializer.append(sparse)
        return model
    constant = make_node("Constant", [], ["w"], sparse_value=sparse)
    return model_of([constant, add], inputs={"x": [2, 3]})


def _sparse_attack(name: str, to: dict[str, Attack] = REFUSED, **fields: object) -> None:
    for where in ("weight", "constant"):
        made = sparse_model(where, **fields)
        _add_attack(f"sparse {where}: {name}", lambda m=made: m, to)  # type: ignore[misc]


def _places(*indices: object) -> TensorProto:
    return tensor("", indices, np.int64)


_sparse_attack("past the end", indices=_places(1, 6))
_sparse_attack("negative", indices=_places(-1, 5))
_sparse_attack("far past the end", indices=_places(1, (1 << 63) - 1))
_sparse_attack("past the end of a row", indices=_places([0, 3], [1, 2]))
_sparse_attack("negative in a row", indices=_places([0, -1], [1, 2]))
_sparse_attack("products overflow", indices=_places([0, 1], [1 << 62, 2]))
_sparse_attack("twice the same place", indices=_places(5, 5))
_sparse_attack("not in order", indices=_places(5, 1))
_sparse_attack("fewer places than values", indices=_places(1))
_sparse_attack("no places", indices=TensorProto())
_sparse_attack("places of three axes", indices=_places([0, 0, 1], [0, 1, 2]))
_sparse_attack("places in float", indices=tensor("", [1, 5]))
_sparse_attack("negative dimension", dims=[-2, -3])
_sparse_attack("2 ** 124 elements", dims=[1 << 62, 1 << 62])
_sparse_attack("strings", values=helper.make_tensor("w", TensorProto.STRING, [2], [b"a", b"b"]))
_sparse_attack("4 GB of zeros", dims=[1 << 15, 1 << 15], to=BOMBS)
_sparse_attack("128 MB of zeros", dims=[1 << 25], to=BOMBS)
OUTSIDE = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
OUTSIDE.external_data.add(key="location", value="../secret.bin")
_sparse_attack("values outside", values=OUTSIDE)


# Graphs.


def _graph_attack(
    name: str,
    nodes: list[NodeProto],
    weights: list[TensorProto] = (),  # type: ignore[assignment]
    *,
    to: dict[str, Attack] = REFUSED,
    **more: object,
) -> None:
    _add_attack(f"graph: {name}", lambda: model_of(nodes, weights, **more), to)  # type: ignore[arg-type]


def _ints(name: str, *values: int) -> TensorProto:
    return tensor(name, values, np.int64)


_graph_attack("cycle", [make_node("Add", ["x", "y"], ["a"]), make_node("Relu", ["a"], ["y"])])
_graph_attack("own input", [make_node("Add", ["x", "y"], ["y"])])
_graph_attack("made twice", [make_node("Relu", ["x"], ["y"]), make_node("Abs", ["x"], ["y"])])
_graph_attack("makes an input", [make_node("Relu", ["x"], ["x"]), make_node("Abs", ["x"], ["y"])])
_graph_attack("two outputs of one name", [make_node("Split", ["x"], ["y", "y"], num_outputs=2)])
_graph_attack("graph output twice", [make_node("Relu", ["x"], ["y"])], outputs=("y", "y"))
_graph_attack("output from nothing", [make_node("Relu", ["x"], ["z"])])
_graph_attack("input from nothing", [make_node("Add", ["x", "q"], ["y"])])
_graph_attack("no name for an output", [make_node("Relu", ["x"], [""])], outputs=("",))
_graph_attack("control characters", [make_node("Relu", ["x"], ["\x1b[2J"])], outputs=("\x1b[2J",))
_graph_attack("a name of a megabyte", [make_node("Relu", ["x"], ["y"], "n" * (1 << 20))])
_graph_attack("no inputs given", [make_node("Relu", [], ["y"])])
_graph_attack("too many inputs", [make_node("Relu", ["x", "x"], ["y"])])
_graph_attack("required input absent", [make_node("Add", ["x", ""], ["y"])])
_graph_attack("wrong dtypes", [make_node("Add", ["x", "w"], ["y"])], [_ints("w", 1)])
_graph_attack("dtype it does not take", [make_node("And", ["x", "x"], ["y"])])
_graph_attack("unknown operator", [make_node("Frobnicate", ["x"], ["y"])])
_graph_attack("unknown domain", [make_node("Relu", ["x"], ["y"], domain="org.evil")])
_graph_attack("unknown attribute", [make_node("Relu", ["x"], ["y"], alpha=1.0)])
_graph_attack("attribute of a wrong type", [make_node("Softmax", ["x"], ["y"], axis="last")])
_graph_attack("attribute absent", [make_node("Concat", ["x", "x"], ["y"])])
_graph_attack("opset 0", [make_node("Relu", ["x"], ["y"])], opset=0)
_graph_attack("opset of the future", [make_node("Relu", ["x"], ["y"])], opset=1 << 40)
_graph_attack("negative opset", [make_node("Relu", ["x"], ["y"])], opset=-1)
_graph_attack("Loop", [make_node("Loop", ["", "", "x"], ["y"], body=GraphProto(name="b"))])
_graph_attack("strings", [make_node("Relu", ["x"], ["y"])], dtype=TensorProto.STRING)
_graph_attack("rank unknown", [make_node("Relu", ["x"], ["y"])], inputs={"x": None})

for _op, _attrs in (
    ("Conv", {"group": 0}),
    ("Conv", {"group": -1}),
    ("Conv", {"strides": [0, 0]}),
    ("Conv", {"strides": [1]}),
    ("Conv", {"dilations": [-1, 1]}),
    ("Conv", {"pads": [-9, 0, 0, 0]}),
    ("Conv", {"pads": [0, 0]}),
    ("Conv", {"kernel_shape": [5, 5]}),
    ("Conv", {"auto_pad": "SOMEHOW"}),
    ("Conv", {"dilations": [1 << 40, 1 << 40]}),
    ("ConvTranspose", {"output_padding": [-1, -1]}),
    ("ConvTranspose", {"output_shape": [1]}),
    ("ConvTranspose", {"strides": [1 << 62, 1 << 62]}),
):
    _conv = make_node(_op, ["x", "w"], ["y"], **_attrs)
    _graph_attack(f"{_op} {_attrs}", [_conv], [tensor("w", np.ones((3, 3, 3, 3)))])

for _op, _attrs in (
    ("MaxPool", {"kernel_shape": [0, 0]}),
    ("MaxPool", {"kernel_shape": [2]}),
    ("MaxPool", {"kernel_shape": [1 << 62, 1]}),
    ("Concat", {"axis": 9}),
    ("Concat", {"axis": -(1 << 63)}),
    ("Transpose", {"perm": [0, 0, 1, 2]}),
    ("Transpose", {"perm": [0, 1]}),
    ("Transpose", {"perm": [0, 1, 2, 99]}),
    ("Softmax", {"axis": 4}),
    ("Flatten", {"axis": 7}),
    ("DepthToSpace", {"blocksize": 0}),
    ("DepthToSpace", {"blocksize": 7}),
    ("SpaceToDepth", {"blocksize": 3}),
    ("Split", {"num_outputs": 0}),
    ("Split", {"num_outputs": 1 << 40}),
    ("Cast", {"to": 8}),
    ("Cast", {"to": 77}),
    ("LRN", {"size": -3}),
):
    _node = make_node(_op, ["x"], ["y"], **_attrs)
    _graph_attack(f"{_op} {_attrs}", [_node])

for _op, _values in (
    ("Reshape", [-1, -1]),
    ("Reshape", [7, 7]),
    ("Reshape", [-5]),
    ("Reshape", [0, 0, 0, 0, 0]),
    ("Expand", [5, 5, 5, 5]),
    ("Tile", [1, 1]),
    ("Tile", [1, 1, 1, -1]),
    ("Squeeze", [1]),
    ("Squeeze", [44]),
    ("Unsqueeze", [0, 0]),
    ("Unsqueeze", [99]),
    ("ReduceSum", [8]),
):
    _node = make_node(_op, ["x", "v"], ["y"])
    _graph_attack(f"{_op} {_values}", [_node], [_ints("v", *_values)])

_graph_attack(
    "Split that does not add up",
    [make_node("Split", ["x", "v"], ["y", "z"], axis=1)],
    [_ints("v", 2, 2)],
)
_graph_attack(
    "MatMul of strangers", [make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", np.ones((5, 5)))]
)
_graph_attack("Gemm of rank 4", [make_node("Gemm", ["x", "x"], ["y"])])


# Functions and branches.


def _with_functions(functions: dict[str, list[NodeProto]], call: str) -> ModelProto:
    model = model_of([make_node(call, ["x"], ["y"], domain="f")])
    model.opset_import.append(make_opsetid("f", 1))
    for name, body in functions.items():
        made = helper.make_function(
            "f", name, ["a"], ["z"], body, [make_opsetid("", 21), make_opsetid("f", 1)]
        )
        model.functions.append(made)
    return model


def _calls_itself() -> ModelProto:
    return _with_functions({"again": [make_node("again", ["a"], ["z"], domain="f")]}, "again")


def _call_each_other() -> ModelProto:
    ping = [make_node("pong", ["a"], ["z"], domain="f")]
    pong = [make_node("ping", ["a"], ["z"], domain="f")]
    return _with_functions({"ping": ping, "pong": pong}, "ping")


def _billion_laughs() -> ModelProto:
    functions = {"f0": [make_node("Relu", ["a"], ["z"])]}
    for level in range(1, 40):
        inner = [
            make_node(f"f{level - 1}", ["a"], ["p"], domain="f"),
            make_node(f"f{level - 1}", ["p"], ["z"], domain="f"),
        ]
        functions[f"f{level}"] = inner
    return _with_functions(functions, "f39")


def _attribute_of_nobody() -> ModelProto:
    node = make_node("Softmax", ["x"], ["y"])
    node.attribute.append(AttributeProto(name="axis", type=2, ref_attr_name="axis"))
    return model_of([node])


def _attribute_twice() -> ModelProto:
    node = make_node("Softmax", ["x"], ["y"], axis=1)
    node.attribute.append(helper.make_attribute("axis", 2))
    return model_of([node])


def _branches(depth: int, condition: str = "c") -> ModelProto:
    """If within If within If."""
    inner = helper.make_graph(
        [make_node("Relu", ["x"], ["o"])], "i", [], [make_tensor_value_info("o", FLOAT, None)]
    )
    for _ in range(depth):
        inner = helper.make_graph(
            [make_node("If", [condition], ["o"], then_branch=inner, else_branch=GraphProto())],
            "i",
            [],
            [make_tensor_value_info("o", FLOAT, None)],
        )
    node = make_node("If", [condition], ["y"], then_branch=inner, else_branch=inner)
    return model_of([node], [tensor("c", True, np.bool_)])


def _two_functions() -> ModelProto:
    model = _with_functions({"once": [make_node("Relu", ["a"], ["z"])]}, "once")
    model.functions.append(model.functions[0])
    return model


def _bad_text() -> bytes:
    whole = model_of([make_node("Relu", ["x"], ["y"], "BADTEXT")]).SerializeToString()
    return whole.replace(b"BADTEXT", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9")


def _two_weights() -> ModelProto:
    return model_of([make_node("Add", ["x", "w"], ["y"])], [tensor("w", 1), tensor("w", 2)])


def _two_inputs() -> ModelProto:
    model = model_of([make_node("Relu", ["x"], ["y"])])
    model.graph.input.append(model.graph.input[0])
    return model


for _name, _make in {
    "function that calls itself": _calls_itself,
    "functions that call each other": _call_each_other,
    "functions that double 39 times": _billion_laughs,
    "two functions of one name": _two_functions,
    "attribute of no function": _attribute_of_nobody,
    "attribute twice": _attribute_twice,
    "names that are no text": _bad_text,
    "two initializers of one name": _two_weights,
    "two inputs of one name": _two_inputs,
    "branch from nothing": lambda: _branches(1, "q"),
}.items():
    _add_attack(f"structure: {_name}", _make, REFUSED)

_add_attack("branches 20 deep", lambda: _branches(20), BOMBS)


# Little files that ask for much memory.

_HUGE = 1 << 39
_bomb_inputs: dict[str, list[int | str]] = {"x": [1]}
for _bomb, _nodes, _weights in (
    ("Expand", [make_node("Expand", ["x", "v"], ["y"])], [_ints("v", _HUGE)]),
    ("Expand beyond limits", [make_node("Expand", ["x", "v"], ["y"])], [_ints("v", 1 << 62, 4)]),
    ("ConstantOfShape", [make_node("ConstantOfShape", ["v"], ["y"])], [_ints("v", _HUGE)]),
    ("Tile", [make_node("Tile", ["x", "v"], ["y"])], [_ints("v", _HUGE)]),
    (
        "Pad",
        [make_node("Pad", ["x", "v"], ["y"])],
        [_ints("v", 0, _HUGE)],
    ),
    (
        "Range",
        [make_node("Range", ["a", "b", "c"], ["r"]), make_node("Cast", ["r"], ["y"], to=1)],
        [tensor("a", 0, np.int64), tensor("b", _HUGE, np.int64), tensor("c", 1, np.int64)],
    ),
    (
        "OneHot",
        [make_node("OneHot", ["i", "d", "v"], ["y"])],
        [_ints("i", 1), _ints("d", _HUGE), tensor("v", [0, 1])],
    ),
    (
        "Resize",
        [make_node("Resize", ["x", "", "s"], ["y"])],
        [tensor("s", [1e11])],
    ),
    (
        "shapes of bombs",
        [
            make_node("Expand", ["x", "v"], ["e"]),
            make_node("NonZero", ["e"], ["n"]),
            make_node("Shape", ["n"], ["s"]),
            make_node("Expand", ["x", "s"], ["y"]),
        ],
        [_ints("v", _HUGE)],
    ),
    (
        "If of a bomb",
        [
            make_node("Expand", ["t", "v"], ["e"]),
            make_node("ReduceMax", ["e"], ["m"], keepdims=0),
            make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
            make_node(
                "If",
                ["c"],
                ["y"],
                then_branch=helper.make_graph(
                    [make_node("Relu", ["x"], ["o"])],
                    "t",
                    [],
                    [make_tensor_value_info("o", FLOAT, None)],
                ),
                else_branch=GraphProto(),
            ),
        ],
        [tensor("t", 1.0), _ints("v", _HUGE)],
    ),
):
    _graph_attack(_bomb, list(_nodes), list(_weights), to=BOMBS, inputs=_bomb_inputs)


def _chain(length: int) -> ModelProto:
    nodes = [make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    return model_of(nodes, inputs={"v0": [4]}, outputs=(f"v{length}",))


_add_attack("a chain of 5000", lambda: _chain(5000), BOMBS)
