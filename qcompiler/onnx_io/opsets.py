"""Operators of older opsets -> the newest: one adapter per change of ONNX."""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, Type
from qcompiler.onnx_io.call import Call, Result, always, axis_of, newest, until
from qcompiler.onnx_io.tensors import dtype_name
from qcompiler.ops import known_value, make
from qcompiler.ops.shapes import agree

# Attributes that became inputs.


@until(11, "Clip")
def _clip(call: Call) -> Call:
    dtype = call.need(0).dtype
    limits: list[Node | None] = []
    for key in ("min", "max"):
        value = call.attrs[key]
        assert isinstance(value, float)
        absent = abs(value) >= float(np.finfo(np.float32).max)  # the defaults, which do not clip
        limits.append(None if absent else call.constant(key, value, dtype))
    return call.but(inputs=(call.need(0), *limits), drop=("min", "max"))


@until(10, "Slice")
def _slice(call: Call) -> Call:
    axes = call.numbers("axes")
    return call.but(
        inputs=(
            call.need(0),
            call.constant("starts", call.numbers("starts") or ()),
            call.constant("ends", call.numbers("ends") or ()),
            None if axes is None else call.constant("axes", axes),
        ),
        drop=("starts", "ends", "axes"),
    )


@until(11, "Pad")
def _pad(call: Call) -> Call:
    pads = call.constant("pads", call.numbers("pads") or ())
    value = call.constant("value", call.attrs["value"], call.need(0).dtype)
    return call.but(inputs=(call.need(0), pads, value), drop=("pads", "value"))


@until(7, "Add", "And", "Div", "Equal", "Gemm", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")
def _broadcast(call: Call) -> Call:
    """Old: attributes enable broadcasting of the last input, and give its first axis."""
    x, inputs = call.need(0), list(call.inputs)
    last = call.need(len(inputs) - 1)
    allowed, axis = call.number("broadcast"), call.get("axis")
    if not allowed and call.op != "Gemm" and not _alike(x.type, last.type):
        raise call.error(f"{x.type} and {last.type} need broadcast=1")
    if allowed and isinstance(axis, int) and call.op != "Gemm":
        begin = axis_of(call, axis, x.type.rank)
        behind = x.type.rank - begin - last.type.rank
        if behind < 0:
            raise call.error(f"{last.type} does not fit {x.type} from axis {axis} on")
        if behind:
            axes = call.constant("axes", range(last.type.rank, last.type.rank + behind))
            inputs[-1] = call.node("broadcast", "Unsqueeze", last, axes)
    return call.but(inputs=inputs, drop=("broadcast", "axis"))


def _alike(a: Type, b: Type) -> bool:
    return a.rank == b.rank and all(map(agree, a.shape, b.shape))


@until(7, "PRelu")
def _slope_of_channels(call: Call) -> Call:
    """Old: a one-dimensional slope is per channel."""
    x, slope = call.need(0), call.need(1)
    if slope.type.rank != 1 or x.type.rank < 3:
        return call
    axes = call.constant("axes", range(1, x.type.rank - 1))
    return call.but(inputs=(x, call.node("slope", "Unsqueeze", slope, axes)))


@until(7, "BatchNormalization", "Dropout")
def _test_mode(call: Call) -> Call:
    if not call.get("is_test"):
        raise call.unsupported("training mode (is_test=0)", "export the model for inference")
    return call.but(drop=("is_test",))


@until(10, "TopK")
def _top_k(call: Call) -> Call:
    return call.but(inputs=(call.need(0), call.constant("k", [call.number("k")])), drop=("k",))


@until(20, "DFT")
def _dft(call: Call) -> Call:
    inputs = (call.need(0), call.input(1), call.constant("axis", call.number("axis")))
    return call.but(inputs=inputs, drop=("axis",))


@until(13, "Squeeze", "Unsqueeze", "ReduceSum")
@until(
    18,
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
)
@until(18, "ReduceProd", "ReduceSumSquare")
def _axes(call: Call) -> Call:
    axes = call.numbers("axes")
    inputs = (call.need(0), None if axes is None else call.constant("axes", axes))
    return call.but(inputs=inputs, drop=("axes",))


@until(13, "Split")
def _split(call: Call) -> Call:
    sizes = call.numbers("split")
    inputs = (call.need(0), None if sizes is None else call.constant("split", sizes))
    return call.but(inputs=inputs, drop=("split",))


@always("Split")
def _split_count(call: Call) -> Call:
    given = call.get("num_outputs")
    if call.input(1) is not None:
        return call
    if given not in (None, call.outputs):
        raise call.error(f"num_outputs is {given}, but it has {call.outputs}")
    return call.but(num_outputs=call.outputs)


# Changed semantics.


@until(13, "Softmax", "LogSoftmax", "Hardmax")
def _softmax_of_matrix(call: Call) -> Result:
    """Old: the dimensions from `axis` on are flattened to one, and so are those before it."""
    x = call.need(0)
    axis = axis_of(call, call.number("axis"), x.type.rank)
    wide = [i for i in range(axis, x.type.rank) if x.shape[i] != 1]
    if len(wide) < 2:
        return call.but(axis=wide[0] if wide else x.type.rank - 1)
    matrix = call.node("matrix", "Flatten", x, axis=axis)
    result = call.node("rows", call.op, matrix, axis=-1)
    return make("Reshape", result, _shape_of(call, x), name=call.name)


def _shape_of(call: Call, x: Node) -> Node:
    return call.constant("shape", x.type.dims) if x.type.static else call.node("shape", "Shape", x)


@until(9, "BatchNormalization")
def _batch_norm_of_channels(call: Call) -> Call:
    if call.number("spatial") != 1:
        raise call.unsupported("spatial=0 is not supported", "re-export with opset 9 or newer")
    return call.but(drop=("spatial",))


@until(14, "BatchNormalization")
def _batch_norm_training(call: Call) -> Call:
    """Old: in training mode if it has more outputs than one."""
    return call.but(training_mode=int(call.outputs > 1))


@until(9, "Upsample")
def _upsample_scales(call: Call) -> Call:
    scales = call.constant("scales", call.attrs["scales"], "float32")
    return call.but(inputs=(call.need(0), scales), drop=("scales",))


@always("Upsample")
def _upsample(call: Call) -> Result:
    return newest(call.but(op="Resize"), 10)


@until(11, "Resize")
def _resize_10(call: Call) -> Call:
    """Old: output i reads input i / scale.

    Nearest rounds down, or up when shrinking, as in onnxruntime.
    """
    scales = known_value(call.need(1))
    shrinks = scales is not None and bool(np.less(scales, 1).any())
    grows = scales is not None and bool(np.greater(scales, 1).any())
    if shrinks and grows and call.get("mode") == "nearest":
        raise call.unsupported(
            "opset 10 resize that both grows and shrinks", "re-export with opset 11 or newer"
        )
    return call.but(
        inputs=(call.need(0), None, call.need(1)),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="ceil" if shrinks else "floor",
    )


@until(13, "Resize")
def _resize_11(call: Call) -> Call:
    if call.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise call.unsupported(
            "coordinates tf_half_pixel_for_nn are not supported", "re-export with opset 13 or newer"
        )
    return call


@always("Resize")
def _resize(call: Call) -> Call:
    """Empty inputs count as absent, and so does a region that is not used for cropping."""
    roi = (
        call.input(1)
        if call.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        else None
    )
    inputs = [call.need(0), roi, call.input(2), call.input(3)]
    empty = [i is not None and i.is_constant and not i.type.size for i in inputs]
    return call.but(inputs=[None if e else i for i, e in zip(inputs, empty, strict=True)])


@until(16, "RoiAlign")
def _roi_align(call: Call) -> Call:
    return call.but(coordinate_transformation_mode="output_half_pixel")


@until(20, "GridSample")
def _grid_sample(call: Call) -> Call:
    mode = call.attrs["mode"]
    return call.but(mode={"bilinear": "linear", "bicubic": "cubic"}.get(str(mode), mode))


@until(21, "GroupNormalization")
def _group_norm_of_channels(call: Call) -> Call:
    """Old: scale and bias per group; new: per channel."""
    x, groups = call.need(0), call.number("num_groups")
    channels = x.shape[1] if x.type.rank > 1 else 0
    if not isinstance(channels, int) or groups < 1 or channels % groups:
        raise call.error(f"{groups} groups do not divide {channels} channels")

    def each_channel(what: str, group_values: Node) -> Node:
        column = call.node(f"{what}.column", "Unsqueeze", group_values, call.constant("axis", [1]))
        table_shape = call.constant("table", [groups, channels // groups])
        table = call.node(f"{what}.table", "Expand", column, table_shape)
        return call.node(what, "Reshape", table, call.constant("flat", [-1]))

    return call.but(
        inputs=(x, each_channel("scale", call.need(1)), each_channel("bias", call.need(2)))
    )


@always("Scatter")
def _scatter(call: Call) -> Call:
    return call.but(op="ScatterElements")


# Implicit semantics made explicit.


@always("Cast")
def _cast(call: Call) -> Call:
    return call.but(to=dtype_name(call.number("to"), f"{call.name} (Cast)"))


@always("CastLike")
def _cast_like(call: Call) -> Call:
    return call.but(op="Cast", inputs=(call.need(0),), to=call.need(1).dtype)


@always("ConstantOfShape")
def _constant_of_shape(call: Call) -> Call:
    value = call.get("value")
    if value is None:
        value = np.zeros(1, np.float32)
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise call.error("the value is not a scalar")
    return call.but(value=value)
