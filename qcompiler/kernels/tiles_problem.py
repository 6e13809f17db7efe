"""A conv or matmul node -> the sum of tile products that it is.

    sums[image, line, column, group, n] = sum over ky, kx, c of
        left[image, line * sy + ky * dy - top, column * sx + kx * dx - lead, group, c]
        * right[image, group, ky, kx, c, n]

A matrix product is a window of one pixel over images one pixel wide, and so is a convolution of
single pixels; a convolution along one axis is one over images one pixel wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from qcompiler.errors import Skip
from qcompiler.ir import Array, Node, numpy_dtype
from qcompiler.isa import Isa
from qcompiler.kernels.contraction_operands import bias_of
from qcompiler.kernels.contraction_problem import Batch
from qcompiler.kernels.region import Region
from qcompiler.ops.window import Window
from qcompiler.products import MacKey, TileMac

_SHORT = {"uint8": "u8", "int8": "i8", "bfloat16": "bf16", "int32": "i32", "float32": "f32"}

Pair = tuple[int, int]
"""(along the lines' axis, along a line)."""


@dataclass(frozen=True)
class Problem:
    """What is summed; `lines` by `columns` output pixels an image, `height` by `breadth` inputs."""

    root: Node
    mac: TileMac
    images: int
    lines: int
    columns: int
    height: int
    breadth: int
    groups: int
    channels: int
    """Of a group."""
    width: int
    """Results of a group."""
    left_images: Batch
    right_images: Batch
    kernel: Pair = (1, 1)
    strides: Pair = (1, 1)
    dilations: Pair = (1, 1)
    begins: Pair = (0, 0)
    """Padding before the first line and column."""
    pad_value: int = 0

    @property
    def left(self) -> Node:
        """The operand whose rows go into tiles as they lie."""
        return self.root.operands[0]

    @property
    def right(self) -> Node:
        """The operand that is packed: weights, mostly."""
        return self.root.operands[1]

    @property
    def constant(self) -> bool:
        """Is the right operand packed once and for all?"""
        return self.right.is_constant

    @property
    def itemsize(self) -> int:
        """Bytes of an operand's element."""
        return numpy_dtype(self.left.dtype).itemsize

    @property
    def quad(self) -> int:
        """Neighbours along k that fill the bytes of one sum: a right tile keeps them together."""
        return 4 // self.itemsize

    @property
    def pixel(self) -> int:
        """Elements of an input pixel."""
        return self.groups * self.channels

    @property
    def reach(self) -> Pair:
        """How many lines and columns of input an output sees."""
        y, x = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        return y, x

    @property
    def depth(self) -> int:
        """Products in a sum."""
        return prod(self.kernel) * self.channels

    @property
    def narrow(self) -> bool:
        """One pixel to a line, in and out?"""
        return (self.breadth, self.columns, self.kernel[1], self.begins[1]) == (1, 1, 1, 0)

    @property
    def padded(self) -> bool:
        """Does any window reach beyond the input?"""
        sizes = zip(
            (self.lines, self.columns),
            (self.height, self.breadth),
            self.strides,
            self.reach,
            self.begins,
            strict=True,
        )
        return any(b or (n - 1) * s + r - b > size for n, size, s, r, b in sizes)

    @property
    def exact(self) -> bool:
        """Does a zero weight cancel whatever it meets? (A float could be NaN.)"""
        return self.root.dtype == "int32"

    @property
    def macs(self) -> int:
        """Multiply-adds, those with padding counted too."""
        pixels = self.images * self.lines * self.columns
        return pixels * self.groups * self.depth * self.width

    def matrices(self, right: Array) -> Array:
        """The right operand's array -> [matrices, k in all, width]; groups are matrices, too."""
        if self.root.op == "matmul":
            right = np.swapaxes(right, -1, -2) if self.root.int("transpose_b") else right
            return right.reshape(-1, *right.shape[-2:])
        split = right.reshape(prod(self.kernel), self.channels, self.groups, self.width)
        return split.transpose(2, 0, 1, 3).reshape(self.groups, -1, self.width)


def constant_bias_of(region: Region) -> tuple[Node, Node | None]:
    """As `bias_of`, of constant rows only."""
    assert region.root is not None
    summed, row = bias_of(region)
    return (summed, row) if row is None or row.is_constant else (region.root, None)


def key_of(root: Node) -> MacKey | None:
    """A node -> the product that it needs."""
    dtypes = (*(i.dtype for i in root.operands), root.dtype)
    if not all(d in _SHORT for d in dtypes):
        return None
    left, right, sums = (_SHORT[d] for d in dtypes)
    return left, right, sums


def tile_mac(isa: Isa, root: Node) -> TileMac | None:
    """The instruction set's tile product for a node, if it has one."""
    key = key_of(root)
    return isa.tile(key) if key else None


def problem_of(root: Node, mac: TileMac) -> Problem | Skip:
    """A conv or matmul node of static shapes -> its problem."""
    if 0 in root.type.dims or any(0 in i.type.dims for i in root.operands):
        return Skip("nothing to multiply")
    return _conv(root, mac) if root.op == "conv" else _matmul(root, mac)


def _conv(root: Node, mac: TileMac) -> Problem | Skip:
    x, w = root.operands
    images, *sizes, channels = x.type.dims
    if len(sizes) > 2:
        return Skip(f"{len(sizes)} spatial dimensions")
    groups, outputs = root.int("group"), list(root.type.dims[1:-1])
    window = Window.of(root, sizes, w.type.dims[:-2])
    begins = [p[0] if p else 0 for p in window.pads]
    axes = [window.kernel, window.strides, window.dilations]
    if len(sizes) == 1:  # one column of lines
        axes, begins = [(*a, 1) for a in axes], [*begins, 0]
        sizes, outputs = [*sizes, 1], [*outputs, 1]
    kernel, strides, dilations = ((a[0], a[1]) for a in axes)
    if (kernel, strides) == ((1, 1), (1, 1)) and sizes == outputs:
        pixels = images * prod(sizes)
        images, sizes, outputs = 1, [pixels, 1], [pixels, 1]
    return Problem(
        root=root,
        mac=mac,
        images=images,
        lines=outputs[0],
        columns=outputs[1],
        height=sizes[0],
        breadth=sizes[1],
        groups=groups,
        channels=channels // groups,
        width=root.type.dims[-1] // groups,
        left_images=Batch((images,), (prod(sizes) * channels,)),
        right_images=Batch((images,), (0,)),
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        begins=(begins[0], begins[1]),
        pad_value=root.int("pad_value"),
    )


def _matmul(root: Node, mac: TileMac) -> Problem:
    a, b = root.operands
    *a_batch, rows, depth = a.type.dims
    b_batch, dims = list(b.type.dims[:-2]), list(root.type.dims[:-2])
    if prod(b_batch) == 1 and prod(a_batch) == prod(dims):  # one right matrix: rows of one image
        rows, a_batch, b_batch, dims = rows * prod(dims), [], [], []
    width = root.type.dims[-1]
    return Problem(
        root=root,
        mac=mac,
        images=prod(dims),
        lines=rows,
        columns=1,
        height=rows,
        breadth=1,
        groups=1,
        channels=depth,
        width=width,
        left_images=Batch.of(tuple(dims), tuple(a_batch), rows * depth),
        right_images=Batch.of(tuple(dims), tuple(b_batch), depth * width),
    )
