"""ArgMax, ArgMin and Hardmax regions -> a team of threads for each line, each of which keeps the
best of its elements and where that was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.rows.normalize import refused, team_for
from qcompiler.kernels.gpu.rows.team import Team
from qcompiler.kernels.registry import Kernel, Region, kernel

Beats = Callable[[Vec, Vec], Vec]
"""Where one value goes before another."""


@kernel("ArgMax", "ArgMin", kind=Gpu)
def gpu_best_index(region: Region, device: Gpu) -> Kernel | Skip:
    """The first (or last) index of the largest (or smallest) value along one axis; NaN is the
    extreme.
    """
    if reason := refused(region):
        return reason
    root = region.root
    assert root is not None
    team = team_for(region, device, [root.int("axis")])
    m, largest = team.m, root.op == "ArgMax"

    def beats(a: Vec, b: Vec) -> Vec:
        before = a > b if largest else a < b
        return before | (m.is_nan(a) & m.is_number(b)) if a.is_float else before

    found = _Best(team, beats, last=bool(root.int("select_last_index"))).found()
    team.put(found)
    return team.d.kernel()


@kernel("Hardmax", kind=Gpu)
def gpu_hardmax(region: Region, device: Gpu) -> Kernel | Skip:
    """1 at the first largest value, 0 elsewhere."""
    if reason := refused(region):
        return reason
    root = region.root
    assert root is not None
    team = team_for(region, device, [root.int("axis")])
    m, f = team.m, team.d.writing(whole=True)
    found = _Best(team, lambda a, b: a.precedes(b, largest=True)).found()
    one, zero = (m.splat(v, root.dtype) for v in (1, 0))
    with team.there(), team.elements() as element:
        team.give(f, element, m.where(m.vec(element) == found, one, zero))
    return team.d.kernel()


@dataclass(frozen=True)
class _Best:
    """The best element of a team's line; of equals the first, or the last."""

    team: Team
    beats: Beats
    last: bool = False

    def found(self) -> Vec:
        """Where it is, in all threads of the line."""
        team, b, m = self.team, self.team.b, self.team.m
        x = team.d.root.operands[0]
        f = team.d.reading(x, whole=True)
        dtype = "float32" if x.dtype in HALF_FLOATS else "uint8" if x.dtype == "bool" else x.dtype
        self_value = b.registers(dtype, 1, 1, "best")
        self_place = b.registers("int32", 1, 1, "place")
        self_value.fill(0)
        self_place.fill(-1)

        def see(value: Vec, place: Vec) -> None:
            best, where = m.vec(self_value[0], dtype), m.vec(self_place[0])
            with b.when(self._enters(value, place, best, where)):
                self_value[0] = value.expr
                self_place[0] = place.expr

        with team.elements() as element:
            see(m.cast(team.at(f, element), dtype), m.vec(element))
        if team.size == 1:
            return m.vec(self_place[0])
        distance = WARP // 2
        while distance:
            own = m.vec(self_value[0], dtype), m.vec(self_place[0])
            value, place = (team.other(v, distance) for v in own)
            see(value, place)
            distance //= 2
        if team.warps > 1:
            own = m.vec(self_value[0], dtype), m.vec(self_place[0])
            values, places = (team.of_warps(v) for v in own)
            for value, place in zip(values, places, strict=True):
                see(value, place)
        return m.vec(self_place[0])

    def _enters(self, value: Vec, place: Vec, best: Vec, where: Vec) -> tir.Value:
        """Whether an element goes before the best so far; a place below 0 is none."""
        before = place > where if self.last else place < where
        equal = ~self.beats(value, best) & ~self.beats(best, value)
        better = self.beats(value, best) | (equal & before)
        whole = (place >= 0) & ((where < 0) | better)
        return tirx.NE(self.team.m.cast(whole, "int32").expr, tir.const(0))
