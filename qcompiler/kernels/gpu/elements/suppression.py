"""non_max_suppression -> a block for each class of each image: all its threads look for the best
box that is left, then remove what overlaps it; a second launch puts what blocks kept one after the
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import across
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Kernel, Region, kernel

_THREADS = 256


@kernel("non_max_suppression", kind=Gpu)
def gpu_suppression(region: Region, device: Gpu) -> Kernel | Skip:
    """As many steps as boxes of a class are kept."""
    if reason := refuse(region) or too_large(region):
        return reason
    if len(region.nodes) > 1:
        return Skip("elementwise work around it")
    if not all(n.type.size for n in (*region.inputs, region.output)):
        return Skip("an operand without elements")
    first = _Suppression(region, device, "nms")
    first.keep()
    after = _Suppression(region, device, "collected")
    after.collect()
    return first.d.kernel(scratch_bytes=first.scratch_bytes, after=(after.d.after(),))


class _Suppression:
    """A kernel while it is written. Scratch memory: how many boxes each class of each image keeps,
    which ones, and for each box whether it is left.
    """

    def __init__(self, region: Region, device: Gpu, kind: str) -> None:
        self.d = d = GridDraft(kind, region, device, _THREADS)
        self.b, self.m, b = d.b, d.m, d.b
        self.boxes, self.scores, self.each, self.overlap, self.least = d.root.operands
        images, self.classes, self.count = self.scores.type.dims
        self.blocks, self.most = images * self.classes, d.root.int("most")
        self.room = min(self.count, max(self.most, 1))
        self.kept = d.scratch("int32")
        self.chosen = self.kept + self.blocks
        self.left = self.chosen + self.blocks * self.room
        b.blocks(self.blocks)
        self.image = b.let(tirx.floordiv(b.x, self.classes), "image")
        self.group = b.let(tirx.floormod(b.x, self.classes), "class")
        self.row = b.let(b.x * self.count, "row")
        self.lane = b.let(tirx.floormod(b.thread, WARP), "lane")
        self.warp = b.let(tirx.floordiv(b.thread, WARP), "warp")

    @property
    def scratch_bytes(self) -> int:
        """All of it."""
        return 4 * self.blocks * (1 + self.room + self.count)

    def keep(self) -> None:
        """The first launch: the boxes that a class of an image keeps, and zeros in the output."""
        b = self.b
        self._clear()
        least = self.d.read(self.least, 0)
        with self._own_boxes() as n:
            at = b.let(self.row + n, "at")
            self.left.store(at, self.m.cast(self.d.read(self.scores, at) > least, "int32").expr)
        wide = self.d.pointers[self.each].load(0)
        each = b.hold(tir.bounded(wide, 0, self.count), "each")
        self.score = b.registers(tir.stored(self.scores.dtype), 1, 1, "score")
        self.best = b.registers("int32", 1, 1, "best")
        total = b.registers("int32", 1, 1, "total")
        self.score.fill(0)
        self.best.fill(0)
        total.fill(0)
        scores = b.shared(tir.stored(self.scores.dtype), _THREADS // WARP, "scores")
        places = b.shared("int32", _THREADS // WARP, "places")
        with b.serial(each, "step"), b.when(self.best[0] >= 0):
            self._find(scores, places)
            with b.when(self.best[0] >= 0):
                with b.when(tirx.And(tirx.EQ(b.thread, 0), total[0] < self.room)):
                    self.chosen.store(b.let(b.x * self.room + total[0], "at"), self.best[0])
                total[0] = total[0] + 1
                self._suppress()
        with b.when(tirx.EQ(b.thread, 0)):
            self.kept.store(b.x, total[0])

    def collect(self) -> None:
        """The second launch: what all classes kept, in order, and the number of them."""
        b = self.b
        before = b.registers("int32", 1, 1, "before")
        before.fill(0)
        with b.serial(b.x, "other") as other:
            before[0] = before[0] + self.kept.load(other)
        first, own = b.let(before[0], "first"), b.hold(self.kept.load(b.x), "own")
        with self._own_boxes(self.room) as i:
            at = b.let(first + i, "at")
            with b.when(tirx.And(i < own, at < self.most)):
                box = b.hold(self.chosen.load(b.let(b.x * self.room + i, "from")))
                for part, value in enumerate((self.image, self.group, box)):
                    self.d.out.store(at * 3 + part, tir.cast(value, "int64"))
        last = tirx.And(tirx.EQ(b.x, self.blocks - 1), tirx.EQ(b.thread, 0))
        with b.when(last):
            self.d.out.store(self.most * 3, tir.cast(first + own, "int64"))

    @contextmanager
    def _own_boxes(self, count: int = 0) -> Iterator[Value]:
        """This thread's boxes, or other numbers."""
        b, count = self.b, count or self.count
        with b.serial(-(-count // _THREADS), "turn") as turn:
            n = b.let(turn * _THREADS + b.thread, "n")
            with b.when(n < count):
                yield n

    def _clear(self) -> None:
        b, size = self.b, 3 * (self.most + 1)
        with b.serial(-(-size // (self.blocks * _THREADS)), "clear") as turn:
            at = b.let((turn * self.blocks + b.x) * _THREADS + b.thread, "at")
            with b.when(at < size):
                self.d.out.store(at, tir.const(0, "int64"))

    def _find(self, scores: Pointer, places: Pointer) -> None:
        """The best box that is left, of equals the first; below 0 if none is."""
        b, m = self.b, self.m
        self.best.fill(-1)
        with self._own_boxes() as n:
            at = b.let(self.row + n, "at")
            with b.when(tirx.NE(self.left.load(at), 0)):
                self._see(self.d.read(self.scores, at), m.vec(n))
        distance = WARP // 2
        while distance:
            own = (m.vec(self.score[0], self.scores.dtype), m.vec(self.best[0]))
            found = [b.hold(across("shuffle_xor", v.expr, tir.const(distance))) for v in own]
            self._see(m.vec(found[0], self.scores.dtype), m.vec(found[1]))
            distance //= 2
        with b.when(tirx.EQ(self.lane, 0)):
            scores.store(self.warp, self.score[0])
            places.store(self.warp, self.best[0])
        b.barrier()
        for i in range(_THREADS // WARP):
            self._see(m.vec(scores.load(i), self.scores.dtype), m.vec(places.load(i)))
        b.barrier()  # the next step writes there

    def _see(self, score: Vec, place: Vec) -> None:
        """Keep a box, if there is one, that goes before the best so far."""
        m, best = self.m, self.m.vec(self.best[0])
        old = m.vec(self.score[0], self.scores.dtype)
        before = (score > old) | ((score == old) & (place < best))
        enters = (place >= 0) & ((best < 0) | before)
        with self.b.when(tirx.NE(m.cast(enters, "int32").expr, 0)):
            self.score[0] = score.expr
            self.best[0] = place.expr

    def _suppress(self) -> None:
        """Remove the box just kept, and all that overlap it too much; each thread its own."""
        b, m = self.b, self.m
        kept = b.let(self.best[0], "kept")
        own = self._corners(kept)
        most = self.d.read(self.overlap, 0)
        with self._own_boxes() as n:
            at = b.let(self.row + n, "at")
            with b.when(tirx.NE(self.left.load(at), 0)):
                other = self._corners(n)
                sides = [m.min(own[2 + i], other[2 + i]) - m.max(own[i], other[i]) for i in (0, 1)]
                areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (own, other)]
                both = sides[0] * sides[1]
                share = both / (areas[0] + areas[1] - both)
                some = (sides[0] > 0) & (sides[1] > 0) & (areas[0] > 0) & (areas[1] > 0)
                gone = (m.where(some, share, 0.0) > most) | (m.vec(n) == m.vec(kept))
                with b.when(tirx.NE(m.cast(gone, "int32").expr, 0)):
                    self.left.store(at, tir.const(0))

    def _corners(self, n: Value) -> Sequence[Vec]:
        """A box's smaller coordinates, then its larger ones."""
        m, at = self.m, self.b.let((self.image * self.count + n) * 4, "box")
        a, b, c, d = (m.cast(self.d.read(self.boxes, at + i), "float32") for i in range(4))
        if self.d.root.int("center"):
            return a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0
        return m.min(a, c), m.min(b, d), m.max(a, c), m.max(b, d)
