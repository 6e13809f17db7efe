"""`recurrent` regions (the loop of RNN, GRU and LSTM) -> TIR: all time steps in one kernel.

for each task (a share of the directions and of groups of sequences)
  copy the initial states to where the last states will be
  for each time step
    for each block of hidden units                          (a few vectors of them)
      sums = state * weights, of all gates at once, in registers
      states after the step = activations of the sums and of the input's part of the gates
    copy the hidden state to where the last one will be     (the next step reads it there)

If there are fewer sequences than threads, threads share the blocks of a step instead, and wait at a
barrier after each step and each copy.

Weights are packed at compile time: for a vector of units, row by row of the state, the vectors of
all gates in sequence, so that they stream through the caches. The sequences of a group share every
loaded vector. A GRU that resets the state before its product goes through the blocks twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array, Node, numpy_dtype
from qcompiler.kernels.cpu.code import polynomials, tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import load, store
from qcompiler.kernels.cpu.code.loops import part, tasks
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.ops.recurrent import GATES, Activation, activations, directions, states_of

_MACS_PER_NS = 8.0  # of the reference core
_GROUP = 4
"""Sequences that share the loaded weights."""
_UNROLLED = 4
"""Values of the state in an iteration of the innermost loop."""
_LAUNCHES = 1.5
"""A step of less work, in `launch_ns`, is not worth two barriers and reading another core's state.
"""

Share = tuple[Value, int]
"""(this task, number of tasks)."""
ALL: Share = (tir.const(0), 1)


@kernel("recurrent")
def recurrent(region: Region, device: Cpu) -> Kernel | Skip:
    """float32 or float64; any activations, both directions, sequences of any lengths."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    if region.nodes != (root,):
        return Skip("elementwise work around it")
    if root.dtype not in ("float32", "float64"):
        return Skip(f"sums of {root.dtype}")
    if 0 in root.type.dims:
        return Skip("nothing to read")
    return _Layer(region, device).kernel()


@dataclass(frozen=True)
class _Group:
    """Sequences from `row` on in one direction, whose units are shared among the tasks `of` it;
    `held` is the task's scratch.
    """

    direction: int
    functions: Sequence[Activation]
    row: Value
    held: Pointer
    of: Share = ALL


@dataclass(frozen=True)
class _Units:
    """A vector of hidden units of one sequence: the first unit, the number of valid lanes."""

    group: _Group
    member: int
    first: Value
    count: int


Sums = list[Vec]
"""One for each gate."""
Finish = Callable[[Value, _Units, Sums], None]
"""(time step, units, their sums): stores the states after the step."""
Phase = tuple[range, Finish]


class _Layer:
    """One kernel while it is written."""

    def __init__(self, region: Region, device: Cpu) -> None:
        self.d = d = Draft("recurrent", region, device)
        self.b, self.m, self.root = d.b, d.m, d.root
        self.kind, self.dtype = self.root.str("kind"), self.root.dtype
        self.sums, self.weights = self.root.operands[:2]
        given = [*self.root.inputs[2:], *[None] * (7 - len(self.root.inputs))]
        self.bias, self.lengths, *self.initial, self.peepholes = given
        self.steps, self.batch, _ = self.sums.type.dims
        self.directions, self.size = directions(self.root), self.root.type.dims[-1]
        self.gates = GATES[self.kind]
        self.lanes = device.isa.lanes(numpy_dtype(self.dtype).itemsize)
        self.blocks = -(-self.size // self.lanes)
        self.twice = self.kind == "GRU" and not self.root.int("linear_before_reset")
        most = min(_GROUP, (device.isa.registers - 4) // self.gates)
        most = 1 if self.lengths is not None else most
        self.group = next(g for g in range(most, 0, -1) if self.batch % g == 0)

    def kernel(self) -> Kernel:
        """Emit the whole kernel."""
        d, b = self.d, self.b
        groups = self.batch // self.group
        macs = self.steps * self.batch * self.directions * self.gates * self.size**2
        count = tasks(
            d.device, d.device.core.product_ns(macs / _MACS_PER_NS), groups * self.directions
        )
        shared = self._sharers(groups * self.directions)
        if shared > count:
            self._together(shared, groups)
            return self._made(shared, 0, macs)
        kept = 2 * self.group * self.blocks * self.lanes if self.twice else 0
        scratch = d.scratch(self.dtype) if kept else d.out
        with b.parallel(count) as task:
            held = scratch + b.let(task * kept, "mine")
            first, iterations = part(b, task, count, groups * self.directions)
            with b.serial(iterations, "group", first) as i:
                row = b.let(tirx.floormod(i, groups) * self.group, "row")
                for direction, functions in enumerate(activations(self.root)):
                    with b.when(tirx.EQ(tirx.floordiv(i, groups), direction)):
                        self._sequences(_Group(direction, functions, row, held))
        return self._made(count, count * kept * tir.bits(self.dtype) // 8, macs)

    def _made(self, count: int, scratch_bytes: int, macs: int) -> Kernel:
        d = self.d
        at = d.region.inputs.index(self.weights)
        pack = {at: self._pack} if self.weights.is_constant else {}
        return d.kernel(tasks=count, scratch_bytes=scratch_bytes, pack=pack, macs=macs)

    def _sharers(self, sequences: int) -> int:
        """Number of tasks that should share each step of `sequences` (groups of) sequences."""
        if self.twice or self.lengths is not None:
            return 1  # more barriers in a step; sequences of different lengths
        core = self.d.device.core
        macs = sequences * self.group * self.gates * self.size**2
        worth = core.product_ns(macs / _MACS_PER_NS) > _LAUNCHES * core.launch_ns
        count = self.d.device.threads if worth else 1
        return min(count, self.size // self.lanes // self._several(self.gates))

    def _pack(self, r: Array) -> Array:
        """[D, H, gates * H] -> [D, blocks, H, gates, lanes]."""
        apart = r.reshape(self.directions, self.size, self.gates, self.size)
        beyond = self.blocks * self.lanes - self.size
        padded = np.pad(apart, ((0, 0), (0, 0), (0, 0), (0, beyond)))
        blocks = padded.reshape(*apart.shape[:3], self.blocks, self.lanes)
        return np.ascontiguousarray(blocks.transpose(0, 3, 1, 2, 4))

    # -- loops

    def _together(self, count: int, groups: int) -> None:
        """All sequences step by step; tasks share the units of each step."""
        b = self.b
        starts = [(i, s) for i, s in enumerate(self.initial[: states_of(self.root)])]
        with b.parallel(count) as task:
            for i, state in starts:
                body = partial(self._begin, state, tir.const(self.steps + i))
                self._each(groups, (task, count), partial(self._rows, body=body))
        with b.serial(self.steps, "step") as t:
            with b.parallel(count) as task:
                self._each(groups, (task, count), partial(self._stepped, t))
            with b.parallel(count) as task:
                self._each(groups, (task, count), partial(self._copied, t))

    def _stepped(self, t: Value, group: _Group) -> None:
        self._step(group, self._time(group, t, self.steps))

    def _copied(self, t: Value, group: _Group) -> None:
        self._rows(group, partial(self._copy, self._time(group, t, self.steps)))

    def _each(self, groups: int, of: Share, body: Callable[[_Group], None]) -> None:
        """body(group) for every group of sequences and direction."""
        with self.b.serial(groups, "group") as i:
            row = self.b.let(i * self.group, "row")
            for direction, functions in enumerate(activations(self.root)):
                body(_Group(direction, functions, row, self.d.out, of))

    def _time(self, group: _Group, t: Value, end: Value) -> Value:
        """The time of a step; the reverse direction begins with the last."""
        back = group.direction == 1 or self.root.str("direction") == "reverse"
        return self.b.let(end - 1 - t, "time") if back else t

    def _sequences(self, group: _Group) -> None:
        """A group from its first step to its last."""
        b, steps = self.b, self.steps
        for i, state in enumerate(self.initial[: states_of(self.root)]):
            self._rows(group, partial(self._begin, state, tir.const(steps + i)))
        end: Value = steps
        if self.lengths is not None:
            length = self.d.pointers[self.lengths].load(group.row)
            end = b.let(tir.bounded(length, 0, steps), "end")
        with b.serial(end, "step") as t:
            time = self._time(group, t, end)
            self._step(group, time)
            self._rows(group, partial(self._copy, time))
        if self.lengths is not None:
            with b.serial(steps - end, "beyond", end) as time:
                self._rows(group, partial(self._begin, None, time))

    def _rows(self, group: _Group, body: Callable[[_Units], None]) -> None:
        """Call body(units) along the rows of the group."""
        full, rest = divmod(self.size, self.lanes)
        first, iterations = part(self.b, *group.of, full)
        for member in range(self.group):
            if full:
                with self.b.serial(iterations, "v", first) as i:
                    body(_Units(group, member, self.b.let(i * self.lanes), self.lanes))
            if rest:
                with self._last(group.of):
                    body(_Units(group, member, tir.const(full * self.lanes), rest))

    def _last(self, of: Share) -> AbstractContextManager[None]:
        """Statements that only the last task runs."""
        task, count = of
        return self.b.when(tirx.EQ(task, count - 1)) if count > 1 else nullcontext()

    def _several(self, gates: int) -> int:
        """Number of vectors of units whose sums are computed at once."""
        return max(1, self.d.device.core.chains // (gates * self.group))

    def _begin(self, state: Node | None, time: Value, units: _Units) -> None:
        """Store an initial state, or zeros, to the output's row."""
        value = self.m.splat(0, self.dtype, self.lanes)
        if state is not None:
            value = self._operand(state, self.batch, units)
        self._put(time, units, value)

    def _copy(self, time: Value, units: _Units) -> None:
        """Copy the new hidden state to where the next step reads it."""
        self._put(tir.const(self.steps), units, self._get(time, units))

    def _step(self, group: _Group, time: Value) -> None:
        """All units of the group, or a task's share of them, a few vectors at once."""
        full, rest = divmod(self.size, self.lanes)
        for phase in self._phases():
            several = self._several(len(phase[0]))
            whole = full // several
            if whole:
                first, iterations = part(self.b, *group.of, whole)
                with self.b.serial(iterations, "block", first) as i:
                    at = self.b.let(i * (several * self.lanes), "unit")
                    block = [(at + n * self.lanes, self.lanes) for n in range(several)]
                    self._block(group, time, phase, block)
            left = [(tir.const(n * self.lanes), self.lanes) for n in range(whole * several, full)]
            left += [(tir.const(full * self.lanes), rest)] * (rest > 0)
            if left:
                with self._last(group.of):
                    self._block(group, time, phase, left)

    def _block(
        self, group: _Group, time: Value, phase: Phase, vectors: Sequence[tuple[Value, int]]
    ) -> None:
        """Vectors of units (first unit, number of valid lanes) of all sequences of the group."""
        gates, finish = phase
        units = [_Units(group, m, first, n) for first, n in vectors for m in range(self.group)]
        for u, sums in zip(units, self._products(gates, units), strict=True):
            finish(time, u, sums)

    def _phases(self) -> list[Phase]:
        """The gates that are summed together, and the function that uses their sums."""
        if self.twice:
            return [(range(2), self._reset), (range(2, 3), self._candidate)]
        finish = {"RNN": self._rnn, "GRU": self._gru, "LSTM": self._lstm}[self.kind]
        return [(range(self.gates), finish)]

    def _products(self, gates: range, units: Sequence[_Units]) -> list[Sums]:
        """State times weights of some gates, for each vector of units."""
        b, size = self.b, len(gates)
        total = b.registers(self.dtype, self.lanes, size * len(units), "sum")
        total.fill(0)

        def multiply(k: Value) -> None:
            state = [b.let(self._state(k, gates, u), "h") for u in units[: self.group]]
            for v in range(0, len(units), self.group):
                for g, gate in enumerate(gates):
                    weight = b.let(self._weight(k, gate, units[v]), "w")
                    for m in range(self.group):
                        slot = (v + m) * size + g
                        total[slot] = tir.fma(weight, state[m], total[slot])

        whole = self.size // _UNROLLED
        with b.serial(whole, "k") as i:
            for n in range(_UNROLLED if whole else 0):
                multiply(b.let(i * _UNROLLED + n))
        for k in range(whole * _UNROLLED, self.size):
            multiply(tir.const(k))
        vectors = [self.m.vec(total[n]) for n in range(total.count)]
        return [vectors[n : n + size] for n in range(0, len(vectors), size)]

    # -- memory

    def _state(self, k: Value, gates: range, units: _Units) -> Value:
        """One value of the hidden state in every lane; of the reset one for a GRU's candidate."""
        one = replace(units, first=k, count=1)
        if self.twice and gates.start == 2:
            value = units.group.held.load(self._kept(1, one))
        else:
            value = self.d.out.load(self._at(tir.const(self.steps), one))
        return tir.broadcast(value, self.lanes)

    def _weight(self, k: Value, gate: int, units: _Units) -> Value:
        """A vector of weights; those known only at run time are not packed."""
        pointer = self.d.pointers[self.weights]
        if self.weights.is_constant:
            row = (units.first + units.group.direction * self.blocks * self.lanes) * self.size
            return pointer.load((row + k * self.lanes) * self.gates + gate * self.lanes, self.lanes)
        row = ((units.group.direction * self.size + k) * self.gates + gate) * self.size
        return pointer.load_first(units.count, row + units.first, self.lanes)

    def _at(self, time: Value, units: _Units) -> Value:
        """The offset of units in the output."""
        row = (
            (time * self.directions + units.group.direction) * self.batch
            + units.group.row
            + units.member
        )
        return self.b.let(row * self.size + units.first)

    def _get(self, time: Value, units: _Units) -> Vec:
        out = self.d.out
        return load(self.m, out, self.dtype, self._at(time, units), self.lanes, units.count)

    def _put(self, time: Value, units: _Units, value: Vec) -> None:
        value = self.m.widen(value, self.lanes)
        store(self.m, self.d.out, self._at(time, units), value, units.count)

    def _operand(self, node: Node, rows: int, units: _Units, gate: int = 0, of: int = 1) -> Vec:
        """node[D, rows, of * H] at the row of a sequence (or the only row) and a gate's units."""
        row: Value = units.group.direction * rows
        row = row + units.group.row + units.member if rows > 1 else row
        at = (row * of + gate) * self.size + units.first
        return self.d.read(node, self.b.let(at), self.lanes, units.count)

    def _input(self, time: Value, gate: int, units: _Units) -> Vec:
        """The input's part of a gate."""
        row = (
            time * self.batch + units.group.row + units.member
        ) * self.directions + units.group.direction
        at = (row * self.gates + gate) * self.size + units.first
        return self.d.read(self.sums, self.b.let(at), self.lanes, units.count)

    def _kept(self, which: int, units: _Units) -> Value:
        """Where the update gate (0) or the reset state (1) of units is kept between the phases."""
        row = which * self.group + units.member
        return self.b.let(row * (self.blocks * self.lanes) + units.first)

    # -- activations of the sums

    def _apply(self, units: _Units, which: int, x: Vec) -> Vec:
        """An activation of this direction."""
        function = units.group.functions[which]
        if function.name == "sigmoid" and function.clip is None and self.dtype == "float32":
            return polynomials.sigmoid(self.m, x)
        made = function(self.m, x)
        assert isinstance(made, Vec)
        return made

    def _rnn(self, time: Value, units: _Units, sums: Sums) -> None:
        self._put(time, units, self._apply(units, 0, self._input(time, 0, units) + sums[0]))

    def _lstm(self, time: Value, units: _Units, sums: Sums) -> None:
        enter, leave, keep, new = (self._input(time, g, units) + s for g, s in enumerate(sums))
        last = tir.const(self.steps + 1)
        cell = self._get(last, units)

        enter = self._apply(units, 0, self._peep(enter, 0, cell, units))
        keep = self._peep(keep, 2, cell, units)
        keep = 1.0 - enter if self.root.int("input_forget") else self._apply(units, 0, keep)
        cell = keep * cell + enter * self._apply(units, 1, new)
        self._put(last, units, cell)
        leave = self._peep(leave, 1, cell, units)
        self._put(time, units, self._apply(units, 0, leave) * self._apply(units, 2, cell))

    def _peep(self, sums: Vec, gate: int, cell: Vec, units: _Units) -> Vec:
        """A gate's sums with its peephole to the cell."""
        p = self.peepholes
        return sums if p is None else sums + self._operand(p, 1, units, gate, 3) * cell

    def _gru(self, time: Value, units: _Units, sums: Sums) -> None:
        update = self._apply(units, 0, self._input(time, 0, units) + sums[0])
        reset = self._apply(units, 0, self._input(time, 1, units) + sums[1])
        behind = sums[2]
        if self.bias is not None:
            behind = behind + self._operand(self.bias, 1, units)
        new = self._apply(units, 1, self._input(time, 2, units) + reset * behind)
        self._blend(time, units, update, new)

    def _reset(self, time: Value, units: _Units, sums: Sums) -> None:
        """The first phase of a GRU that resets the state before its product."""
        update = self._apply(units, 0, self._input(time, 0, units) + sums[0])
        reset = self._apply(units, 0, self._input(time, 1, units) + sums[1])
        old = self._get(tir.const(self.steps), units)
        units.group.held.store(self._kept(0, units), update.expr)
        units.group.held.store(self._kept(1, units), (reset * old).expr)

    def _candidate(self, time: Value, units: _Units, sums: Sums) -> None:
        """The second phase."""
        new = self._input(time, 2, units) + sums[0]
        if self.bias is not None:
            new = new + self._operand(self.bias, 1, units)
        update = self.m.vec(units.group.held.load(self._kept(0, units), self.lanes))
        self._blend(time, units, update, self._apply(units, 1, new))

    def _blend(self, time: Value, units: _Units, update: Vec, new: Vec) -> None:
        """A GRU's next state: interpolated between the candidate and the old one."""
        old = self._get(tir.const(self.steps), units)
        self._put(time, units, (1.0 - update) * new + update * old)
