"""An operator as a file of some opset says it -> the same meaning at the newest opset.

One adapter a change of ONNX: `@until(13, "Squeeze")` rewrites the calls of every opset below 13
into what opset 13 says, so that a call climbs from adapter to adapter. `@always` ones spell out
what ONNX leaves implicit (padding, dtypes). Attributes that the file leaves out are already filled
in with the defaults of the file's own opset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Attr, Dim, Node, constant, numpy_dtype
from qcompiler.onnx_tensors import Unsupported, dtype_name
from qcompiler.ops import known_value, make


@dataclass(frozen=True)
class Call:
    """An operator on its inputs (None: left out), all its attributes, how many outputs it names."""

    op: str
    inputs: tuple[Node | None, ...]
    attrs: Mapping[str, Attr]
    outputs: int
    name: str

    def input(self, index: int) -> Node | None:
        """An input, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def need(self, index: int) -> Node:
        """An input that must be there."""
        node = self.input(index)
        if node is None:
            raise self.error(f"input {index} is missing")
        return node

    def get(self, key: str) -> Attr:
        """An attribute, or None where it has no value."""
        return self.attrs.get(key)

    def number(self, key: str) -> int:
        """An attribute that must be a whole number."""
        value = self.get(key)
        if not isinstance(value, int):
            raise self.error(f"attribute {key!r} is missing")
        return value

    def numbers(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or None where it is absent or empty."""
        value = self.get(key)
        return tuple(int(v) for v in value) if isinstance(value, tuple) and value else None

    def but(
        self,
        *,
        op: str = "",
        inputs: Sequence[Node | None] | None = None,
        drop: tuple[str, ...] = (),
        **attrs: Attr,
    ) -> Call:
        """The same call with another operator, other inputs, attributes left out or set."""
        kept = {k: v for k, v in self.attrs.items() if k not in drop}
        return replace(
            self,
            op=op or self.op,
            inputs=self.inputs if inputs is None else tuple(inputs),
            attrs={**kept, **attrs},
        )

    def constant(self, what: str, value: object, dtype: str = "int64") -> Node:
        """A constant that an attribute of this call becomes."""
        return constant(np.asarray(value, numpy_dtype(dtype)), f"{self.name}.{what}")

    def node(self, what: str, op: str, *inputs: Node | None, **attrs: Attr) -> Node:
        """One of several nodes that this call becomes."""
        return make(op, *inputs, name=f"{self.name}.{what}", **attrs)

    def error(self, what: str, hint: str = "") -> Error:
        """An Error about this call."""
        return Error(what, where=f"{self.name} ({self.op})", hint=hint)

    def unsupported(self, what: str, hint: str = "") -> Unsupported:
        """An Error about this call that is told with the others, once the model has been read."""
        return Unsupported(what, where=f"{self.name} ({self.op})", hint=hint)


Result = Call | Node | tuple[Node, ...]
"""What an adapter gives: a call of the next opset, or the finished outputs."""
Adapter = Callable[[Call], Result]

_ALWAYS = 1 << 20
_ADAPTERS: dict[str, dict[int, Adapter]] = {}


def until(opset: int, *ops: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter for the calls of these operators in opsets below `opset`."""

    def register(adapter: Adapter) -> Adapter:
        for op in ops:
            steps = _ADAPTERS.setdefault(op, {})
            if opset in steps:
                raise ValueError(f"{op} has two adapters until {opset}")
            steps[opset] = adapter
        return adapter

    return register


def always(*ops: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter for the calls of these operators in every opset."""
    return until(_ALWAYS, *ops)


def newest(call: Call, opset: int) -> Result:
    """A call of `opset` -> the call with the newest meaning, or the nodes that it becomes."""
    reached = opset
    while True:
        steps = _ADAPTERS.get(call.op, {})
        following = min((limit for limit in steps if limit > reached), default=None)
        if following is None:
            return call
        result = steps[following](call)
        if not isinstance(result, Call):
            return result
        call, reached = result, following


def adapted(op: str) -> bool:
    """Whether an operator has adapters, so that it may become another."""
    return op in _ADAPTERS


def axis_of(call: Call, axis: int, rank: int) -> int:
    """An axis that may count from the end -> counted from the start; one too many is an Error."""
    if not -rank <= axis < rank:
        raise call.error(f"axis {axis} does not exist in {rank} dimensions")
    return axis % rank


# Attributes that became inputs.


@until(11, "Clip")
def _clip(call: Call) -> Call:
    dtype = call.need(0).dtype
    limits: list[Node | None] = []
    for key in ("min", "max"):
        value = call.attrs[key]
        assert isinstance(value, float)
        absent = abs(value) >= float(np.finfo(np.float32).max)  # the defaults, which clip nothing
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
    if call.input(1) is not None or call.get("num_outputs") is not None:
        return call
    return call.but(num_outputs=call.outputs)


# Meanings that changed.


@until(13, "Softmax", "LogSoftmax", "Hardmax")
def _softmax_of_matrix(call: Call) -> Result:
    """Old: all dimensions from `axis` on are one, and so are those before it."""
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
    if call.outputs > 1:
        raise call.unsupported(
            "batch normalization in training mode", "export the model for inference"
        )
    return call


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

    Nearest takes the floor, but where it shrinks the ceiling, as onnxruntime does.
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
    """Inputs that stand empty are absent, and so is a region that no crop reads."""
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
    """Old: one scale and bias a group; new: one a channel."""
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


@always("Dropout")
def _dropout(call: Call) -> Node:
    """At inference the identity. Its mask, which hardly anybody reads, is not made."""
    training = call.input(2)
    value = known_value(training)
    if training is not None and (value is None or value.any()):
        raise call.unsupported("dropout in training mode", "export the model for inference")
    return call.need(0)


# What ONNX leaves implicit.


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
        raise call.error("the value is not one number")
    return call.but(value=value)


@dataclass(frozen=True)
class _Window:
    """A window sliding over spatial dimensions, one number for each; pads are begins, then ends."""

    sizes: tuple[Dim, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    """None: they depend on a size that is not known."""

    @property
    def reach(self) -> list[int]:
        """How much input one window spans."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def _window(call: Call, weights: int | None) -> _Window:
    x = call.need(0)
    rank = x.type.rank - 2
    if rank < 1:
        raise call.error(f"input {x.type} has no spatial dimensions")
    kernel = call.numbers("kernel_shape")
    if weights is not None:
        w = call.need(weights).type
        if w.rank != x.type.rank:
            raise call.error(f"weights {w} do not fit the input {x.type}")
        if not all(isinstance(d, int) for d in w.shape[2:]):
            raise call.error(f"the kernel's size is not known: {w}")
        own = tuple(int(d) for d in w.shape[2:])
        if kernel is not None and kernel != own:
            raise call.error(f"kernel_shape {list(kernel)} is not that of the weights {w}")
        kernel = own
    ones = (1,) * rank
    strides, dilations = call.numbers("strides") or ones, call.numbers("dilations") or ones
    for key, values in (("kernel_shape", kernel), ("strides", strides), ("dilations", dilations)):
        if values is None or len(values) != rank or min(values) < 1:
            raise call.error(f"{key} {list(values or ())} does not fit {rank} spatial dimensions")
    assert kernel is not None
    pads = call.numbers("pads") or (0,) * (2 * rank)
    if len(pads) != 2 * rank or min(pads) < 0:
        raise call.error(f"pads {list(pads)} do not fit {rank} spatial dimensions")
    return _Window(x.shape[2:], kernel, strides, dilations, pads)


def _begins_then_ends(totals: Sequence[int], *, more_at_end: bool) -> tuple[int, ...]:
    less = [t // 2 for t in totals]
    more = [t - t // 2 for t in totals]
    return (*less, *more) if more_at_end else (*more, *less)


def _same_pads(window: _Window, mode: str) -> tuple[int, ...] | None:
    """auto_pad SAME: as many outputs as strides fit the input; None where sizes are unknown."""
    totals: list[int] = []
    for size, reach, stride in zip(window.sizes, window.reach, window.strides, strict=True):
        if stride == 1:
            totals.append(reach - 1)
        elif isinstance(size, int):
            totals.append(max((-(-size // stride) - 1) * stride + reach - size, 0))
        else:
            return None
    return _begins_then_ends(totals, more_at_end=mode == "SAME_UPPER")


def _padded(call: Call, window: _Window) -> _Window:
    mode = call.get("auto_pad")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(window, str(mode))
        if pads is None:
            raise call.error(
                f"auto_pad {mode} over the unknown size {list(window.sizes)}",
                "pin it with --input-shape",
            )
        return replace(window, pads=pads)
    if mode == "VALID":
        return replace(window, pads=(0,) * (2 * len(window.sizes)))
    if mode != "NOTSET":
        raise call.error(f"unknown auto_pad {mode!r}")
    return window


def _explicit(call: Call, window: _Window) -> Call:
    return call.but(
        drop=("auto_pad",),
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
    )


@always("Conv", "ConvInteger", "QLinearConv")
def _conv(call: Call) -> Call:
    return _explicit(call, _padded(call, _window(call, 3 if call.op == "QLinearConv" else 1)))


@always("AveragePool", "MaxPool", "LpPool")
def _pool(call: Call) -> Call:
    """ceil_mode becomes padding where that is exact: where padding does not count in an average."""
    window = _padded(call, _window(call, None))
    call = _explicit(call, window)
    if not call.get("ceil_mode") or not all(isinstance(size, int) for size in window.sizes):
        return call
    rank = len(window.kernel)
    assert window.pads is not None
    extra: list[int] = []
    for i, reach in enumerate(window.reach):
        begin, end, stride = window.pads[i], window.pads[i + rank], window.strides[i]
        padded = int(window.sizes[i]) + begin + end
        outputs = -(-(padded - reach) // stride) + 1
        if (outputs - 1) * stride >= int(window.sizes[i]) + begin:
            outputs -= 1  # a window that starts in the end padding is left out
        extra.append(max((outputs - 1) * stride + reach - padded, 0))
    if any(extra) and call.get("count_include_pad"):
        return call
    ends = [p + e for p, e in zip(window.pads[rank:], extra, strict=True)]
    return call.but(pads=(*window.pads[:rank], *ends), ceil_mode=0)


@always("ConvTranspose")
def _conv_transpose(call: Call) -> Call:
    """Padding from auto_pad or output_shape (total: what the full output has too much)."""
    window = _window(call, 1)
    rank = len(window.kernel)
    added = call.numbers("output_padding") or (0,) * rank
    wanted = call.numbers("output_shape")
    mode = call.get("auto_pad")
    if len(added) != rank or min(added) < 0 or (wanted is not None and len(wanted) != rank):
        raise call.error(f"output_padding or output_shape does not fit {rank} spatial dimensions")
    if mode == "VALID" and wanted is None:
        window = replace(window, pads=(0,) * (2 * rank))
    elif wanted is not None or mode != "NOTSET":
        totals = []
        for i, reach in enumerate(window.reach):
            size, stride = window.sizes[i], window.strides[i]
            if wanted is None:  # SAME: stride times the input
                totals.append(reach - stride + added[i])
            elif isinstance(size, int):
                totals.append((size - 1) * stride + reach + added[i] - wanted[i])
            else:
                raise call.error(
                    f"output_shape over the unknown size {size}", "pin it with --input-shape"
                )
        added = tuple(a + max(-t, 0) for a, t in zip(added, totals, strict=True))
        pads = _begins_then_ends([max(t, 0) for t in totals], more_at_end=mode == "SAME_UPPER")
        window = replace(window, pads=pads)
    return _explicit(call.but(drop=("output_shape",), output_padding=added), window)
