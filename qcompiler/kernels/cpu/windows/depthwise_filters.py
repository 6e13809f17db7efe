"""A convolution of one filter a channel -> its sizes, and its weights as kernels read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from qcompiler.hardware.isa import Cpu
from qcompiler.hardware.products import ShortMac
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code.epilogue import read_beside, tables_of
from qcompiler.kernels.cpu.code.interleave import rearranged
from qcompiler.kernels.cpu.contraction.operands import (
    Product,
    rounded_bias,
    scaled,
    short_product_of,
    to_float16,
)
from qcompiler.kernels.region import Region
from qcompiler.ops.window import Window


@dataclass(frozen=True)
class Shape:
    """Sizes of a two-dimensional window over an image; one-dimensional ones have one row."""

    images: int
    height: int
    width: int
    channels: int
    rows: int
    columns: int
    window: Window
    top: int
    left: int

    @staticmethod
    def of(region: Region) -> Shape:
        """A region's convolution -> its sizes."""
        root = region.root
        assert root is not None
        x, w = root.operands
        images, *sizes, channels = x.type.dims
        window = Window.of(root, sizes, w.type.dims[:-2])
        outputs = list(root.type.dims[1:-1])
        if len(sizes) == 1:
            sizes, outputs = [1, *sizes], [1, *outputs]
            window = Window(
                (1, *window.kernel),
                (1, *window.strides),
                (1, *window.dilations),
                ((0, 0), *window.pads),
            )
        (top, _), (left, _) = ((p or (0, 0)) for p in window.pads)
        (height, width), (rows, columns) = sizes, outputs
        return Shape(images, height, width, channels, rows, columns, window, top, left)

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns that a window spans, with dilation."""
        return self.window.reach[0], self.window.reach[1]

    @property
    def padded_rows(self) -> bool:
        """Does any window leave the image at the top or the bottom?"""
        last = (self.rows - 1) * self.window.strides[0] - self.top + self.reach[0]
        return self.top > 0 or last > self.height

    def inside(self) -> tuple[int, int]:
        """The output columns [first, end) whose windows stay within the image's width."""
        stride, reach = self.window.strides[1], self.reach[1]
        first = -(-self.left // stride)
        behind = (self.width - reach + self.left) // stride + 1
        return min(first, self.columns), max(min(behind, self.columns), 0)


@dataclass(frozen=True)
class Filters:
    """Weights as a kernel reads them, blocks of `block` channels one after the other.

    Of bytes: initial sums, int32, then [rows of 4][column][part], where a part is the right operand
    of one multiply-accumulate for `lanes` channels (two of them, for pairs of int16); `unpacked`:
    whole blocks are in `unpacked` order; `long`: [tap][channel] instead, for products of 16 bits.
    Of floats: [tap][channel]; `short`: before them every channel's scale (see ShortMac).
    """

    shape: Shape
    product: Product | None
    lanes: int
    block: int
    unpacked: bool
    long: bool = False
    short: Product | None = None

    @property
    def taps(self) -> int:
        """Weights of a channel."""
        return self.shape.window.kernel[0] * self.shape.window.kernel[1]

    @property
    def groups(self) -> int:
        """Groups of four kernel rows."""
        return -(-self.shape.window.kernel[0] // 4)

    @property
    def interleaves(self) -> bool:
        """Are four kernel rows interleaved for a product of four bytes?"""
        return self.product is not None and self.product.mac.k == 4 and not self.long

    @property
    def shared(self) -> int:
        """Input columns that a tile and the next one read, where none between is left out."""
        window = self.shape.window
        return self.shape.reach[1] - window.strides[1] if window.dilations[1] == 1 else 0

    @property
    def part_bytes(self) -> int:
        """Size of one part."""
        return self.lanes * 4 * (2 if self.product and self.product.mac.k == 2 else 1)

    @property
    def step_bytes(self) -> int:
        """Size of four kernel rows and one column of a block."""
        return self.part_bytes * (self.block // self.lanes)

    @property
    def block_size(self) -> int:
        """Elements of a packed block."""
        if self.short is not None:
            return self.block * self.taps + self.short.scale_bytes // 2
        if self.product is None:
            return self.taps * self.block
        if self.long:
            return self.block * (4 + self.taps)
        return self.block * 4 + self.groups * self.shape.window.kernel[1] * self.step_bytes

    @property
    def _blocks(self) -> int:
        return -(-self.shape.channels // self.block)

    @property
    def sums(self) -> str:
        """The dtype of sums of floats, if they are short."""
        return self.short.sums if self.short else ""

    def pack(self, w: Array) -> Array:
        """w[*kernel, 1, channels] -> packed weights."""
        if self.short is not None:
            return self._shorts(w)
        return self._bytes(w) if self.product else self._floats(w)

    def _shorts(self, w: Array) -> Array:
        assert self.short is not None
        assert isinstance(self.short.mac, ShortMac)
        taps = w.reshape(1, self.taps, self.shape.channels)
        more = self._blocks * self.block - self.shape.channels
        wide = np.pad(taps, ((0, 0), (0, 0), (0, more)))
        made, scales = scaled(wide, self.short.mac, self.short.joined)
        scales = scales.astype(self.short.sums)
        each = made.reshape(self.taps, self._blocks, self.block).transpose(1, 0, 2)
        parts = (scales.reshape(self._blocks, -1), each.reshape(self._blocks, -1))
        return np.concatenate([np.ascontiguousarray(p).view(np.float16) for p in parts], axis=1)

    def _floats(self, w: Array) -> Array:
        taps = w.reshape(self.taps, self.shape.channels).astype(np.float32)
        wide = np.pad(taps, ((0, 0), (0, self._blocks * self.block - self.shape.channels)))
        return wide.reshape(self.taps, self._blocks, self.block).transpose(1, 0, 2)

    def _bytes(self, w: Array) -> Array:
        assert self.product is not None
        (height, width), channels = self.shape.window.kernel, self.shape.channels
        w = w.reshape(height, width, channels)
        wide = np.zeros((self.groups * 4, width, self._blocks * self.block), np.int8)
        wide[:height, :, :channels] = rearranged(w, self.block) if self.unpacked else w
        start = -self.product.shift * wide.astype(np.int32).sum((0, 1))
        starts = start.astype(np.int32).reshape(self._blocks, -1).view(np.uint8)
        if self.long:
            each = wide[:height].reshape(self.taps, self._blocks, self.block).transpose(1, 0, 2)
            taps = np.ascontiguousarray(each).reshape(self._blocks, -1).view(np.uint8)
            return np.concatenate([starts, taps], axis=1)
        fours = wide.reshape(self.groups, 4, width, self._blocks, self.block)
        fours = fours.transpose(3, 0, 2, 4, 1)  # [block][group][column][channel][4 rows]
        if self.product.mac.k == 2:  # even rows, then odd rows, a part at a time
            pairs = fours.astype(np.int16).reshape(*fours.shape[:3], -1, self.lanes, 2, 2)
            parts: Array = np.moveaxis(pairs, -1, -3)
        else:
            parts = fours
        flat = np.ascontiguousarray(parts).reshape(self._blocks, -1).view(np.uint8)
        return np.concatenate([starts, flat], axis=1)


def filters_of(region: Region, device: Cpu, shape: Shape, product: Product | None) -> Filters:
    """How weights and channels lie."""
    assert region.root is not None
    short = _short(shape, region, device)
    lanes = short.mac.lanes if short else device.isa.lanes(4)
    block = device.isa.vector_bytes if product else lanes
    long = product is not None and "multiply_long" in device.isa.intrinsics
    unpacked = product is not None and product.mac.k == 4 and not long and lanes * 4 == block
    unpacked = unpacked and _may_unpack(region, shape.channels, block)
    return Filters(shape, product, lanes, block, unpacked, long, short)


def _short(shape: Shape, region: Region, device: Cpu) -> Product | None:
    """The product whose sums are short, if it can add all taps of a window there."""
    found, taps = short_product_of(region, device.isa), prod(shape.window.kernel[:2])
    if found is None or not isinstance(found.mac, ShortMac):
        return None
    return found if taps <= found.mac.steps else None


def _may_unpack(region: Region, channels: int, block: int) -> bool:
    """May channels be in `unpacked` order until they are packed to bytes? Only if the result is
    bytes, and all other operands of the epilogue are constants or scalars.
    """
    rows = [n for n in (*read_beside(region), *tables_of(region.nodes)) if n.type.size > 1]
    known = all(n.is_constant and n.type.size in (256, channels) for n in rows)
    return known and region.output.dtype in ("uint8", "int8") and channels >= block


def packed_rows(region: Region, filters: Filters) -> dict[int, Callable[[Array], Array]]:
    """How constants with a number for each channel are packed."""
    if not filters.unpacked:
        return {region.inputs.index(n): to_float16 for n in rounded_bias(region, filters.sums)}
    assert region.root is not None
    tables = {n.operands[1] for n in region.nodes if n.op == "lookup"}
    others = (*tables, region.root.operands[1])
    channels = filters.shape.channels
    rows = [n for n in region.inputs if n.type.size == channels and n not in others]

    def rearrange(array: Array) -> Array:
        return rearranged(array.reshape(-1), filters.block)

    return {region.inputs.index(n): rearrange for n in rows}


def longest_chain(w: Array) -> int:
    """w[*kernel, 1, channels] int8 -> length, up to four, of chains of neighbouring taps whose
    products by any int8 always fit 16 bits together (absolute weights sum to 255 at most).
    """
    taps = np.abs(w.reshape(-1, w.shape[-1]).astype(np.int32))
    for count in (4, 3, 2):
        chains = np.pad(taps, ((0, -taps.shape[0] % count), (0, 0)))
        if chains.reshape(-1, count, taps.shape[-1]).sum(1).max(initial=0) <= 255:
            return count
    return 1


def tame(w: Array, shape: Shape) -> bool:
    """w[*kernel, 1, channels] int8: do the products of two neighbouring kernel rows by any bytes
    always fit 16 bits together?
    """
    height = shape.window.kernel[0]
    rows = w.reshape(height, -1).astype(np.int32)
    pairs = np.pad(rows, ((0, -height % 2), (0, 0))).reshape(-1, 2, rows.shape[-1])
    most, least = (np.maximum(sign * pairs, 0).sum(1).max() for sign in (1, -1))
    return bool(max(most, least) <= 128)
