"""Attention regions of bytes or halves on an instruction set with tile registers -> TIR.

As attention/vector.py, a head at a time, but queries come in blocks of up to 32, two tiles of rows:

    scores = queries * keys             two panels of keys at a time, in tiles, then in scratch
    weights = 2^(scores - largest)      a row at a time, by vectors
    output = weights * values / sum     two panels of columns at a time, in tiles

Packed keys and values are panels of vectors, and sixteen neighbouring vectors of a panel are a
right tile as they lie; queries are left tiles where they lie, and so are weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.hardware.products import MacKey, TileMac, VectorMac
from qcompiler.kernels.cpu.attention.layout import Layout
from qcompiler.kernels.cpu.attention.operands import Heads, Values
from qcompiler.kernels.cpu.attention.vector import AttentionTask, emitted, refuse_attention
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.loops import sweep
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.contraction.operands import Product
from qcompiler.kernels.cpu.matrix.block import (
    CONFIG_BYTES,
    LEFT_TILE,
    RIGHT_TILE,
    Blocks,
    sums_tile,
    write_shapes,
)
from qcompiler.kernels.cpu.matrix.layout import PANEL_TILES, WORD
from qcompiler.kernels.registry import Candidate, Fixed, Region, candidates
from qcompiler.ops.attention import LEAST

_PRODUCTS: Mapping[str, tuple[tuple[MacKey, str, str], tuple[MacKey, str, str]]] = {
    "int8": ((("i8", "i8", "i32"), "int8", "int8"), (("u8", "i8", "i32"), "uint8", "int8")),
    "bfloat16": ((("bf16", "bf16", "f32"), "uint16", "uint16"),) * 2,
}
"""Operands' dtype -> what multiplies queries by keys, and weights by values."""
_SUMS = {"i32": "int32", "f32": "float32"}
_GAIN = 4.0
"""How much less time full tiles take than vectors, softmax included."""
_FEW_QUERIES = 4
"""Up to so many, rows of tiles would stay empty."""


@candidates("Attention", "attention")
def tile_attention(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Both products in tile registers."""
    if reason := refuse_attention(region):
        return reason
    root = region.root
    assert root is not None
    dtypes = {i.dtype for i in root.inputs[:3] if i is not None}
    dtype = dtypes.pop()
    if dtypes or dtype not in _PRODUCTS:
        return Skip(f"no tile products of {dtype}")
    macs = _macs(device, dtype)
    if macs is None:
        return Skip(f"no tile products of {dtype}")
    q, k, v = Heads.all(root)
    quad = macs[0].k // macs[0].rows
    words = q.size // quad
    if q.size % quad or words % -(-words // macs[0].rows):
        return Skip(f"heads of {q.size} are no whole number of tiles")
    if q.length <= _FEW_QUERIES:
        return Skip(f"{q.length} queries")
    scores, values = (
        Product(VectorMac(key, mac.lanes, quad, mac.emit), left, right, _SUMS[key[2]])
        for mac, (key, left, right) in zip(macs, _PRODUCTS[dtype], strict=True)
    )
    layout = _Layout((q, k, v), scores, values, device, macs)
    rows = macs[0].rows
    filled = q.length / (-(-q.length // rows) * rows)
    seconds = layout.seconds / (_GAIN * filled)
    return [Candidate(Fixed(), seconds, partial(emitted, region, layout, _Tiles))]


def _macs(device: Cpu, dtype: str) -> tuple[TileMac, TileMac] | None:
    """The tile products for operands of a dtype, if there are both."""
    first, second = (device.isa.tile(key) for key, _, _ in _PRODUCTS[dtype])
    return None if first is None or second is None else (first, second)


@dataclass(frozen=True)
class _Steps:
    """A sum's depth in tiles: `count` of them, `words` of 32 bits a row each."""

    count: int
    words: int


@dataclass(frozen=True)
class _Rows:
    """Left rows: where they are, elements from row to row and from step to step, bytes of a row."""

    left: Pointer
    apart: int
    step: int
    row_bytes: int


@dataclass(frozen=True)
class _Layout(Layout):
    """Of a kernel of tiles."""

    macs_of: tuple[TileMac, TileMac]
    suffix = "_tiles"

    @cached_property
    def rows(self) -> Blocks:
        """How queries fall into blocks."""
        return Blocks.of(self.heads[0].length, self.lanes)

    @property
    def block(self) -> int:
        """Queries at a time."""
        return self.rows.size

    @cached_property
    def heights(self) -> tuple[int, ...]:
        """Of a block's tiles."""
        return self.rows.heights(self.lanes)

    @cached_property
    def deep(self) -> _Steps:
        """The depth of scores."""
        count = -(-self.keys.vectors // self.lanes)
        return _Steps(count, self.keys.vectors // count)

    @cached_property
    def packed_steps(self) -> int:
        """Steps of values that are packed; zeros follow."""
        return self.for_values.steps(self.heads[1].length)

    @cached_property
    def long(self) -> _Steps:
        """The depth of outputs."""
        count = -(-self.packed_steps // self.lanes)
        return _Steps(count, self.lanes if count > 1 else self.packed_steps)

    @cached_property
    def values(self) -> Values:
        """A head's values, packed, as many steps as whole tiles take."""
        steps = self.long.count * self.long.words
        return Values(self.for_values, self.heads[2], steps=steps)

    @property
    def row(self) -> int:
        """Elements from one query's scores to the next one's."""
        return max(self.padded, self.values.steps * self.for_scores.mac.k)

    def pieces(self) -> dict[str, int]:
        """What lies in a task's scratch -> its bytes, in order."""
        scores, weight = self.block * self.row, tir.bits(self.for_values.left) // 8
        return {
            "keys": self.keys.bytes,
            "values": self.values.bytes,
            "scores": scores * WORD,
            "weights": scores * weight,
            "sums": self.block * PANEL_TILES * self.lanes * WORD,
            "tops": self.block * self.lanes * WORD,
            "inverses": self.block * WORD,
            "shapes": 2 * CONFIG_BYTES,
        }


class _Tiles(AttentionTask):
    """The code of a task while it is emitted."""

    layout: _Layout
    ends = False

    # -- loops

    def head(self, unit: Value) -> None:
        """One head's queries, or one part of them."""
        for i, steps in enumerate((self.layout.deep, self.layout.long)):
            area = self._area(self.layout.places["shapes"] + i * CONFIG_BYTES)
            heights, row_bytes = self.layout.heights, self.lanes * WORD
            write_shapes(self.d.isa, area, heights, steps.words, row_bytes)
        self._zero()
        super().head(unit)
        self._do("tile_release")

    def _queries(self, image: Value, head: Value, values: Value, query: Value, count: int) -> None:
        """The output rows of a block of queries; the last block begins before its first new one."""
        b = self.b
        if count < self.layout.block:
            query = tir.const(self.q.length - self.layout.block)
        start = b.let(self.q.at(image, head, query), "q")
        mask = self._mask_offset(image, head, query)
        self._do("tile_configure", self._area(self.layout.places["shapes"]).address())
        pairs, single = divmod(self.keys // self.lanes, PANEL_TILES)
        with b.serial(pairs, "panel") as i:
            self._tile_scores(start, b.let(i * PANEL_TILES, "first"), PANEL_TILES)
        if single:
            self._tile_scores(start, tir.const(pairs * PANEL_TILES), 1)
        with b.serial(self.layout.block, "row") as r:
            self._weigh_row(r, query, mask)
        self._do(
            "tile_configure", self._area(self.layout.places["shapes"] + CONFIG_BYTES).address()
        )
        width = PANEL_TILES * self.lanes
        for column in range(0, self.v.size, width):
            tiles = min(PANEL_TILES, -(-(self.v.size - column) // self.lanes))
            self._tile_outputs(column, tiles)
            with b.serial(self.layout.block, "row") as r:
                at = b.let(r * width, "at")
                sums = self._sums()
                found = [b.let(sums.load(at + c * self.lanes, self.lanes)) for c in range(tiles)]
                inverse = self.inverses.load(r)
                self._put(image, head, b.let(query + r, "position"), column, found, inverse)

    def _weigh_row(self, r: Value, query: Value, mask: tuple[Value, int, int] | None) -> None:
        """A row of sums -> scores and the largest of them -> weights."""
        b, m, lanes = self.b, self.m, self.lanes
        start = b.let(r * self.row, "start")
        top = b.registers("float32", lanes, 1, "top")
        top.fill(LEAST)

        def score(at: Value, there: int) -> None:
            value = m.vec(self._raw(start + at), self.for_scores.sums)
            bias = self._bias(mask, at, there, r)
            value = self._biased(m.cast(value, "float32"), bias, at, there, query + r)
            self.scores.store(start + at, value.expr)
            top[0] = m.larger(m.vec(top[0]), value).expr

        sweep(b, self.k.length, lanes, score)
        self.tops.store(r * lanes, top[0])
        self._weights(r)

    def _raw(self, at: Value) -> Value:
        """A vector of sums as the tiles left them."""
        value = self.scores.load(at, self.lanes)
        return tir.reinterpret(value, self.for_scores.sums)

    def _sums(self) -> Pointer:
        return self._area(self.layout.places["sums"]).view(self.for_values.sums)

    # -- tiles

    def _area(self, at: int) -> Pointer:
        area: Pointer = self.scratch + at
        return area

    def _do(self, name: str, *operands: Value) -> None:
        self.b.emit(self.d.isa.intrinsics[name](*operands))

    def _zero(self) -> None:
        """Weights and values behind the last key, as far as tiles reach."""
        b, lanes = self.b, self.lanes
        zeros = tir.const(0, "int32", lanes)
        for panel in range(-(-self.v.size // lanes)):
            first = (panel * self.packed_values.steps + self.layout.packed_steps) * lanes
            with b.serial(self.packed_values.steps - self.layout.packed_steps, "step") as i:
                self.value_panels.store(first + i * lanes, zeros)
        none = tir.const(0, self.for_values.left, lanes)
        with (
            b.serial(self.layout.block, "row") as r,
            b.serial((self.row - self.keys) // lanes, "v") as i,
        ):
            self.weights.store(r * self.row + self.keys + i * lanes, none)

    def _tile_scores(self, start: Value, first: Value, tiles: int) -> None:
        """A block of queries by panels of keys from one on -> sums in scratch."""
        size = tir.bits(self.for_scores.left) // 8
        left = self.d.pointers[self.q.node] + start
        depth = self.layout.deep.words * self.for_scores.mac.k
        panel = self.packed_keys.vectors * self.lanes

        rows = _Rows(left, self.q.steps[2], depth, self.q.steps[2] * size)
        panels = self.key_panels + first * panel
        self._multiply(self.layout.macs_of[0], self.layout.deep, rows, (panels, panel), tiles)
        self._store(self.scores + first * self.lanes, self.row * WORD, tiles)

    def _tile_outputs(self, column: int, tiles: int) -> None:
        """A block of weights by panels of values -> sums in scratch."""
        size = tir.bits(self.for_values.left) // 8
        depth = self.layout.long.words * self.for_scores.mac.k
        panel = self.packed_values.steps * self.lanes

        rows = _Rows(self.weights, self.row, depth, self.row * size)
        panels = self.value_panels + column // self.lanes * panel
        self._multiply(self.layout.macs_of[1], self.layout.long, rows, (panels, panel), tiles)
        self._store(self._sums(), PANEL_TILES * self.lanes * WORD, tiles)

    def _multiply(
        self, mac: TileMac, steps: _Steps, rows: _Rows, panels: tuple[Pointer, int], tiles: int
    ) -> None:
        """Left rows by neighbouring panels (where the first is, words from one to the next)."""
        right, apart = panels
        for r, c in product(range(len(self.layout.heights)), range(tiles)):
            self._do("tile_zero", sums_tile(r, c))
        for step in range(steps.count):
            for r in range(len(self.layout.heights)):
                for c in range(tiles):
                    if r == 0:
                        address = right.address(c * apart + step * steps.words * self.lanes)
                        self._do("tile_load", RIGHT_TILE + c, address, tir.const(self.lanes * WORD))
                    if c == 0:
                        at = sum(self.layout.heights[:r]) * rows.apart + step * rows.step
                        address, row_bytes = rows.left.address(at), tir.const(rows.row_bytes)
                        self._do("tile_load", LEFT_TILE + r, address, row_bytes)
                    self.b.emit(mac.emit(sums_tile(r, c), LEFT_TILE + r, RIGHT_TILE + c))

    def _store(self, sums: Pointer, row_bytes: int, tiles: int) -> None:
        """Sums -> memory, where rows are so many bytes apart."""
        for r, c in product(range(len(self.layout.heights)), range(tiles)):
            at = sum(self.layout.heights[:r]) * row_bytes // WORD + c * self.lanes
            tile = sums_tile(r, c)
            self._do("tile_store", tile, sums.address(at), tir.const(row_bytes))
