"""CumSum and CumProd regions -> a team of threads goes along each line, a warp by shuffles, warps
by way of shared memory; or a thread does, where neighbours in memory belong to different lines.
"""

from __future__ import annotations

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import across
from qcompiler.kernels.gpu.rows.normalize import refused, team_for
from qcompiler.kernels.gpu.rows.team import Team
from qcompiler.kernels.registry import Kernel, Region, kernel


@kernel("CumSum", "CumProd", kind=Gpu)
def gpu_cumulate(region: Region, device: Gpu) -> Kernel | Skip:
    """Of floats in another order than one after the other, but always in the same."""
    if reason := refused(region):
        return reason
    root = region.root
    assert root is not None
    axis = region.known(root.operands[1]).numbers
    if axis is None or root.dtype == "bool":
        return Skip("an axis known at run time only")
    team = team_for(region, device, [int(axis[0])])
    _Scan(team).emit()
    return team.d.kernel()


class _Scan:
    """A kernel while it is written."""

    def __init__(self, team: Team) -> None:
        self.team, self.b, self.m = team, team.b, team.m
        self.root = team.d.root
        self.exclusive, self.back = (bool(self.root.int(k)) for k in ("exclusive", "reverse"))
        self.sign = "+" if self.root.op == "CumSum" else "*"
        self.dtype = "float32" if self.root.dtype in HALF_FLOATS else self.root.dtype
        self.none = self.m.splat(0 if self.sign == "+" else 1, self.dtype)
        self.before = team.d.reading(self.root.operands[0], whole=True)
        self.after = team.d.writing(whole=True)
        self.carry = self.b.registers(self.dtype, 1, 1, "carry")
        self.carry[0] = self.none.expr

    def emit(self) -> None:
        """All elements of the line, a team's number of them at a time."""
        team, b = self.team, self.b
        shared = b.shared(self.dtype, b.threads // WARP, "partial") if team.warps > 1 else None
        with b.serial(team.each, "turn") as turn:
            number = team.element(turn)
            inside = number < team.length
            bounded = b.let(tirx.Min(number, tir.const(team.length - 1)), "bounded")
            element = b.let(team.length - 1 - bounded, "element") if self.back else bounded
            own = b.registers(self.dtype, 1, 1, "own")
            own[0] = self.none.expr
            with b.when(inside):
                own[0] = self.m.cast(team.at(self.before, element), self.dtype).expr
            before, after = self._sums(self.m.vec(own[0]), shared)
            there = inside if team.whole else tirx.And(inside, team.inside)
            with b.when(there):
                team.give(self.after, element, before if self.exclusive else after)

    def _sums(self, own: Vec, shared: Pointer | None) -> tuple[Vec, Vec]:
        """The sum before a thread's element and with it; the carry then has all of this turn."""
        carry = self.m.vec(self.carry[0])
        if self.team.size == 1:
            after = self._join(carry, own)
            self.carry[0] = after.expr
            return carry, after
        b, m = self.b, self.m
        lane = b.let(tirx.floormod(b.thread, WARP), "in_warp")
        own = self._of_warp(own, lane)
        if shared is None:
            base = carry
            self.carry[0] = self._join(carry, self._of(own, tir.const(WARP - 1))).expr
        else:
            base = self._of_warps(own, lane, shared, carry)
        left = self._of(own, tirx.Max(lane - 1, tir.const(0)))
        before = m.where(m.vec(lane > 0), self._join(base, left), base)
        return before, self._join(base, own)

    def _of_warp(self, own: Vec, lane: Value) -> Vec:
        """The sum of a warp's elements up to a thread's own."""
        distance = 1
        while distance < WARP:
            left = self._of(own, tirx.Max(lane - distance, tir.const(0)))
            own = self.m.where(self.m.vec(lane >= distance), self._join(left, own), own)
            distance *= 2
        return own

    def _of_warps(self, own: Vec, lane: Value, shared: Pointer, carry: Vec) -> Vec:
        """The sum before a thread's warp; the carry then has all warps'."""
        team, b, m = self.team, self.b, self.m
        warp = b.let(tirx.floordiv(b.thread, WARP), "warp")
        with b.when(tirx.EQ(lane, WARP - 1)):
            shared.store(warp, own.expr)
        b.barrier()
        first = b.let(team.number * team.warps, "first")
        base = total = carry
        for i in range(team.warps):
            total = self._join(total, m.vec(shared.load(first + i)))
            base = m.where(m.vec(first + i < warp), total, base)
        b.barrier()  # the next turn writes there
        self.carry[0] = total.expr
        return base

    def _of(self, value: Vec, lane: Value) -> Vec:
        """What another thread of the warp has."""
        return self.m.vec(across("shuffle", value.expr, lane))

    def _join(self, a: Vec, b: Vec) -> Vec:
        return self.m.binary(self.sign, a, b)
