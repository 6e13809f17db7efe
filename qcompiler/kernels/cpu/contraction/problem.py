"""A conv or matmul node -> the one sum of products that both are.

    sums[image, row, column, group, n] =
        sum over tap, k of left[image, row, column, group, tap, k] * right[image, group, tap, k, n]

The left operand is read in place: with channels last and no dilation, a kernel row's (width,
channel) elements are neighbours, so a tap is one kernel row and k runs over all of it. An output
pixel is one row of the sum; those that walk through memory in even steps are laid end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TypeVar

import numpy as np

from qcompiler.errors import Skip
from qcompiler.hardware.core import Core
from qcompiler.ir import Array, Node, numpy_dtype
from qcompiler.ops.window import Window

T = TypeVar("T")
_PIXEL = Window((1, 1), (1, 1), (1, 1), ())


@dataclass(frozen=True)
class Frame:
    """How the left operand's lines lie in an image, and the padding around them.

    Lengths along a line are elements (pixels times channels). An output row sees `reach` lines, and
    the next output row the lines from `step` further on. Where the lines are copied, pixels of
    `pixel` elements may lie further apart than they did: `apart` elements, 0 if not. Lengths are
    those of the copy.
    """

    height: int
    line: int
    step: int = 1
    reach: int = 1
    top: int = 0
    left: int = 0
    right: int = 0
    bottom: int = 0
    value: int = 0
    pixel: int = 0
    apart: int = 0

    @property
    def source_line(self) -> int:
        """Elements of a line that is copied."""
        return self.line // self.apart * self.pixel if self.apart else self.line

    @property
    def padded(self) -> bool:
        """Is there padding at all?"""
        return any((self.top, self.left, self.right, self.bottom))

    @property
    def padded_line(self) -> int:
        """Elements of a line with its padding."""
        return self.left + self.line + self.right


@dataclass(frozen=True)
class Planes:
    """A third dimension, around lines: `size` planes of them in an image, `outputs` in the output.

    An output plane sees `count` planes, `apart` from one to the next, and the next output plane
    those from `step` further on; `front` and `back` planes of padding surround them.
    """

    size: int = 1
    outputs: int = 1
    count: int = 1
    apart: int = 1
    step: int = 1
    front: int = 0
    back: int = 0

    @property
    def padded(self) -> bool:
        """Is there padding?"""
        return bool(self.front or self.back)


@dataclass(frozen=True)
class Batch:
    """Images -> where an operand has theirs: the output's batch dimensions, its strides there."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(dims: tuple[int, ...], shape: tuple[int, ...], size: int) -> Batch:
        """Batch dimensions of the output, those of the operand, elements of one operand image."""
        padded = (1,) * (len(dims) - len(shape)) + shape
        strides = [size * prod(padded[i + 1 :]) for i in range(len(dims))]
        return Batch(dims, tuple(0 if p == 1 else s for p, s in zip(padded, strides, strict=True)))


@dataclass(frozen=True)
class Problem:
    """What is summed. `columns` output pixels make a row, `rows` rows an image (in three
    dimensions: an output plane), each the sum of a `window` of the left operand (along lines, and
    within one); a group has `channels` neighbouring elements of a pixel and `width` results.

    `taps` of a plane are (count, lines, elements): how often, and how far apart in lines and
    elements of the left operand; K = `depth` neighbouring elements at every tap.
    """

    root: Node
    images: int
    rows: int
    columns: int
    groups: int
    channels: int
    depth: int
    width: int
    frame: Frame
    left_images: Batch
    right_images: Batch
    taps: tuple[tuple[int, int, int], ...] = ()
    window: Window = _PIXEL
    planes: Planes = Planes()
    result_bytes: int = 4
    """Of one element that is stored in the end."""

    @property
    def transposed(self) -> bool:
        """Whether the right operand of a matmul is stored by its columns."""
        return self.root.op == "matmul" and bool(self.root.int("transpose_b"))

    @property
    def left(self) -> Node:
        """The operand that is read along its last axis."""
        return self.root.operands[0]

    @property
    def right(self) -> Node:
        """The operand that is packed: weights, mostly."""
        return self.root.operands[1]

    @cached_property
    def itemsize(self) -> int:
        """Bytes of an element of the left operand."""
        return numpy_dtype(self.left.dtype).itemsize

    @property
    def pixel(self) -> int:
        """Elements of an input pixel."""
        return self.groups * self.channels

    @property
    def breadth(self) -> int:
        """Input pixels of a line."""
        return self.frame.source_line // self.pixel

    @property
    def begins(self) -> tuple[int, int]:
        """Lines and pixels of padding before the first ones."""
        return self.frame.top, self.frame.left // (self.frame.apart or self.pixel)

    @property
    def padded(self) -> bool:
        """Does any window reach beyond the input?"""
        return self.frame.padded or self.planes.padded

    @property
    def column(self) -> int:
        """Elements from one output pixel's left operand to the next one's."""
        return self.window.strides[1] * (self.frame.apart or self.pixel)

    @property
    def flat(self) -> bool:
        """Is every output pixel, one after the other, of the input pixel of its number?"""
        alone = self.images == self.columns == self.tap_count == 1 and not self.padded
        return alone and (self.window.kernel, self.window.strides) == ((1, 1), (1, 1))

    @cached_property
    def tap_count(self) -> int:
        """Taps in all."""
        return self.planes.count * prod(count for count, _, _ in self.taps)

    @property
    def macs(self) -> int:
        """Multiply-adds, those with padding counted too."""
        pixels = self.images * self.rows * self.columns
        return pixels * self.groups * self.tap_count * self.depth * self.width

    def matrices(self, right: Array) -> Array:
        """The right operand's array -> [images or 1, groups, taps, depth, width]."""
        if self.root.op == "conv":
            return _conv_matrices(right, self)
        if self.transposed:
            right = np.swapaxes(right, -1, -2)
        return right.reshape(-1, 1, 1, *right.shape[-2:])


def problem_of(root: Node, lanes: int, core: Core, *, upright: bool = False) -> Problem | Skip:
    """A conv or matmul node -> its problem, for vectors of so many sums; a convolution along one
    axis is one along a line or, `upright`, along lines of one pixel.
    """
    return _conv(root, lanes, core, upright) if root.op == "conv" else _matmul(root)


def _conv(root: Node, lanes: int, core: Core, upright: bool) -> Problem | Skip:
    x, w = root.operands
    images, *sizes, channels = x.type.dims
    if len(sizes) > 3:
        return Skip(f"{len(sizes)} spatial dimensions")
    window = _in_space(Window.of(root, sizes, w.type.dims[:-2]), upright)
    deep, *sizes = _three(tuple(sizes), 1, upright)
    outputs = _three(root.type.dims[1:-1], 1, upright)
    groups = root.int("group") // _merged_groups(root.int("group"), root.type.dims[-1], lanes)
    if window.reach == window.strides == (1, 1, 1) and not any(map(any, _pads(window))):
        pixels = images * deep * prod(sizes)
        images, deep, sizes, outputs = 1, 1, [pixels, 1], (1, pixels, 1)
    frame = _frame(root, window, sizes, channels, outputs[1:], core)
    planes = _planes(window, deep, outputs[0])
    along = (window.kernel[1], window.dilations[1], 0)
    whole = root.int("group") == 1 and window.dilations[2] == 1 and not frame.apart
    across = (window.kernel[2], 0, window.dilations[2] * (frame.apart or channels))
    plane = frame.height * frame.source_line
    dims = (images, planes.outputs) if planes.outputs > 1 else (images,)
    return Problem(
        root=root,
        images=images * planes.outputs,
        rows=outputs[1],
        columns=outputs[2],
        groups=groups,
        channels=channels // groups,
        depth=channels * window.kernel[2] if whole else channels // groups,
        width=root.type.dims[-1] // groups,
        frame=frame,
        left_images=Batch(dims, (planes.size * plane, planes.step * plane)[: len(dims)]),
        right_images=Batch(dims, (0,) * len(dims)),
        taps=tuple(t for t in ((along,) if whole else (along, across)) if t[0] > 1),
        window=Window(window.kernel[1:], window.strides[1:], window.dilations[1:], ()),
        planes=planes,
    )


def _three(values: tuple[T, ...], one: T, upright: bool) -> tuple[T, ...]:
    """Along one or two dimensions -> along three."""
    behind = (one,) * (upright and len(values) == 1)
    return ((one,) * 3 + values + behind)[-3:]


def _in_space(window: Window, upright: bool) -> Window:
    """A window of one or two dimensions -> one of three."""
    axes = (window.kernel, window.strides, window.dilations)
    kernel, strides, dilations = (_three(a, 1, upright) for a in axes)
    return Window(kernel, strides, dilations, _three(window.pads, (0, 0), upright))


def _pads(window: Window) -> list[tuple[int, int]]:
    return [p or (0, 0) for p in window.pads]


def _after(window: Window, axis: int, size: int, count: int) -> int:
    """The padding that the last window needs, which may be less than the node's."""
    last = (count - 1) * window.strides[axis] + window.reach[axis]
    return max(last - _pads(window)[axis][0] - size, 0)


def _planes(window: Window, size: int, outputs: int) -> Planes:
    return Planes(
        size=size,
        outputs=outputs,
        count=window.kernel[0],
        apart=window.dilations[0],
        step=window.strides[0],
        front=_pads(window)[0][0],
        back=_after(window, 0, size, outputs),
    )


def _merged_groups(groups: int, outputs: int, lanes: int) -> int:
    """How many groups are computed as one, with zero weights between them, to fill a vector."""
    each = outputs // groups
    return max(m for m in range(1, groups + 1) if groups % m == 0 and (m == 1 or m * each <= lanes))


def _frame(
    root: Node,
    window: Window,
    sizes: list[int],
    channels: int,
    outputs: tuple[int, ...],
    core: Core,
) -> Frame:
    pads, right = _pads(window), _after(window, 2, sizes[1], outputs[1])
    padded = any(map(any, pads[1:])) or right
    apart = _apart(window.strides[2], channels, root.operands[0].dtype, core) if padded else 0
    pixel = apart or channels
    return Frame(
        height=sizes[0],
        line=sizes[1] * pixel,
        step=window.strides[1],
        reach=window.reach[1],
        top=pads[1][0],
        left=pads[2][0] * pixel,
        right=right * pixel,
        bottom=_after(window, 1, sizes[0], outputs[0]),
        value=root.int("pad_value"),
        pixel=channels,
        apart=apart,
    )


def _apart(stride: int, channels: int, dtype: str, core: Core) -> int:
    """Elements from one pixel to the next in a copy, where those that neighbouring outputs see
    would push one another out of the first-level cache; else 0.
    """
    size = numpy_dtype(dtype).itemsize
    return 0 if stride * channels * size % core.way_bytes else channels + core.line_bytes // size


def _conv_matrices(w: Array, p: Problem) -> Array:
    """w[*kernel, channels a group, outputs] -> [1, groups, taps, depth, width]."""
    each, outputs = w.shape[-2:]
    groups = p.root.int("group")
    merged = groups // p.groups
    kernel = w.reshape(-1, each, groups, outputs // groups).transpose(2, 0, 1, 3)
    if merged == 1:
        return np.ascontiguousarray(kernel).reshape(1, p.groups, p.tap_count, p.depth, p.width)
    blocks = kernel.reshape(p.groups, merged, *kernel.shape[1:])
    shape = (p.groups, kernel.shape[1], merged, each, merged, outputs // groups)
    diagonal = np.zeros(shape, w.dtype)
    for m in range(merged):
        diagonal[:, :, m, :, m] = blocks[:, m]
    return diagonal.reshape(1, p.groups, p.tap_count, p.depth, p.width)


def _matmul(root: Node) -> Problem:
    a, b = root.operands[:2]
    *a_batch, rows, depth = a.type.dims
    b_batch = b.type.dims[:-2]
    dims = root.type.dims[:-2]
    images = prod(dims)
    if prod(b_batch) == 1 and prod(a_batch) == images:  # one right operand: rows of one image
        rows, images, dims = rows * images, 1, ()
        a_batch, b_batch = [], ()
    width = root.type.dims[-1]
    return Problem(
        root=root,
        images=images,
        rows=rows,
        columns=1,
        groups=1,
        channels=depth,
        depth=depth,
        width=width,
        frame=Frame(rows, depth),
        left_images=Batch.of(dims, tuple(a_batch), rows * depth),
        right_images=Batch.of(dims, tuple(b_batch), depth * width),
    )
