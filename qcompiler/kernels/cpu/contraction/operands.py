"""Dtypes and an instruction set -> which product is used, and how operands are laid out for it.

The right operand is packed into panels of some vectors' width, each laid out in the order it is
read: [panel][head][tap][k / step][vector][lane][step], depth and width filled up with zeros.

A product that adds pairs in 16 bits and saturates there is made exact: weights are clipped so that
no pair can (saturation.py), and the little that was cut off is multiplied on its own afterwards,
from a list of leftovers that every panel's head points to: [vector][lane][step], then where in the
left operand.

A product with short sums has its columns scaled, each by a power of two that a panel's head says.
Its sums end in float32, or in float16 where that is what results are rounded to first of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from qcompiler.hardware.isa import Isa
from qcompiler.hardware.products import BlockMac, MacKey, ShortMac, TileMac, VectorMac
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.contraction.loops import Cut
from qcompiler.kernels.cpu.contraction.saturation import Limit, without_saturation
from qcompiler.kernels.region import Region

_SHORT = {
    "uint8": "u8",
    "int8": "i8",
    "int16": "i16",
    "bfloat16": "bf16",
    "float16": "f16",
    "uint16": "bf16",  # its bits
    "float32": "f32",
    "int32": "i32",
}
_FLIP = 128
_SHIFTS = {"int8": _FLIP, "uint8": -_FLIP}
"""Added to bytes to change their signedness."""


@dataclass(frozen=True)
class Product:
    """A multiply-accumulate and the dtypes its operands are brought to, as kernels store them.

    `shift` is added to bytes of the left operand, so that they have the sign that is multiplied:
    128 to int8, -128 to uint8. Every column's sum then starts at its correction, -shift times the
    sum of its weights.
    """

    mac: VectorMac | BlockMac | ShortMac
    left: str
    right: str
    sums: str
    shift: int = 0
    run: int = 1
    """Steps whose pairs are added in 16 bits; more than one for products in halves only."""
    halved: bool = False
    """Is it had as pairs in 16 bits, and their sum?"""
    joined: str = "float32"
    """The dtype in which short sums add up, before they are scaled back."""
    zipped: bool = False
    """Are rows of the left operand copied once for all panels, as instructions take them: vectors
    of `together` rows side by side for every step?
    """

    @property
    def leftovers(self) -> bool:
        """Is the right operand clipped, with lists of what was cut off?"""
        return self.halved or not self.mac.exact

    @property
    def parts(self) -> int:
        """Parts of a step's vectors."""
        return self.mac.parts if self.halved and isinstance(self.mac, VectorMac) else 1

    @property
    def limit(self) -> Limit:
        """What weights that meet in 16 bits may sum up to."""
        most = self.mac.most if isinstance(self.mac, VectorMac) else Limit.most
        return Limit(most, self.left == "int8")

    @property
    def unroll(self) -> int:
        """Steps of an iteration over k."""
        return max(self.run, self.mac.by_lane)

    @property
    def together(self) -> int:
        """Rows whose left operands of one step fill a vector, of which instructions take a row, or
        all of a block; 1 if there are no such instructions.
        """
        if isinstance(self.mac, BlockMac):
            return self.mac.rows if self.mac.blocks == 1 and self.mac.by_lane > 1 else 1
        return self.mac.by_lane if self.parts == 1 else 1

    @property
    def zippable(self) -> bool:
        """Do instructions take left operands from vectors in another order than rows have?"""
        return self.together > 1 or (self.parts > 1 and self.mac.by_lane > 1)

    @property
    def zipped_vector(self) -> int:
        """Elements of a vector of zipped rows: of `together` rows, or of one for all lanes."""
        return self.mac.k * (self.together if self.parts == 1 else self.mac.lanes)

    @property
    def temporaries(self) -> int:
        """Vector registers besides the operands': of products in halves the words, and what says
        how the left operands of each step are taken from rows that lie as they are. LLVM computes
        so many words at a time, as each waits for its products, one after the other.
        """
        if not self.halved:
            return self.mac.temporaries
        if self.mac.by_lane == 1:
            return 1 + self.unroll
        return 2 * self.run if self.zipped else 4 * self.run + self.unroll

    @property
    def flipped(self) -> bool:
        """Do sums need a correction?"""
        return self.shift != 0

    @property
    def correction_bytes(self) -> int:
        """Bytes of a panel's head for one vector's correction."""
        return self.mac.width * 4 if self.flipped else 0

    @property
    def scale_bytes(self) -> int:
        """Bytes of a panel's head for the scales of one vector's columns."""
        short = isinstance(self.mac, ShortMac)
        return self.mac.width * tir.bits(self.sums) // 8 if short else 0

    @property
    def head_bytes(self) -> int:
        """Bytes of a panel's head a vector: corrections or scales, then where the leftovers are."""
        rest = self.vector_bytes if self.leftovers else 0
        return self.correction_bytes + self.scale_bytes + rest

    @property
    def name(self) -> str:
        """ "u8i8"; of blocks "u8i8mm", with short sums "f16f16f16"."""
        after = "mm" if self.mac.rows > 1 else ""
        if isinstance(self.mac, ShortMac):
            after = _SHORT[self.left]
        return _SHORT[self.left] + _SHORT[self.right] + after

    @property
    def vector_bytes(self) -> int:
        """Bytes of the right operand that one multiply-accumulate takes."""
        return self.mac.width * self.mac.k * tir.bits(self.right) // 8

    @property
    def multiplications(self) -> float:
        """Instructions of the multiplier for one multiply-accumulate."""
        return self.parts + 1 / self.run if self.leftovers else 1

    @property
    def instructions(self) -> float:
        """All instructions of one multiply-accumulate but its loads."""
        return 2 + 1 / self.run if self.leftovers else 1 + self.mac.temporaries

    def steps(self, depth: int) -> int:
        """Multiply-accumulates for one sum over so many elements."""
        return -(-depth // self.mac.k)

    def high(self, rows: int) -> int:
        """Multiply-accumulates for so many rows of a tile."""
        return -(-rows // self.mac.rows)

    def lefts(self, rows: int) -> int:
        """Vectors of left operands of so many rows of a tile."""
        return -(-rows // self.together) if self.zipped else rows

    def held(self, rows: int) -> int:
        """Those that are in registers at a time: what is of one row is loaded for it."""
        if self.mac.by_lane == 1:
            return self.run
        if self.parts > 1:
            return self.run + (1 if self.zipped else rows)
        return self.lefts(rows)

    def convert_left(self, value: Value, dtype: str) -> Value:
        """Elements of the left operand, stored as `dtype` -> as the product takes them."""
        if self.flipped:
            return tir.reinterpret(value, "uint8") ^ tir.const(_FLIP, "uint8", tir.lanes_of(value))
        return _widen(value, dtype, self.left)

    def convert_right(self, value: Value, dtype: str) -> Value:
        """Elements of the right operand -> as the product takes them."""
        return _widen(value, dtype, self.right)

    def pad_value(self, value: int) -> int:
        """What padding that reads as `value` is in the product's left operand."""
        return value + self.shift


def _widen(value: Value, dtype: str, wanted: str) -> Value:
    if tir.stored(dtype) == wanted:
        return value
    if dtype == "bfloat16":  # the upper half of a float32
        wide = tir.cast(value, "uint32")
        return tir.reinterpret(
            tirx.op.shift_left(wide, tir.const(16, "uint32", tir.lanes_of(wide))), wanted
        )
    return tir.cast(value, wanted)


def product_of(
    isa: Isa, left: str, right: str, sums: str, *, packed: bool = False
) -> Product | None:
    """The fastest exact vector product for operands of these dtypes, if there is one.

    With `packed`, the right operand goes through `pack`, which makes products exact that are not,
    and halves of those that are.
    """

    def mac(a: str, b: str, *, exact: bool = True) -> VectorMac | None:
        return isa.vector(_key(a, b, sums), exact=exact)

    if sums == "int32" and {left, right} <= _SHIFTS.keys():
        ways = _signs(left, right)
        for exact in (True, False) if packed else (True,):
            for sign, shift in ways:
                if found := mac(sign, right, exact=exact):
                    halved = packed and exact and found.halves
                    return Product(found, sign, right, sums, shift, halved=halved)
        wide = mac("int16", "int16")
        return Product(wide, "int16", "int16", sums) if wide else None
    if sums != "float32":
        return None
    if left in ("bfloat16", "float16") and (found := mac(left, right)):
        return Product(found, tir.stored(left), tir.stored(right), sums)
    single = mac("float32", "float32")
    return Product(single, "float32", "float32", sums) if single else None


def block_product_of(isa: Isa, left: str, right: str, sums: str) -> Product | None:
    """The product of blocks for operands of these dtypes as they are, or bytes of the other sign,
    if there is one.
    """
    ways = _signs(left, right) if left in _SHIFTS else [(left, 0)]
    for kind, shift in ways:
        if not {kind, right, sums} <= _SHORT.keys():
            continue
        if found := isa.block(_key(kind, right, sums)):
            return Product(found, tir.stored(kind), tir.stored(right), sums, shift)
    return None


def short_product_of(region: Region, isa: Isa) -> Product | None:
    """The product of a region's root with short sums by a constant right operand, if there is one;
    they end in float16 where results are rounded to that anyway.
    """
    root = region.root
    assert root is not None
    left, right, sums = *(i.dtype for i in root.operands), root.dtype
    mac = isa.short
    if mac is None or not {left, right, sums} <= _SHORT.keys():
        return None
    if mac.key != _key(left, right, sums):
        return None
    ends = "float16" if region.known(bias_of(region)[0]).halves else sums
    joined = "float16" if region.known(root.operands[1]).halves else "float32"
    return Product(mac, left, right, ends, joined=joined)


def tile_of(isa: Isa, root: Node) -> TileMac | None:
    """The instruction set's tile product for a node, if it has one."""
    dtypes = (*(i.dtype for i in root.operands), root.dtype)
    return isa.tile(_key(*dtypes)) if set(dtypes) <= _SHORT.keys() else None


def _key(left: str, right: str, sums: str) -> MacKey:
    return _SHORT[left], _SHORT[right], _SHORT[sums]


def _signs(left: str, right: str) -> list[tuple[str, int]]:
    """What bytes of the left operand may be multiplied as, and what that adds to them: themselves,
    or those of the other sign, which weights with a sign allow.
    """
    other = "uint8" if left == "int8" else "int8"
    return [(left, 0), (other, _SHIFTS[left])] if right == "int8" else [(left, 0)]


@dataclass(frozen=True)
class Panels:
    """How the columns of the right operand are cut: vectors of `lanes` columns into panels."""

    width: int
    lanes: int
    cut: Cut

    @staticmethod
    def of(width: int, lanes: int, vectors: int) -> Panels:
        """At most `vectors` vectors to a panel, and as few panels as that allows."""
        return Panels(width, lanes, Cut.of(-(-width // lanes), vectors))

    @property
    def vectors(self) -> int:
        """Of the first panel; the last ones may have one less."""
        return self.cut.size

    @property
    def panels(self) -> int:
        """All of them."""
        return self.cut.pieces

    def runs(self) -> Iterator[Run]:
        """Runs of equal panels; the last panel is one of its own if its last vector is partial."""
        partial = self.width % self.lanes
        for first, count, vectors, before in self.cut.runs():
            last = bool(partial) and first + count == self.panels
            whole, column = count - last, before * self.lanes
            if whole:
                yield Run(first, whole, vectors, column, self.lanes)
            if last:
                yield Run(first + whole, 1, vectors, column + whole * vectors * self.lanes, partial)


@dataclass(frozen=True)
class Run:
    """`count` panels of `vectors` vectors from panel `first`, column `column` on; the last vector
    of each has `tail` columns.
    """

    first: int
    count: int
    vectors: int
    column: int
    tail: int


def panel_bytes(product: Product, taps: int, depth: int, vectors: int) -> int:
    """Bytes of one packed panel; proportional to its vectors."""
    return vectors * (product.head_bytes + taps * product.steps(depth) * product.vector_bytes)


def leftover_bytes(product: Product, vectors: int) -> int:
    """Bytes of one entry in a panel's list of leftovers."""
    return vectors * product.vector_bytes + 4


def pack(matrices: Array, product: Product, panels: Panels, taps: Sequence[int] = (0,)) -> Array:
    """[images, groups, taps, depth, width] -> the panels of all of them, then their leftovers.

    `taps` are the taps' offsets in the left operand, in elements.
    """
    images, groups, count, depth, width = matrices.shape
    k, lanes = product.mac.k, product.mac.width
    same = tir.stored(matrices.dtype.name) == product.right
    values = matrices.view(product.right) if same else matrices.astype(product.right)
    shape = (images * groups, count, product.steps(depth) * k, panels.cut.length * lanes)
    full = np.zeros(shape, product.right)
    full[:, :, :depth, :width] = values.reshape(images * groups, count, depth, width)
    kept = without_saturation(full, product.run, product.limit) if product.leftovers else full
    writer = _Writer(product, taps)
    for matrix in range(images * groups):
        first = 0
        for vectors in panels.cut.sizes:
            columns = slice(first * lanes, (first + vectors) * lanes)
            writer.panel(full[matrix, :, :, columns], kept[matrix, :, :, columns])
            first += vectors
    return writer.packed()


def sections(steps: int, taps: int, depth: int) -> tuple[int, int]:
    """How many short sums of at most so many steps are added one after the other, and how many
    steps each has: all taps in one if they are as few, else one tap's in equal parts and a rest.
    """
    if taps * depth <= steps:
        return 1, taps * depth
    return taps * -(-depth // steps), min(steps, depth)


def scaled(weights: Array, mac: ShortMac, joined: str = "float32") -> tuple[Array, Array]:
    """float16 weights [taps, depth, width] -> the same, each column over a power of two, and these
    as float32 [width]: those that meet in a short sum, or all of a column if these are `joined` in
    float16, add up to at most `mac.most`. What becomes too small is the smallest number: infinity
    times it is no NaN.
    """
    taps, depth, width = weights.shape
    count, size = sections(mac.steps, taps, depth)
    if joined == "float16":
        count, size = 1, taps * depth
    sizes = np.abs(np.where(np.isfinite(weights), weights, 0).astype(np.float64))
    if count > 1:
        sizes = np.pad(sizes, ((0, 0), (0, -depth % size), (0, 0)))
    largest = sizes.reshape(count, -1, width).sum(1).max(0)
    exponents = np.where(largest > 0, np.frexp(largest / mac.most)[1], 0)
    wide = np.ldexp(weights.astype(np.float64), -exponents)
    made = wide.astype(weights.dtype)
    least = np.copysign(np.finfo(np.float16).smallest_subnormal, wide)
    made = np.where((made == 0) & (weights != 0), least, made).astype(weights.dtype)
    return made, np.ldexp(np.float32(1), exponents)


class _Writer:
    """Packed panels of matrices while they are written."""

    def __init__(self, product: Product, taps: Sequence[int]) -> None:
        self.product, self.taps = product, taps
        self.panels: list[Array] = []
        self.lists: list[Array] = []
        self.heads: list[Array] = []
        self.size = 0
        self.list_size = 0

    def panel(self, full: Array, kept: Array) -> None:
        """[taps, depth, columns] of weights, and those that the product multiplies."""
        product, parts = self.product, []
        if product.flipped:
            sums = -product.shift * full.astype(np.int64).sum((0, 1))
            parts.append(sums.astype(np.int32).view(np.uint8))
        if isinstance(product.mac, ShortMac):
            kept, scales = scaled(full, product.mac, product.joined)
            parts.append(scales.astype(product.sums).view(np.uint8))
        if product.leftovers:
            entries = self._entries(np.subtract(full, kept, dtype=np.int16))
            head = np.zeros(full.shape[-1] // product.mac.width * product.vector_bytes, np.uint8)
            head[:8] = np.array([len(entries), self.list_size], np.int32).view(np.uint8)
            self.heads.append(head)
            self.lists.extend(entries)
            self.list_size += sum(e.size for e in entries)
            parts.append(head)
        parts.append(self._steps(kept).reshape(-1).view(np.uint8))
        self.panels.extend(parts)
        self.size += sum(p.size for p in parts)

    def _steps(self, weights: Array) -> Array:
        """[taps, depth, columns] -> [tap, step, vector, part, lane, k / parts]."""
        mac, parts = self.product.mac, self.product.parts
        taps, depth, columns = weights.shape
        shape = (taps, depth // mac.k, mac.k // parts, parts, columns // mac.width, mac.width)
        return np.ascontiguousarray(weights.reshape(shape).transpose(0, 1, 4, 3, 5, 2))

    def _entries(self, rest: Array) -> list[Array]:
        """What was cut off, a step at a time where there is anything; it must not saturate."""
        entries: list[Array] = []
        while rest.any():
            part = without_saturation(rest.astype(np.int8), 1, self.product.limit)
            entries += self._steps_of(part)
            rest = np.subtract(rest, part, dtype=np.int16)
        return entries

    def _steps_of(self, weights: Array) -> list[Array]:
        steps = self._steps(weights)
        found = np.argwhere(steps.any((2, 3, 4, 5)))
        return [
            np.concatenate(
                [
                    steps[tap, step].reshape(-1).view(np.uint8),
                    np.array([self.taps[tap] + step * self.product.mac.k], np.int32).view(np.uint8),
                ]
            )
            for tap, step in found
        ]

    def packed(self) -> Array:
        """All panels, then all leftovers; heads now say where in the whole theirs begin."""
        for head in self.heads:
            head[4:8].view(np.int32)[0] += self.size
        return np.concatenate([*self.panels, *self.lists])


def rounded_bias(region: Region, sums: str) -> tuple[Node, ...]:
    """The bias, if there is one, of a kernel whose sums are float16: it is packed `to_float16`."""
    bias = bias_of(region)[1]
    return (bias,) if bias is not None and sums == "float16" else ()


def to_float16(array: Array) -> Array:
    """An array -> the same, rounded to float16."""
    return array.astype(np.float16)


def bias_of(region: Region) -> tuple[Node, Node | None]:
    """The root and None; or, if all that follows reads the root plus a row of columns, that sum and
    the row: sums may as well begin with it.
    """
    root = region.root
    assert root is not None
    readers = [n for n in region.nodes if root in n.operands]
    if len(readers) != 1 or readers[0].op != "Add" or root is region.output:
        return root, None
    others = [i for i in readers[0].operands if i is not root]
    if len(others) != 1 or others[0] not in region.inputs or others[0].dtype != root.dtype:
        return root, None
    dims, width = others[0].type.dims, root.type.dims[-1]
    row = dims[-1:] == (width,) and others[0].type.size == width
    return (readers[0], others[0]) if row and len(dims) <= root.type.rank else (root, None)
