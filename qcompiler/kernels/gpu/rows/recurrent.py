"""`recurrent` regions (the loop of RNN, GRU and LSTM) -> kernels that make steps of some sequences.

whole   a block makes all steps of its sequences: their hidden state stays in shared memory
steps   a launch for each step (two where a GRU resets its state before the product), whose blocks
        share the hidden units

    the hidden state before the step, of all sequences of the block, goes to shared memory
    each warp sums some of state * weights for 32 units, for all gates and sequences; neighbours
        among its threads read neighbouring weights, once for all sequences
    warps add what they summed by way of shared memory; then one of them for each sequence applies
        the activations and stores the states after the step
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.ir import Node, numpy_dtype
from qcompiler.kernels.cpu.code import polynomials, tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import After, Candidate, Kernel, Region, candidates
from qcompiler.ops.recurrent import GATES, activations, directions, states_of

_UNROLLED = 4
"""Values of the state whose weights are loaded at once."""
_SHARED_BYTES = 48 << 10
_MOST_WARPS = 32
_CACHE_BYTES = 64.0
"""Of weights that a multiprocessor gets in a cycle."""
_BARRIERS = 1200.0
"""Cycles of a step that are not spent on products."""


@dataclass(frozen=True)
class Cut:
    """A block: `sequences`, `tiles` of 32 units, warps that share a sum; whether it makes all steps
    or one.
    """

    whole: int
    sequences: int
    tiles: int
    ways: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self.tiles * self.ways


@candidates("recurrent", kind=Gpu)
def gpu_recurrent(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """float32 or float64; any activations, both directions, sequences of any lengths."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    if region.nodes != (root,):
        return Skip("elementwise work around it")
    if root.dtype not in ("float32", "float64"):
        return Skip(f"sums of {root.dtype}")
    if 0 in root.type.dims:
        return Skip("nothing to read")
    s = _Shape.of(root)
    return [
        Candidate(cut, _seconds(s, cut, device), partial(_made, region, device, s, cut))
        for cut in _cuts(s)
    ]


@dataclass(frozen=True)
class _Shape:
    """A layer's sizes."""

    root: Node
    steps: int
    batch: int
    size: int
    gates: int
    directions: int
    item: int

    @staticmethod
    def of(root: Node) -> _Shape:
        """A layer -> its sizes."""
        steps, batch, _ = root.operands[0].type.dims
        item = numpy_dtype(root.dtype).itemsize
        size, gates = root.type.dims[-1], GATES[root.str("kind")]
        return _Shape(root, steps, batch, size, gates, directions(root), item)

    @property
    def twice(self) -> bool:
        """Whether a step has two products, as that of a GRU that resets its state before one."""
        return self.root.str("kind") == "GRU" and not self.root.int("linear_before_reset")

    @property
    def tiles(self) -> int:
        """Tiles of 32 units."""
        return -(-self.size // WARP)

    def shared_bytes(self, cut: Cut) -> int:
        """The hidden state, and what warps sum."""
        sums = cut.ways * cut.tiles * self.gates * WARP
        return (self.size + sums) * cut.sequences * self.item


def _cuts(s: _Shape) -> Iterator[Cut]:
    for sequences in (1, 2, 4, 8):
        if sequences >= 2 * s.batch:
            return
        cuts = [Cut(0, sequences, 1, 8)]
        if s.tiles <= 4:
            cuts.append(Cut(1, sequences, s.tiles, _MOST_WARPS // max(4, s.tiles)))
        yield from (c for c in cuts if s.shared_bytes(c) <= _SHARED_BYTES and sequences <= c.ways)


def _seconds(s: _Shape, cut: Cut, device: Gpu) -> float:
    """Steps one after the other: weights come from the cache, products are issued."""
    phases = 2 if s.twice else 1
    groups = -(-s.batch // cut.sequences) * s.directions
    blocks = groups * -(-s.tiles // cut.tiles)
    columns = cut.tiles * WARP * s.gates
    loaded = columns * s.size * s.item / _CACHE_BYTES
    issued = columns * s.size * (1 + cut.sequences) / device.macs_per_cycle["f32"]
    step = _BARRIERS * phases + max(loaded, issued)
    waves = -(-blocks // device.multiprocessors)
    launches = 2 if cut.whole else s.steps * phases
    return s.steps * waves * step / device.hz + 1e-9 * device.launch_ns * launches


def _made(region: Region, device: Gpu, s: _Shape, cut: Cut) -> Kernel:
    """The states before the first step, then the steps."""
    first = _Layer(region, device, s, cut)
    first.begin()
    scratch = 3 * s.directions * s.batch * s.size * s.item if s.twice else 0
    macs = s.steps * s.batch * s.directions * s.gates * s.size**2
    if cut.whole:
        with first.b.serial(s.steps, "step") as t:
            for phase in first.phases():
                first.step(t, phase)
                first.b.barrier()
        return first.d.kernel(scratch_bytes=scratch, macs=macs)
    after = tuple(_one_step(region, device, s, cut, i) for i in range(1 + s.twice))
    return first.d.kernel(scratch_bytes=scratch, macs=macs, after=after, rounds=s.steps)


def _one_step(region: Region, device: Gpu, s: _Shape, cut: Cut, phase: int) -> After:
    layer = _Layer(region, device, s, cut)
    layer.step(layer.b.number("step"), layer.phases()[phase])
    return layer.d.after()


Finish = Callable[["_Unit", Value, Sequence[Vec]], None]
"""(unit, time, sums of its gates): stores the states after the step."""


@dataclass(frozen=True)
class _Phase:
    """Gates that are summed together, and what uses their sums; whether the state is a reset one,
    and whether a step ends here.
    """

    gates: range
    finish: Finish
    reset: bool = False
    last: bool = True


@dataclass(frozen=True)
class _Unit:
    """A hidden unit of a sequence, in a direction that is known."""

    direction: int
    row: Value
    unit: Value


class _Layer:
    """A kernel while it is written."""

    def __init__(self, region: Region, device: Gpu, s: _Shape, cut: Cut) -> None:
        self.s, self.cut, self.root = s, cut, s.root
        kind = f"{s.root.str('kind').lower()}_{s.steps}x{s.batch}x{s.size}"
        self.d = d = GridDraft(kind, region, device, cut.threads)
        self.b, self.m, b = d.b, d.m, d.b
        self.kept = d.scratch(s.root.dtype) if s.twice else d.out
        self.sums, self.weights = s.root.operands[:2]
        given = [*s.root.inputs[2:], *[None] * (7 - len(s.root.inputs))]
        self.bias, self.lengths, *self.initial, self.peepholes = given
        groups = -(-s.batch // cut.sequences)
        b.blocks(groups * s.directions, -(-s.tiles // cut.tiles))
        self.direction = b.let(tirx.floordiv(b.x, groups), "direction")
        self.first = b.let(tirx.floormod(b.x, groups) * cut.sequences, "first")
        self.lane = b.let(tirx.floormod(b.thread, WARP), "lane")
        warp = b.let(tirx.floordiv(b.thread, WARP), "warp")
        self.way = b.let(tirx.floormod(warp, cut.ways), "way")
        self.tile = b.let(tirx.floordiv(warp, cut.ways), "tile")
        self.unit = b.let((b.y * cut.tiles + self.tile) * WARP + self.lane, "unit")
        self.state = b.shared(s.root.dtype, cut.sequences * s.size, "state")
        parts = cut.ways * cut.tiles * cut.sequences * s.gates * WARP
        self.parts = b.shared(s.root.dtype, parts, "parts")

    def phases(self) -> list[_Phase]:
        """Those of a step."""
        if self.s.twice:
            return [
                _Phase(range(2), self._reset, last=False),
                _Phase(range(2, 3), self._candidate, reset=True),
            ]
        kinds = {"RNN": self._rnn, "GRU": self._gru, "LSTM": self._lstm}
        return [_Phase(range(self.s.gates), kinds[self.root.str("kind")])]

    def begin(self) -> None:
        """Store the states before the first step where the last ones will be."""
        for unit in self._units():
            for i, state in enumerate(self.initial[: states_of(self.root)]):
                self._put(tir.const(self.s.steps + i), unit, self._before(state, unit))

    def step(self, t: Value, phase: _Phase) -> None:
        """Step number t."""
        self._bring(t, phase)
        self.b.barrier()
        self._multiply(phase)
        self.b.barrier()
        for unit in self._units():
            self._finish(unit, t, phase)

    # -- the block's parts

    def _units(self) -> Iterator[_Unit]:
        """A thread's unit, in the direction of the block: a warp of each tile for each sequence."""
        b, s = self.b, self.s
        row = b.let(self.first + self.way, "row")
        inside = tirx.And(
            tirx.And(self.way < self.cut.sequences, row < s.batch), self.unit < s.size
        )
        for direction in range(s.directions):
            alone = s.directions == 1
            mine = inside if alone else tirx.And(inside, tirx.EQ(self.direction, direction))
            with b.when(mine):
                yield _Unit(direction, row, self.unit)

    def _bring(self, t: Value, phase: _Phase) -> None:
        """The hidden state of all sequences of the block before the step, to shared memory."""
        b, s = self.b, self.s
        count = self.cut.sequences * s.size
        with b.serial(-(-count // b.threads), "turn") as turn:
            i = b.let(turn * b.threads + b.thread, "i")
            with b.when(i < count):
                k = b.let(tirx.floormod(i, s.size), "k")
                asked = self.first + tirx.floordiv(i, s.size)
                row = b.let(tirx.Min(asked, tir.const(s.batch - 1)), "row")
                at = b.let((self.direction * s.batch + row) * s.size + k, "at")
                self.state.store(i, self._state(t, phase, row, at))

    def _state(self, t: Value, phase: _Phase, row: Value, at: Value) -> Value:
        """A value of the hidden state before step t: a number's among those of a time."""
        b, s = self.b, self.s
        each = s.directions * s.batch * s.size
        if phase.reset:
            return self.kept.load(at + each)
        found = b.registers(self.root.dtype, 1, 1, "found")
        with b.when(tirx.EQ(t, 0)):
            start = self.initial[0]
            zero = tir.const(0, self.root.dtype)
            found[0] = zero if start is None else self.d.read(start, at).expr
        with b.otherwise():
            end = self._end(row)
            bounded = b.let(tirx.Min(t, tirx.Max(end, tir.const(1))), "bounded")
            before = tirx.Select(self._back(), end - bounded, bounded - 1)
            there = b.let(tirx.Max(before, tir.const(0)), "before")
            found[0] = self.d.out.load(b.let(there * each + at, "from"))
        return b.hold(found[0])

    def _multiply(self, phase: _Phase) -> None:
        """What this warp sums, to shared memory."""
        b, s, cut = self.b, self.s, self.cut
        unit = b.let(tirx.Min(self.unit, tir.const(s.size - 1)), "bounded")
        count = len(phase.gates)
        sums = b.registers(self.root.dtype, 1, count * cut.sequences, "sum")
        sums.fill(0)

        def add(k: Value) -> None:
            row = b.let((self.direction * s.size + k) * (s.gates * s.size) + unit, "row")
            pointer = self.d.pointers[self.weights]
            held = [b.hold(pointer.load(row + gate * s.size)) for gate in phase.gates]
            for n in range(cut.sequences):
                state = b.hold(self.state.load(k + n * s.size))
                for g, weight in enumerate(held):
                    at = n * count + g
                    sums[at] = tir.fma(weight, state, sums[at])

        whole = s.size // (cut.ways * _UNROLLED)
        if whole:
            with b.serial(whole, "turn") as turn:
                for i in range(_UNROLLED):
                    add(b.let((turn * _UNROLLED + i) * cut.ways + self.way, "k"))
        for at in range(whole * _UNROLLED * cut.ways, s.size, cut.ways):
            k = b.let(self.way + at, "k")
            with b.when(k < s.size):
                add(k)
        for i in range(sums.count):
            self.parts.store(self._part(self.way, tir.const(i)), sums[i])

    def _part(self, way: Value, number: Value) -> Value:
        """Where sum `number` that a warp makes for this thread's unit lies."""
        each = self.cut.sequences * self.s.gates
        return self.b.let(((way * self.cut.tiles + self.tile) * each + number) * WARP + self.lane)

    def _finish(self, unit: _Unit, t: Value, phase: _Phase) -> None:
        """The sums of a unit, and the states after the step; zeros behind the sequence's end."""
        b, count = self.b, len(phase.gates)
        end = self._end(unit.row)
        back = unit.direction == 1 or self.root.str("direction") == "reverse"
        live = t < end if self.lengths is not None else None
        time = b.let(end - 1 - t, "time") if back else t

        def made() -> None:
            sums = []
            for g in range(count):
                number = self.way * count + g
                total = self.m.vec(self.parts.load(self._part(tir.const(0), number)))
                for way in range(1, self.cut.ways):
                    part = self._part(tir.const(way), number)
                    total = total + self.m.vec(self.parts.load(part))
                sums.append(total)
            phase.finish(unit, time, sums)
            if phase.last:
                with b.when(tirx.EQ(t, end - 1)):
                    self._put(tir.const(self.s.steps), unit, self._get(time, unit))

        if live is None:
            made()
            return
        with b.when(live):
            made()
        if phase.last:
            with b.otherwise():
                self._put(t, unit, self.m.splat(0, self.root.dtype))

    # -- memory

    def _end(self, row: Value) -> Value:
        """The steps of a sequence."""
        if self.lengths is None:
            return tir.const(self.s.steps)
        length = self.d.pointers[self.lengths].load(row)
        return self.b.hold(tir.bounded(length, 0, self.s.steps), "end")

    def _back(self) -> Value:
        """Whether the direction of the block begins at the end."""
        if self.s.directions == 2:
            return tirx.EQ(self.direction, 1)
        return tir.const(self.root.str("direction") == "reverse", "bool")

    def _before(self, state: Node | None, unit: _Unit) -> Vec:
        """An initial state, or zero."""
        if state is None:
            return self.m.splat(0, self.root.dtype)
        return self._of(state, unit, self.s.batch)

    def _of(self, node: Node, unit: _Unit, rows: int, gate: int = 0, of: int = 1) -> Vec:
        """node[D, rows, of * H] at the unit's sequence (or the only row) and a gate."""
        row: Value = unit.direction * rows
        row = row + unit.row if rows > 1 else row
        return self.d.read(node, self.b.let((row * of + gate) * self.s.size + unit.unit, "at"))

    def _input(self, time: Value, gate: int, unit: _Unit) -> Vec:
        """The input's part of a gate."""
        s = self.s
        row = (time * s.batch + unit.row) * s.directions + unit.direction
        at = (row * s.gates + gate) * s.size + unit.unit
        return self.d.read(self.sums, self.b.let(at, "at"))

    def _place(self, time: Value, unit: _Unit) -> Value:
        s = self.s
        row = (time * s.directions + unit.direction) * s.batch + unit.row
        return self.b.let(row * s.size + unit.unit, "at")

    def _get(self, time: Value, unit: _Unit) -> Vec:
        return self.m.vec(self.d.out.load(self._place(time, unit)))

    def _put(self, time: Value, unit: _Unit, value: Vec) -> None:
        self.d.out.store(self._place(time, unit), value.expr)

    # -- activations of the sums

    def _apply(self, unit: _Unit, which: int, x: Vec) -> Vec:
        """An activation of the direction."""
        function = activations(self.root)[unit.direction][which]
        if function.name == "sigmoid" and function.clip is None and self.root.dtype == "float32":
            return polynomials.sigmoid(self.m, x)
        made = function(self.m, x)
        assert isinstance(made, Vec)
        return made

    def _old(self, unit: _Unit) -> Vec:
        """The unit's hidden state before the step."""
        at = self.b.let(self.way * self.s.size + unit.unit, "at")
        return self.m.vec(self.state.load(at))

    def _rnn(self, unit: _Unit, time: Value, sums: Sequence[Vec]) -> None:
        self._put(time, unit, self._apply(unit, 0, self._input(time, 0, unit) + sums[0]))

    def _lstm(self, unit: _Unit, time: Value, sums: Sequence[Vec]) -> None:
        enter, leave, keep, new = (self._input(time, g, unit) + s for g, s in enumerate(sums))
        last = tir.const(self.s.steps + 1)
        cell = self._get(last, unit)
        enter = self._apply(unit, 0, self._peep(enter, 0, cell, unit))
        keep = self._peep(keep, 2, cell, unit)
        keep = 1.0 - enter if self.root.int("input_forget") else self._apply(unit, 0, keep)
        cell = keep * cell + enter * self._apply(unit, 1, new)
        self._put(last, unit, cell)
        leave = self._apply(unit, 0, self._peep(leave, 1, cell, unit))
        self._put(time, unit, leave * self._apply(unit, 2, cell))

    def _peep(self, sums: Vec, gate: int, cell: Vec, unit: _Unit) -> Vec:
        """A gate's sums with its peephole to the cell."""
        p = self.peepholes
        return sums if p is None else sums + self._of(p, unit, 1, gate, 3) * cell

    def _gru(self, unit: _Unit, time: Value, sums: Sequence[Vec]) -> None:
        update = self._apply(unit, 0, self._input(time, 0, unit) + sums[0])
        reset = self._apply(unit, 0, self._input(time, 1, unit) + sums[1])
        behind = sums[2] if self.bias is None else sums[2] + self._of(self.bias, unit, 1)
        new = self._apply(unit, 1, self._input(time, 2, unit) + reset * behind)
        self._put(time, unit, (1.0 - update) * new + update * self._old(unit))

    def _reset(self, unit: _Unit, time: Value, sums: Sequence[Vec]) -> None:
        """The first phase of a GRU that resets the state before its product; what it keeps: the
        update gate, the reset state, and what stays of the old one.
        """
        update = self._apply(unit, 0, self._input(time, 0, unit) + sums[0])
        reset = self._apply(unit, 0, self._input(time, 1, unit) + sums[1])
        old = self._old(unit)
        for which, value in enumerate((update, reset * old, update * old)):
            self.kept.store(self._place(tir.const(which), unit), value.expr)

    def _candidate(self, unit: _Unit, time: Value, sums: Sequence[Vec]) -> None:
        """The second phase."""
        new = self._input(time, 2, unit) + sums[0]
        if self.bias is not None:
            new = new + self._of(self.bias, unit, 1)
        update, stays = (
            self.m.vec(self.kept.load(self._place(tir.const(which), unit))) for which in (0, 2)
        )
        self._put(time, unit, (1.0 - update) * self._apply(unit, 1, new) + stays)
