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
from itertools import product

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.hardware.products import MacKey, TileMac, VectorMac
from qcompiler.kernels.cpu.attention.operands import Heads, Keys, Values
from qcompiler.kernels.cpu.attention.vector import (
    AttentionKernel,
    Scratch,
    attention_seconds,
    refuse_attention,
)
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.loops import sweep
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.contraction.operands import Product
from qcompiler.kernels.cpu.matrix.block import CONFIG_BYTES, ROW_TILES, TILES, Blocks
from qcompiler.kernels.cpu.matrix.layout import WORD
from qcompiler.kernels.cpu.matrix.right import PANEL_TILES
from qcompiler.kernels.registry import Candidate, Fixed, Kernel, Region, candidates
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
_LEFT, _RIGHT = ROW_TILES * PANEL_TILES, ROW_TILES * PANEL_TILES + ROW_TILES


@candidates("Attention", "attention")
def tile_attention(region: Region, device: Device) -> Iterable[Candidate] | Skip:
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

    def build() -> Kernel:
        return _Tiles(region, device, (q, k, v), scores, values).kernel()

    rows = macs[0].rows
    filled = q.length / (-(-q.length // rows) * rows)
    seconds = attention_seconds((q, k, v), quad, device) / (_GAIN * filled)
    return [Candidate(Fixed(), seconds, build)]


def _macs(device: Device, dtype: str) -> tuple[TileMac, TileMac] | None:
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


class _Tiles(AttentionKernel):
    """One kernel while it is emitted."""

    suffix = "_tiles"

    def _divide(self) -> None:
        """Decide where in a task's scratch what lies."""
        area, rows = Scratch(self.d.device.core), self.lanes
        macs = _macs(self.d.device, self.q.node.dtype)
        assert macs is not None
        self.macs_of = macs
        self.quad = self.for_scores.mac.k
        blocks = Blocks.of(self.q.length, rows)
        self.block, self.heights = blocks.size, blocks.heights(rows)
        self.packed_keys = Keys(self.for_scores, self.k)
        self.packed_values = Values(self.for_values, self.v)
        words = self.packed_keys.vectors
        count = -(-words // rows)
        self.deep = _Steps(count, words // count)
        words = self.packed_values.steps
        count = -(-words // rows)
        self.long = _Steps(count, rows if count > 1 else words)
        self.packed_steps = words
        panels = -(-self.v.size // self.lanes)
        self.packed_values.steps = self.long.count * self.long.words
        self.packed_values.bytes = panels * self.packed_values.steps * self.lanes * WORD
        self.row = max(self.keys, self.packed_values.steps * self.quad)
        weight = tir.bits(self.for_values.left) // 8
        self.keys_at = area.take(self.packed_keys.bytes)
        self.values_at = area.take(self.packed_values.bytes)
        self.queries_at = 0
        self.scores_at = area.take(self.block * self.row * WORD)
        self.weights_at = area.take(self.block * self.row * weight)
        self.sums_at = area.take(self.block * PANEL_TILES * self.lanes * WORD)
        self.tops_at = area.take(self.block * self.lanes * WORD)
        self.inverse_at = area.take(self.block * WORD)
        self.shapes_at = area.take(2 * CONFIG_BYTES)
        self.task_bytes = area.bytes + CONFIG_BYTES

    # -- loops

    def _head(self, turn: Value) -> None:
        """One head's queries, or one part of them."""
        for i, steps in enumerate((self.deep, self.long)):
            self._write_shapes(self._area(self.shapes_at + i * CONFIG_BYTES), steps)
        self._zero()
        super()._head(turn)
        self._do("tile_release")

    def _queries(self, image: Value, head: Value, query: Value, count: int) -> None:
        """The output rows of a block of queries; the last block begins before its first new one."""
        b = self.b
        if count < self.block:
            query = tir.const(self.q.length - self.block)
        start = b.let(self.q.at(image, head, query), "q")
        mask = self._mask_offset(image, head, query)
        self._do("tile_configure", self._area(self.shapes_at).address())
        wide, narrow = divmod(self.keys // self.lanes, PANEL_TILES)
        with b.serial(wide, "panel") as i:
            self._tile_scores(start, b.let(i * PANEL_TILES, "first"), PANEL_TILES)
        if narrow:
            self._tile_scores(start, tir.const(wide * PANEL_TILES), 1)
        with b.serial(self.block, "row") as r:
            self._weigh_row(r, query, mask)
        self._do("tile_configure", self._area(self.shapes_at + CONFIG_BYTES).address())
        width = PANEL_TILES * self.lanes
        for column in range(0, self.v.size, width):
            tiles = min(PANEL_TILES, -(-(self.v.size - column) // self.lanes))
            self._tile_outputs(column, tiles)
            with b.serial(self.block, "row") as r:
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
        return self._area(self.sums_at).view(self.for_values.sums)

    # -- tiles

    def _area(self, at: int) -> Pointer:
        area: Pointer = self.scratch + at
        return area

    def _do(self, name: str, *operands: Value) -> None:
        self.b.emit(self.d.isa.intrinsics[name](*operands))

    def _write_shapes(self, memory: Pointer, steps: _Steps) -> None:
        """The tiles' shapes for sums of such steps -> the bytes that set them."""
        row_bytes = self.lanes * WORD
        shapes: dict[int, tuple[int, int]] = {}
        for r, height in enumerate(self.heights):
            shapes[_LEFT + r] = (height, steps.words * WORD)
            shapes.update({r * PANEL_TILES + c: (height, row_bytes) for c in range(PANEL_TILES)})
        shapes.update({tile: (steps.words, row_bytes) for tile in range(_RIGHT, TILES)})
        config = self.d.isa.intrinsics["tile_shapes"](shapes)
        memory.store(0, tir.const(0, "uint8", CONFIG_BYTES))
        for i in range(0, CONFIG_BYTES, WORD):
            word = int.from_bytes(config[i : i + WORD], "little", signed=True)
            if word:
                memory.store(i, tir.const(word))

    def _zero(self) -> None:
        """Weights and values behind the last key, as far as tiles reach."""
        b, lanes = self.b, self.lanes
        zeros = tir.const(0, "int32", lanes)
        for panel in range(-(-self.v.size // lanes)):
            first = (panel * self.packed_values.steps + self.packed_steps) * lanes
            with b.serial(self.packed_values.steps - self.packed_steps, "step") as i:
                self.value_panels.store(first + i * lanes, zeros)
        none = tir.const(0, self.for_values.left, lanes)
        with b.serial(self.block, "row") as r, b.serial((self.row - self.keys) // lanes, "v") as i:
            self.weights.store(r * self.row + self.keys + i * lanes, none)

    def _tile_scores(self, start: Value, first: Value, tiles: int) -> None:
        """A block of queries by panels of keys from one on -> sums in scratch."""
        size = tir.bits(self.for_scores.left) // 8
        left = self.d.pointers[self.q.node] + start
        depth = self.deep.words * self.quad
        panel = self.packed_keys.vectors * self.lanes

        rows = _Rows(left, self.q.steps[2], depth, self.q.steps[2] * size)
        panels = self.key_panels + first * panel
        self._multiply(self.macs_of[0], self.deep, rows, (panels, panel), tiles)
        self._store(self.scores + first * self.lanes, self.row * WORD, tiles)

    def _tile_outputs(self, column: int, tiles: int) -> None:
        """A block of weights by panels of values -> sums in scratch."""
        size = tir.bits(self.for_values.left) // 8
        depth = self.long.words * self.quad
        panel = self.packed_values.steps * self.lanes

        rows = _Rows(self.weights, self.row, depth, self.row * size)
        panels = self.value_panels + column // self.lanes * panel
        self._multiply(self.macs_of[1], self.long, rows, (panels, panel), tiles)
        self._store(self._sums(), PANEL_TILES * self.lanes * WORD, tiles)

    def _multiply(
        self, mac: TileMac, steps: _Steps, rows: _Rows, panels: tuple[Pointer, int], tiles: int
    ) -> None:
        """Left rows by neighbouring panels (where the first is, words from one to the next)."""
        right, apart = panels
        for r, c in product(range(len(self.heights)), range(tiles)):
            self._do("tile_zero", r * PANEL_TILES + c)
        for step in range(steps.count):
            for r in range(len(self.heights)):
                for c in range(tiles):
                    if r == 0:
                        address = right.address(c * apart + step * steps.words * self.lanes)
                        self._do("tile_load", _RIGHT + c, address, tir.const(self.lanes * WORD))
                    if c == 0:
                        at = sum(self.heights[:r]) * rows.apart + step * rows.step
                        address, row_bytes = rows.left.address(at), tir.const(rows.row_bytes)
                        self._do("tile_load", _LEFT + r, address, row_bytes)
                    self.b.emit(mac.emit(r * PANEL_TILES + c, _LEFT + r, _RIGHT + c))

    def _store(self, sums: Pointer, row_bytes: int, tiles: int) -> None:
        """Sums -> memory, where rows are so many bytes apart."""
        for r, c in product(range(len(self.heights)), range(tiles)):
            at = sum(self.heights[:r]) * row_bytes // WORD + c * self.lanes
            tile = r * PANEL_TILES + c
            self._do("tile_store", tile, sums.address(at), tir.const(row_bytes))
