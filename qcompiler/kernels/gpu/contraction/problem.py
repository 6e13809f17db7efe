"""A conv or matmul node -> the one product of matrices that both are, and where its operands lie.

    sums[image, m, n] = sum over k of left[image, m, k] * right[image, k, n]

Images of a matmul are its batch; those of a conv its groups, whose rows are the output's pixels
and whose depth is that of a window: k goes over its taps, then over the channels of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.contraction.problem import Batch
from qcompiler.kernels.gpu.code.block import Block
from qcompiler.kernels.registry import Region
from qcompiler.ops.window import Window

_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Problem:
    """What is summed. `dims`: the output's batch dimensions, or its spatial ones with the batch."""

    root: Node
    images: int
    rows: int
    depth: int
    width: int
    dims: tuple[int, ...]
    window: Window | None = None
    """Of a conv that is more than a product of pixels by weights."""

    @staticmethod
    def of(root: Node) -> Problem | Skip:
        """A node -> its problem."""
        left, right = root.operands[:2]
        bytes_ = left.dtype in ("int8", "uint8") and right.dtype == "int8"
        if not bytes_ and not (left.dtype == right.dtype and left.dtype in _FLOATS):
            return Skip(f"products of {left.dtype} and {right.dtype}")
        made = _conv(root) if root.op == "conv" else _matmul(root)
        if not made.images * made.rows * made.depth * made.width:
            return Skip("nothing to multiply")
        return made

    @property
    def bytes(self) -> bool:
        """Are bytes multiplied?"""
        return self.root.dtype == "int32"

    @property
    def words(self) -> bool:
        """Can four bytes of a word be multiplied at once?"""
        constant = self.root.operands[1].is_constant and not self.transposed
        return self.bytes and constant and self.neighbours % 4 == 0

    @property
    def per(self) -> int:
        """Values of k that one element of a tile holds."""
        return 4 if self.words else 1

    @property
    def element(self) -> str:
        """The dtype of a tile's elements."""
        return "int32" if self.bytes else "float32"

    @property
    def transposed(self) -> bool:
        """Whether the right operand of a matmul is stored by its columns."""
        return self.root.op == "matmul" and bool(self.root.int("transpose_b"))

    @property
    def neighbours(self) -> int:
        """Values of k that lie side by side in the left operand, and begin at multiples of that."""
        return self.root.operands[0].type.dims[-1] // self.groups

    @property
    def groups(self) -> int:
        """Groups of a conv."""
        return self.root.int("group") if self.root.op == "conv" else 1

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.images * self.rows * self.depth * self.width

    def packed(self, right: Array) -> Array:
        """The right operand of bytes -> words of four rows: [image, k / 4, n, 4]."""
        *_, rows, width = right.shape
        if self.root.op == "conv":
            flat = right.reshape(self.depth, self.groups, self.width).transpose(1, 0, 2)
        else:
            flat = right.reshape(-1, rows, width)
        words = flat.reshape(-1, self.depth // 4, 4, self.width).transpose(0, 1, 3, 2)
        return np.ascontiguousarray(words)

    def right_image(self, b: Block, image: Value) -> Value:
        """Where the right operand of a matmul's image begins, in values."""
        return _batch_offset(b, image, self.dims, self.root.operands[1])

    def right_place(self, b: Block, image: Value) -> tuple[Value, int]:
        """Where an image's right operand begins, and how far apart its rows (columns where it is
        transposed) lie, in values.
        """
        right = self.root.operands[1]
        if self.words:
            shared = prod(right.type.dims[:-2]) == 1 and self.root.op == "matmul"
            each = 0 if shared else self.depth * self.width
            return b.let(image * each), self.width * 4
        if self.root.op == "conv":
            return b.let(image * self.width), right.type.dims[-1]
        at = _batch_offset(b, image, self.dims, right)
        return at, self.depth if self.transposed else self.width


def problem_of(region: Region) -> Problem | Skip:
    """A region whose root is a product -> its problem, if kernels of products can make it."""
    if reason := refuse(region) or too_large(region):
        return reason
    assert region.root is not None
    return Problem.of(region.root)


def _matmul(root: Node) -> Problem:
    left, right = root.operands[:2]
    *batch, rows, depth = left.type.dims
    dims, width = root.type.dims[:-2], root.type.dims[-1]
    images = prod(dims)
    if prod(right.type.dims[:-2]) == 1 and prod(batch) == images:
        rows, images, dims = rows * images, 1, ()
    return Problem(root, images, rows, depth, width, dims)


def _conv(root: Node) -> Problem:
    x, w = root.operands[:2]
    *kernel, channels, outputs = w.type.dims
    sizes = x.type.dims[1:-1]
    window: Window | None = Window.of(root, sizes, tuple(kernel))
    assert window is not None
    groups, dims = root.int("group"), root.type.dims[:-1]
    ones = (1,) * len(kernel)
    if window.kernel == window.strides == ones and not any(map(any, map(_pad, window.pads))):
        window = None
    depth = prod(kernel) * channels
    return Problem(root, groups, prod(dims), depth, outputs // groups, dims, window)


def _pad(pads: tuple[int, int] | None) -> tuple[int, int]:
    return pads or (0, 0)


def _batch_offset(b: Block, image: Value, dims: tuple[int, ...], operand: Node) -> Value:
    """Where an operand's matrix for an image of the output begins."""
    if not dims:
        return tir.const(0)
    shape = operand.type.dims[:-2]
    strides = Batch.of(dims, shape, prod(operand.type.dims[-2:])).strides
    pairs = zip(indices(b, image, dims), strides, strict=True)
    return b.let(sum((i * s for i, s in pairs if s), start=tir.const(0)))


class LeftRow:
    """A row m of the left operand: where its values of k are."""

    def __init__(self, b: Block, p: Problem, image: Value, m: Value) -> None:
        self.b, self.p = b, p
        self.inside = m < p.rows
        left = p.root.operands[0]
        channels = left.type.dims[-1]
        if p.root.op == "matmul":
            self.base = b.let(_batch_offset(b, image, p.dims, left) + m * channels, "base")
            return
        self.group = b.let(image * p.neighbours, "group")
        if p.window is None:
            self.base = b.let(m * channels + self.group, "base")
            return
        number, *place = indices(b, m, p.dims)
        self.image = b.let(number * prod(left.type.dims[1:-1]), "image")
        pads = [_pad(pad)[0] for pad in p.window.pads]
        steps = zip(place, p.window.strides, pads, strict=True)
        self.starts = [b.let(at * step - pad, "start") for at, step, pad in steps]

    def at(self, k: Value) -> tuple[Value, Value]:
        """The offset of value k, and whether it is inside rows, depth and image."""
        p, b = self.p, self.b
        within = tirx.And(self.inside, k < p.depth)
        if p.window is None:
            return b.let(self.base + k, "at"), within
        tap = b.let(tirx.floordiv(k, p.neighbours), "tap")
        channel = b.let(tirx.floormod(k, p.neighbours), "channel")
        sizes: Sequence[int] = p.root.operands[0].type.dims[1:-1]
        taps = indices(b, tap, p.window.kernel)
        pixel: Value = tir.const(0)
        for i, (start, size) in enumerate(zip(self.starts, sizes, strict=True)):
            at = b.let(start + taps[i] * p.window.dilations[i], "place")
            within = tirx.And(within, tirx.And(at >= 0, at < size))
            pixel = pixel * size + at
        channels = p.root.operands[0].type.dims[-1]
        offset = (self.image + pixel) * channels + self.group + channel
        return b.let(offset, "at"), within
