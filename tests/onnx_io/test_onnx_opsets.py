"""Every change of ONNX from opset 7 on: graphs compute what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import pytest
from hostile import tensor
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.helper import make_node
from oracles import onnxruntime_outputs

from qcompiler.ir import Array
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate

OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26)
RNG = np.random.default_rng(7)
IMAGE = RNG.standard_normal((2, 4, 7, 9)).astype(np.float32)
MATRIX = RNG.standard_normal((5, 6)).astype(np.float32)


@dataclass
class Case:
    """One node (or a few) in the form of opsets `first` to `last`, and its inputs."""

    name: str
    first: int
    last: int
    nodes: list[NodeProto]
    weights: list[TensorProto] = field(default_factory=list)
    inputs: dict[str, Array] = field(default_factory=lambda: {"x": IMAGE})
    outputs: tuple[str, ...] = ("y",)
    domain: str = ""
    tolerance: float = 1e-5

    def model(self, opset: int) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [
                helper.make_tensor_value_info(
                    n, helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape)
                )
                for n, a in self.inputs.items()
            ],
            [helper.make_empty_tensor_value_info(n) for n in self.outputs],
            self.weights,
        )
        imports = [helper.make_opsetid("", opset)]
        if self.domain:
            imports.append(helper.make_opsetid(self.domain, 1))
        return helper.make_model(graph, opset_imports=imports, ir_version=8)

    def opsets(self) -> list[int]:
        """The first and last opset, and those where the newest one's schemas changed most."""
        picked = {self.first, self.last, 9, 11, 12, 13, 18, 21, 22, 26}
        return sorted(o for o in picked if self.first <= o <= self.last)


def ints(name: str, *values: int) -> TensorProto:
    return tensor(name, values, np.int64)


def floats(name: str, values: object) -> TensorProto:
    return tensor(name, values, np.float32)


def one(op: str, *inputs: str, **attrs: object) -> list[NodeProto]:
    return [make_node(op, inputs or ["x"], ["y"], op.lower(), **attrs)]


def became_inputs() -> Iterator[Case]:
    yield Case("Clip", 7, 10, one("Clip", min=-0.5, max=0.75))
    yield Case("Clip above", 7, 10, one("Clip", max=0.75))
    yield Case("Clip nothing", 7, 10, one("Clip"))
    limits = [floats("a", -0.5), floats("b", 0.75)]
    yield Case("Clip", 11, 26, one("Clip", "x", "a", "b"), limits)
    yield Case("Clip above", 11, 26, one("Clip", "x", "", "b"), limits[1:])
    yield Case("Slice", 7, 9, one("Slice", starts=[1, -3], ends=[9, 100], axes=[2, 3]))
    yield Case("Slice all", 7, 9, one("Slice", starts=[0, 1, 2, 3], ends=[1, 2, 3, 4]))
    cut = [ints("s", 5, -9), ints("e", 0, 100), ints("a", -2, 3), ints("t", -2, 3)]
    yield Case("Slice", 10, 26, one("Slice", "x", "s", "e", "a", "t"), cut)
    pads = [0, 1, 2, 0, 0, 0, 1, 3]
    for mode in ("constant", "reflect", "edge"):
        yield Case(f"Pad {mode}", 7, 10, one("Pad", mode=mode, pads=pads, value=1.5))
        weights = [ints("p", *pads), floats("v", 1.5)]
        yield Case(f"Pad {mode}", 11, 26, one("Pad", "x", "p", "v", mode=mode), weights)
    weights = [ints("p", 1, 2), floats("v", 1.5), ints("a", -1)]
    yield Case("Pad one axis", 18, 26, one("Pad", "x", "p", "v", "a"), weights)
    for first, last, attrs, weights in (
        (7, 9, {"k": 3}, []),
        (10, 26, {}, [ints("k", 3)]),
        (11, 26, {"largest": 0}, [ints("k", 3)]),
    ):
        names = ["x", *(w.name for w in weights)]
        node = make_node("TopK", names, ["y", "i"], axis=1, **attrs)
        yield Case(f"TopK {attrs}", first, last, [node], weights, outputs=("y", "i"))
    x = {"x": IMAGE[:, :1, :, :1]}
    yield Case("Squeeze", 7, 12, one("Squeeze", axes=[1, 3]), inputs=x)
    yield Case("Squeeze", 13, 26, one("Squeeze", "x", "a"), [ints("a", 1, 3)], x)
    yield Case("Squeeze all", 7, 26, one("Squeeze"), inputs=x)
    yield Case("Unsqueeze", 7, 12, one("Unsqueeze", axes=[0, 3]))
    yield Case("Unsqueeze", 13, 26, one("Unsqueeze", "x", "a"), [ints("a", 0, -1)])
    halves = [make_node("Split", ["x"], ["y", "z"], axis=1)]
    yield Case("Split in halves", 7, 17, halves, outputs=("z", "y"))
    uneven = make_node("Split", ["x"], ["y", "z"], axis=3, split=[2, 7])
    yield Case("Split", 7, 12, [uneven], outputs=("y", "z"))
    uneven = make_node("Split", ["x", "s"], ["y", "z"], axis=3)
    yield Case("Split", 13, 26, [uneven], [ints("s", 2, 7)], outputs=("z",))
    thirds = make_node("Split", ["x"], ["y", "z", "w"], axis=2, num_outputs=3)
    yield Case("Split in thirds", 18, 26, [thirds], outputs=("y", "z", "w"))


def reductions() -> Iterator[Case]:
    for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        x = {"x": np.abs(IMAGE) + 0.1}
        old = 12 if op == "Sum" else 17
        name = f"Reduce{op}"
        yield Case(f"{name} all", 7, 26, one(name), inputs=x)
        yield Case(name, 7, old, one(name, axes=[1, 3], keepdims=0), inputs=x)
        axes = [ints("a", -1, 1)]
        yield Case(name, old + 1, 26, one(name, "x", "a", keepdims=0), axes, x)
        nothing = one(name, noop_with_empty_axes=1)
        if op not in ("L1", "L2", "LogSum", "LogSumExp", "SumSquare"):
            yield Case(f"{name} none", old + 1, 26, nothing, inputs=x)
    for op in ("ArgMax", "ArgMin"):
        yield Case(op, 7, 26, one(op, axis=2, keepdims=0))
        same = {"x": np.round(IMAGE)}
        yield Case(f"last {op}", 12, 26, one(op, axis=2, select_last_index=1), inputs=same)


def meanings() -> Iterator[Case]:
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for axis in range(4):
            yield Case(f"{op} {axis}", 7, 26, one(op, axis=axis))
        yield Case(f"{op} -2", 11, 26, one(op, axis=-2))
        yield Case(f"{op} of its default axis", 7, 26, one(op))
        flat = {"x": IMAGE[:, :, :1, :1]}
        yield Case(f"{op} with ones behind", 7, 26, one(op, axis=1), inputs=flat)
    per_channel = [floats(n, np.abs(IMAGE[0, :, i, 0]) + 0.1) for i, n in enumerate("sbmv")]
    names = ["x", "s", "b", "m", "v"]
    yield Case(
        "BatchNormalization", 7, 8, one("BatchNormalization", *names, spatial=1), per_channel
    )
    yield Case("BatchNormalization", 9, 26, one("BatchNormalization", *names), per_channel)
    groups = [floats("s", [0.5, 2]), floats("b", [1, -1])]
    node = one("GroupNormalization", "x", "s", "b", num_groups=2)
    yield Case("GroupNormalization", 18, 20, node, groups, tolerance=1e-4)
    channels = [floats("s", [0.5, 2, 3, 4]), floats("b", [1, -1, 2, 3])]
    yield Case("GroupNormalization", 21, 26, node, channels, tolerance=1e-4)
    grid = RNG.uniform(-1.2, 1.2, (2, 3, 5, 2)).astype(np.float32)
    for old, new in (("bilinear", "linear"), ("nearest", "nearest"), ("bicubic", "cubic")):
        for first, last, mode in ((16, 19, old), (20, 26, new)):
            both = {"x": IMAGE, "g": grid}
            node = one("GridSample", "x", "g", mode=mode)
            yield Case(f"GridSample {mode}", first, last, node, inputs=both)
    boxes = floats("r", [[0, 0, 6, 5], [1, 2, 7, 6]])
    roi = {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "spatial_scale": 0.9}
    node = one("RoiAlign", "x", "r", "i", **roi)
    yield Case("RoiAlign", 10, 26, node, [boxes, ints("i", 0, 1)])
    indices = tensor("i", [[1, 0, 2]], np.int64)
    updates = floats("u", [[1.0, 2, 3]])
    scatter = [indices, updates]
    yield Case("Scatter", 9, 10, one("Scatter", "x", "i", "u"), scatter, {"x": MATRIX})
    node = one("ScatterElements", "x", "i", "u", axis=0)
    yield Case("ScatterElements", 11, 26, node, scatter, {"x": MATRIX})
    yield Case("Dropout", 7, 11, one("Dropout", ratio=0.7))
    yield Case("Dropout", 12, 26, one("Dropout", "x", "r"), [floats("r", 0.7)])
    yield Case("Gemm", 7, 26, one("Gemm", "x", "x", "c", transB=1), [floats("c", 2)], {"x": MATRIX})
    yield Case(
        "Gemm of two", 11, 26, one("Gemm", "x", "x", transA=1, alpha=0.5), inputs={"x": MATRIX}
    )
    yield Case("Flatten", 9, 26, one("Flatten", axis=2))
    yield Case("Reshape", 7, 26, one("Reshape", "x", "s"), [ints("s", 0, -1, 9)])
    yield Case("Shape", 7, 26, one("Shape"))
    yield Case("Shape of some", 15, 26, one("Shape", start=1, end=-1))
    yield Case("Cast", 7, 26, one("Cast", to=TensorProto.INT32))
    yield Case("CastLike", 15, 26, one("CastLike", "x", "t"), [tensor("t", 1, np.float64)])
    zeros = one("ConstantOfShape", "s")
    yield Case("ConstantOfShape", 9, 26, zeros, [ints("s", 2, 3)], {})
    sevens = one("ConstantOfShape", "s", value=tensor("", [7], np.int32))
    yield Case("ConstantOfShape of 7", 9, 26, sevens, [ints("s", 2, 3)], {})


def resizes() -> Iterator[Case]:
    up, down = [1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 0.6, 0.4]
    for mode in ("nearest", "linear"):
        yield Case(f"Upsample {mode}", 7, 8, one("Upsample", mode=mode, scales=up))
        yield Case(
            f"Upsample {mode}", 9, 9, one("Upsample", "x", "s", mode=mode), [floats("s", up)]
        )
        for what, scales in (("up", up), ("down", down)):
            node = one("Resize", "x", "s", mode=mode)
            yield Case(f"Resize {mode} {what}", 10, 10, node, [floats("s", scales)])
            for coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
                if (what, coordinates) == ("down", "align_corners"):
                    continue  # onnxruntime rounds the new length, ONNX's test cases do not
                attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
                name = f"Resize {mode} {what} {coordinates}"
                empty = [floats("r", []), floats("s", scales)]
                yield Case(name, 11, 12, one("Resize", "x", "r", "s", **attrs), empty)
                yield Case(name, 13, 26, one("Resize", "x", "", "s", **attrs), empty[1:])
    sizes = [ints("n", 2, 4, 3, 20)]
    attrs = {"mode": "cubic", "cubic_coeff_a": -0.5}
    node = one("Resize", "x", "r", "s", "n", **attrs)
    empty = [floats("r", []), floats("s", [])]
    yield Case("Resize cubic", 11, 12, node, [*empty, *sizes], tolerance=1e-4)
    node = one("Resize", "x", "", "", "n", **attrs)
    yield Case("Resize cubic", 13, 26, node, sizes, tolerance=1e-4)
    node = one("Resize", "x", "", "", "n", mode="linear", axes=[3])
    yield Case("Resize one axis", 18, 26, node, [ints("n", 20)])


def windows() -> Iterator[Case]:
    w = floats("w", RNG.standard_normal((6, 2, 3, 2)))
    for pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        for strides in ([1, 1], [2, 3]):
            attrs = {"auto_pad": pad, "strides": strides}
            name = f"{pad} by {strides}"
            yield Case(f"Conv {name}", 7, 26, one("Conv", "x", "w", group=2, **attrs), [w])
            for op in ("MaxPool", "AveragePool"):
                yield Case(f"{op} {name}", 7, 26, one(op, kernel_shape=[3, 4], **attrs))
    dilated = one("Conv", "x", "w", group=2, dilations=[2, 1], pads=[2, 0, 1, 1])
    yield Case("Conv dilated", 7, 26, dilated, [w])
    for op, first in (("MaxPool", 10), ("AveragePool", 10), ("LpPool", 18)):
        for pads in ([0, 0, 0, 0], [1, 1, 0, 1]):
            for strides in ([2, 2], [3, 2]):
                attrs = {"kernel_shape": [3, 2], "strides": strides, "pads": pads, "ceil_mode": 1}
                yield Case(f"{op} up {pads} {strides}", first, 26, one(op, **attrs))
                if op == "AveragePool":
                    counted = one(op, count_include_pad=1, **attrs)
                    yield Case(f"{op} counted {pads} {strides}", 19, 26, counted)
    indexed = make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])
    yield Case("MaxPool with indices", 8, 26, [indexed], outputs=("y", "i"))
    unread = make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])
    yield Case("MaxPool with indices unread", 8, 26, [unread])
    yield Case("LpPool", 11, 26, one("LpPool", kernel_shape=[3, 3], p=3, auto_pad="SAME_UPPER"))
    t = floats("w", RNG.standard_normal((4, 3, 3, 2)))
    for attrs in (
        {},
        {"strides": [2, 3], "output_padding": [1, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
        {"strides": [2, 2], "output_shape": [14, 16]},
        {"strides": [2, 2], "output_shape": [14, 17], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "pads": [1, 0, 0, 1], "dilations": [2, 1]},
    ):
        node = one("ConvTranspose", "x", "w", **attrs)
        yield Case(f"ConvTranspose {attrs}", 7, 26, node, [t], tolerance=1e-4)


def constants() -> Iterator[Case]:
    for key, value in {
        "value": tensor("", [[1.5, 2]], np.float32),
        "value_float": 2.5,
        "value_floats": [1.5, 2.5],
        "value_int": 3,
        "value_ints": [3, 4],
    }.items():
        made = make_node("Constant", [], ["c"], **{key: value})
        cast = make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT)
        add = make_node("Add", ["f", "x"], ["y"])
        first = 7 if key == "value" else 12
        yield Case(f"Constant {key}", first, 26, [made, cast, add], inputs={"x": IMAGE[..., :2]})


def quantized() -> Iterator[Case]:
    scale, zero = floats("s", 0.05), tensor("z", 3, np.uint8)
    yield Case("QuantizeLinear", 10, 26, one("QuantizeLinear", "x", "s", "z"), [scale, zero])
    yield Case("QuantizeLinear without zero", 10, 26, one("QuantizeLinear", "x", "s"), [scale])
    each = [floats("s", [0.1, 0.2, 0.3, 0.4]), tensor("z", [0, 1, -2, 3], np.int8)]
    yield Case("QuantizeLinear of channels", 13, 26, one("QuantizeLinear", "x", "s", "z"), each)
    whole = {"x": RNG.integers(-128, 128, (2, 4, 3)).astype(np.int8)}
    node = one("DequantizeLinear", "x", "s", "z", axis=-2)
    yield Case("DequantizeLinear", 13, 26, node, each, whole)
    three = make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    yield Case("DynamicQuantizeLinear", 11, 26, [three], outputs=("y", "s", "z"))
    a = {"x": RNG.integers(0, 255, (3, 5)).astype(np.uint8)}
    b = [tensor("w", RNG.integers(-128, 127, (5, 4)), np.int8), tensor("z", 7, np.uint8)]
    yield Case("MatMulInteger", 10, 26, one("MatMulInteger", "x", "w", "z"), b, a)
    steps = [floats("s", 0.1), floats("t", 0.2), floats("u", 0.4), tensor("v", 0, np.int8)]
    names = ["x", "s", "z", "w", "t", "v", "u", "z"]
    yield Case("QLinearMatMul", 10, 20, one("QLinearMatMul", *names), [*b, *steps], a)
    image = {"x": RNG.integers(0, 255, (1, 2, 6, 6)).astype(np.uint8)}
    kernel = tensor("w", RNG.integers(-128, 127, (3, 2, 3, 3)), np.int8)
    rest = [kernel, b[1], *steps]
    conv = one("QLinearConv", *names, auto_pad="SAME_UPPER", strides=[2, 2])
    yield Case("QLinearConv", 10, 26, conv, rest, image)
    node = one("ConvInteger", "x", "w", "z", pads=[1, 1, 0, 0])
    yield Case("ConvInteger", 10, 26, node, [kernel, b[1]], image)


def others() -> Iterator[Case]:
    for op in ("Sum", "Max", "Min", "Mean"):
        yield Case(f"{op} of three", 8, 26, one(op, "x", "w", "x"), [floats("w", [0.5] * 9)])
        yield Case(f"{op} of one", 8, 26, one(op))
    yield Case("PRelu", 9, 26, one("PRelu", "x", "w"), [floats("w", RNG.random((4, 1, 1)))])
    yield Case("Expand", 8, 26, one("Expand", "x", "s"), [ints("s", 3, 1, 1, 1, 1)])
    yield Case("Tile", 7, 26, one("Tile", "x", "s"), [ints("s", 1, 2, 1, 2)])
    yield Case("LRN", 7, 26, one("LRN", size=3, alpha=0.1))
    yield Case("InstanceNormalization", 7, 26, one("InstanceNormalization", "x", "s", "s"), [
        floats("s", [1, 2, 3, 4])
    ], tolerance=1e-4)  # fmt: skip
    yield Case("MeanVarianceNormalization", 9, 26, one("MeanVarianceNormalization"), tolerance=1e-4)
    yield Case("DepthToSpace", 11, 26, one("DepthToSpace", blocksize=2))
    yield Case("DepthToSpace", 11, 26, one("DepthToSpace", blocksize=2, mode="CRD"))
    yield Case("CumSum", 11, 26, one("CumSum", "x", "a", reverse=1), [tensor("a", -2, np.int64)])
    yield Case("Gather", 7, 26, one("Gather", "x", "i", axis=2), [ints("i", 3, 0, 6)])
    pairs = tensor("i", [[0, 1], [1, 3]], np.int64)
    yield Case("GatherND", 12, 26, one("GatherND", "x", "i"), [pairs])
    hot = [tensor("i", [1, -1, 2], np.int64), tensor("d", 4, np.int64), floats("v", [0, 5])]
    yield Case("OneHot", 11, 26, one("OneHot", "i", "d", "v"), hot, {})
    early = [tensor("i", [1, 3, 2], np.int64), *hot[1:]]  # not negative before opset 11
    yield Case("OneHot", 9, 10, one("OneHot", "i", "d", "v"), early, {})
    yield Case("Range", 11, 26, one("Range", "a", "b", "c"), [
        floats("a", 1), floats("b", 4.2), floats("c", 0.5)
    ], {})  # fmt: skip
    yield Case("Gelu", 20, 26, one("Gelu", approximate="tanh"))
    yield Case("LayerNormalization", 17, 26, one("LayerNormalization", "x", "s", axis=-2), [
        floats("s", RNG.random((7, 9)))
    ], tolerance=1e-4)  # fmt: skip
    state = {"x": RNG.standard_normal((5, 2, 3)).astype(np.float32)}
    lstm = [floats("w", RNG.standard_normal((1, 16, 3))), floats("r", RNG.random((1, 16, 4)))]
    node = make_node("LSTM", ["x", "w", "r"], ["y", "", "c"], hidden_size=4)
    yield Case("LSTM", 7, 26, [node], lstm, state, outputs=("y", "c"))


def contributed() -> Iterator[Case]:
    """onnxruntime's own operators."""
    more = {"domain": "com.microsoft"}

    def case(name: str, node: list[NodeProto], *args: object, **kwargs: object) -> Case:
        return Case(name, 13, 13, node, *args, **more, **kwargs)  # type: ignore[arg-type]

    row = floats("b", RNG.standard_normal(9))
    yield case("Gelu", one("Gelu", **more))
    yield case("FastGelu", one("FastGelu", "x", "b", **more), [row], tolerance=1e-4)
    yield case("QuickGelu", one("QuickGelu", **more))
    yield case("BiasGelu", one("BiasGelu", "x", "b", **more), [row])
    hidden = {"x": IMAGE[0]}
    skip = [row, floats("k", RNG.standard_normal((4, 7, 9))), floats("g", RNG.random(9))]
    for op, names in (
        ("SkipLayerNormalization", ["x", "k", "g", "b", "b"]),
        ("SkipSimplifiedLayerNormalization", ["x", "k", "g", "b"]),
    ):
        node = make_node(op, names, ["y", "", "", "z"], epsilon=1e-5, **more)
        yield case(op, [node], skip, hidden, outputs=("y", "z"), tolerance=1e-4)
    node = one("SimplifiedLayerNormalization", "x", "g", epsilon=1e-4)
    yield Case("SimplifiedLayerNormalization", 13, 13, node, skip[2:], hidden)
    w = floats("w", RNG.standard_normal((6, 2, 3, 2)))
    conv = {"group": 2, "pads": [1, 0, 1, 0], **more}
    yield case("FusedConv", one("FusedConv", "x", "w", activation="Relu", **conv), [w])
    leaky = {"activation": "LeakyRelu", "activation_params": [0.2]}
    yield case("FusedConv leaky", one("FusedConv", "x", "w", **leaky, **conv), [w])
    clipped = {"activation": "Clip", "activation_params": [-0.5, 0.5]}
    yield case("FusedConv clipped", one("FusedConv", "x", "w", **clipped, **conv), [w])
    gemm = one("FusedGemm", "x", "v", activation="Relu", transB=1, alpha=0.5, **more)
    weights = floats("v", RNG.standard_normal((4, 6)))
    yield case("FusedGemm", gemm, [weights], {"x": MATRIX})
    for bits, columns, depth, block in ((4, 5, 40, 16), (4, 3, 64, 32), (8, 5, 32, 16)):
        blocks = -(-depth // block)
        packed = RNG.integers(0, 256, (columns, blocks, block * bits // 8))
        points = RNG.integers(0, 256, (columns, -(-blocks * bits // 8)))
        inside = [
            tensor("w", packed, np.uint8),
            floats("s", RNG.random((columns, blocks))),
            tensor("z", points, np.uint8),
            floats("c", RNG.random(columns)),
        ]
        attrs = {"bits": bits, "N": columns, "K": depth, "block_size": block, **more}
        x = {"x": RNG.standard_normal((2, 3, depth)).astype(np.float32)}
        name = f"MatMulNBits {bits} {depth} {block}"
        yield case(name, one("MatMulNBits", "x", "w", "s", **attrs), inside[:2], x)
        full = one("MatMulNBits", "x", "w", "s", "z", "", "c", **attrs)
        yield case(f"{name} with zeros", full, inside, x, tolerance=1e-4)
    both = {"x": MATRIX, "z": MATRIX}
    node = one("FusedMatMul", "x", "z", transA=1, alpha=0.3, **more)
    yield case("FusedMatMul", node, inputs=both)
    bytes_ = {"x": RNG.integers(0, 255, (1, 4, 6, 6)).astype(np.uint8)}
    steps = [floats("s", 0.1), tensor("z", 100, np.uint8), floats("t", 0.25)]
    twice = ["x", "s", "z", "x", "t", "z", "t", "z"]
    yield case("QLinearAdd", one("QLinearAdd", *twice, **more), steps, bytes_)
    yield case("QLinearMul", one("QLinearMul", *twice, **more), steps, bytes_)
    once = ["x", "s", "z", "t", "z"]
    node = one("QLinearLeakyRelu", *once, alpha=0.1, **more)
    yield case("QLinearLeakyRelu", node, steps, bytes_)
    unit = [*steps, floats("u", 1 / 256), tensor("v", 0, np.uint8)]
    sigmoid = one("QLinearSigmoid", "x", "s", "z", "u", "v", **more)
    yield case("QLinearSigmoid", sigmoid, unit, bytes_)
    mean = one("QLinearGlobalAveragePool", *once, channels_last=0, **more)
    yield case("QLinearGlobalAveragePool", mean, steps, bytes_)
    node = one("QLinearAveragePool", *once, kernel_shape=[3, 3], pads=[1, 1, 1, 1], **more)
    yield case("QLinearAveragePool", node, steps, bytes_)
    node = one("QLinearConcat", "t", "z", "x", "s", "z", "x", "t", "z", axis=1, **more)
    yield case("QLinearConcat", node, steps, bytes_)
    node = one("QLinearSoftmax", "x", "s", "z", "u", "v", axis=1, opset=13, **more)
    yield case("QLinearSoftmax", node, unit, bytes_)


CASES = [
    (case, opset)
    for cases in (
        became_inputs,
        reductions,
        meanings,
        resizes,
        windows,
        constants,
        quantized,
        others,
        contributed,
    )
    for case in cases()
    for opset in case.opsets()
]


@pytest.mark.parametrize(
    ("case", "opset"), CASES, ids=[f"{case.name}-{opset}" for case, opset in CASES]
)
def test_every_opset_means_what_onnxruntime_computes(case: Case, opset: int) -> None:
    if "counted" in case.name and tuple(map(int, version("onnxruntime").split(".")[:2])) < (1, 32):
        pytest.skip("onnxruntime 1.23 counts positions beyond the padding; 1.32 does not")
    model = case.model(opset)
    found = evaluate(read(model), case.inputs)
    for name, want in onnxruntime_outputs(model, case.inputs, case.outputs).items():
        assert found[name].dtype == want.dtype
        one_step = 1 if want.dtype.kind in "iu" and case.domain else 0  # rounded differently
        scale = max(1.0, float(np.abs(want).max())) if want.size else 1.0
        np.testing.assert_allclose(
            found[name].astype(np.float64),
            want.astype(np.float64),
            rtol=0,
            atol=one_step or case.tolerance * scale,
        )


def test_batch_normalization_in_training_mode_takes_the_mean_and_variance_of_the_batch() -> None:
    weights = [tensor(n, np.array(v, np.float32)) for n, v in _TRAINED.items()]
    node = make_node("BatchNormalization", ["x", *_TRAINED], ["y", "m2", "v2"], training_mode=1)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, IMAGE.shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    got = evaluate(read(model), {"x": IMAGE})["y"]
    mean, variance = (f(IMAGE, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    scale, bias = (np.float32(_TRAINED[n])[:, None, None] for n in "sb")
    wanted = (IMAGE - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


_TRAINED = {"s": [1, 2, 3, 4], "b": [4, 3, 2, 1], "m": [9, 9, 9, 9], "v": [5, 5, 5, 5]}
