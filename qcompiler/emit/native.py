"""Plan -> modules of TIR -> one shared library of plain C functions that need only libc:

    int qcompiler_run(table)                                  all of it, by the calling thread
    int qcompiler_launch(team, table, threads)                the same, by a thread team
    int qcompiler_work(team, thread)                          a worker of the team
    int qcompiler_section(table, part, section, unit)         what threads claim (emit/team.py)
    int qcompiler_signature(int32 *found)                     what the code expects of its manifest

artifact/abi.py describes `table` and a team's memory. A run allocates and keeps nothing, so several
may be active at once, each with its own workspace and team.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import tvm
from tvm import tirx

from qcompiler.artifact.abi import MOST_UNITS, Table
from qcompiler.emit import entries, team
from qcompiler.emit.described import signature_of
from qcompiler.emit.link import link
from qcompiler.emit.machine import Layer, build_objects, modules
from qcompiler.emit.repeats import Jump
from qcompiler.emit.repeats import text as jumps_text
from qcompiler.emit.sections import Call, Section, sections
from qcompiler.emit.tasks import Part, Phase, Statement, flat, phases
from qcompiler.errors import Error
from qcompiler.hardware.isa import Cpu, Isa
from qcompiler.kernels.cpu.code.tir import Builder, Value, const
from qcompiler.kernels.registry import Kernel
from qcompiler.plan.barriers import SHARED
from qcompiler.plan.places import Place
from qcompiler.plan.plan import Plan, Step
from qcompiler.plan.repeats import Repeat

log = logging.getLogger(__name__)

STEPS_A_PIECE = 50
"""Steps run by one function, so that no function grows with the model."""

_BYTES = tvm.ir.PointerType(tvm.ir.PrimType("uint8"))
_INT = tvm.ir.PrimType("int32")


def emit(plan: Plan) -> bytes:
    """Plan -> the bytes of a shared library."""
    return _library(layers(plan), plan.device.isa)


def emit_kernel(kernel: Kernel, isa: Isa) -> bytes:
    """A kernel -> a shared library that runs it on the first arrays of the table, for timing."""
    pointers = len(kernel.func.params)
    places = [Place("input", i, 0) for i in range(pointers)]
    made = phases(kernel, min(kernel.tasks, MOST_UNITS))
    owner = SHARED if kernel.tasks > 1 else 0
    whole = [Section(0, [Call(0, made, owner)])]
    body = _Body([places], pointers, 0, [[]])
    return _library(_layers(whole, body, made, 1, 1, isa, _team_entries()), isa)


def _library(found: Sequence[Layer], isa: Isa) -> bytes:
    return link(build_objects(modules(*found), isa), isa.triple)


def emit_objects(plan: Plan) -> list[bytes]:
    """Plan -> object files of `qcompiler_run` for one thread; they need memcpy and libm at most."""
    return build_objects(modules(*layers(plan, team=False)), plan.device.isa)


def layers(plan: Plan, *, team: bool = True) -> list[Layer]:
    """Plan -> the functions: every phase of a kernel once, the sections, and the entries. `team`:
    with those of a thread team, and the signature.
    """
    if not isinstance(plan.device, Cpu):
        raise Error(f"{plan.device.isa.name} is a GPU, and C code is for CPUs", where="--target")
    units = min(plan.device.threads, MOST_UNITS)
    known: dict[str, tuple[Part, ...]] = {}
    for step in plan.steps:
        if step.kernel.name not in known:
            known[step.kernel.name] = phases(step.kernel, units)
    made = [p for parts in known.values() for p in parts]
    sides = len(plan.graph.inputs), len(plan.graph.results)
    body = _Body([_places(s) for s in plan.steps], *sides, [s.guards for s in plan.steps])
    whole = {**_team_entries(), "qcompiler_signature": _signature(plan)} if team else {}
    found = plan_sections(plan, known)
    isa, steps = plan.device.isa, len(plan.steps)
    return _layers(
        found,
        body,
        made,
        steps,
        0 if plan.opened and plan.opened.batches else plan.parts,
        isa,
        whole,
        plan.repeats,
    )


def plan_sections(plan: Plan, known: dict[str, tuple[Part, ...]] | None = None) -> list[Section]:
    """A plan's steps as sections."""
    units = min(plan.device.threads, MOST_UNITS)
    order = [s.slot for s in plan.steps]
    steps = [
        known[s.kernel.name] if known is not None else phases(s.kernel, units) for s in plan.steps
    ]
    return sections(steps, order)


def _layers(
    found: Sequence[Section],
    body: _Body,
    made: Sequence[Part],
    steps: int,
    parts: int,
    isa: Isa,
    others: dict[str, tirx.PrimFunc],
    repeats: Sequence[Repeat] = (),
) -> list[Layer]:
    kernels = {p.name: p.func for p in flat(tuple(made))}
    pieces = list(_pieces(found))
    runs = {f"qcompiler_piece{i}": body.piece(piece) for i, piece in enumerate(pieces)}
    shell = _dispatch(pieces)
    facts = _facts(found, steps, parts, body.table, repeats)
    text = team.text(isa, facts if parts else replace(facts, parts_at=body.table.parts))
    text += entries.text(isa, body.table.permission)
    return [
        Layer(kernels),
        Layer(runs, team.TABLE),
        Layer({"qcompiler_section": shell}),
        Layer({"qcompiler_run": _shell("entry_run", [_BYTES]), **others}, text),
    ]


def section_facts(plan: Plan) -> team.Sections:
    """A plan's sections, as the team's loops need them."""
    table = Table(len(plan.graph.inputs) + len(plan.graph.results))
    return _facts(plan_sections(plan), len(plan.steps), plan.parts, table, plan.repeats)


def _facts(
    found: Sequence[Section], steps: int, parts: int, table: Table, repeats: Sequence[Repeat]
) -> team.Sections:
    begins, ends = [0] * steps, [0] * steps
    for section in found:
        for call in section.calls:
            begins[call.step] = section.begin
            ends[call.step] = section.begin + section.length
    masks = [m for s in found for m in s.masks]
    jumps = [
        Jump(begins[r.first], ends[r.last - 1], r.going.offset, (r.first, r.last)) for r in repeats
    ]
    made = jumps_text(jumps, table) if jumps else ""
    return team.Sections(masks, begins, ends, parts, table.first, repeats=made)


def _team_entries() -> dict[str, tirx.PrimFunc]:
    """The entries for thread teams, besides `qcompiler_run`."""
    return {
        "qcompiler_launch": _shell("entry_launch", [_BYTES, _BYTES, _INT]),
        "qcompiler_work": _shell("team_work", [_BYTES, _INT]),
    }


def _signature(plan: Plan) -> tirx.PrimFunc:
    """The function that returns what the manifest must agree with (Manifest.signature)."""
    b = Builder("qcompiler_signature")
    b.pointer("found", "int32").store(0, const(signature_of(plan)))
    return b.function()


def _places(step: Step) -> list[Place]:
    return [*step.operands, *step.writes]


def _pieces(found: Sequence[Section]) -> list[list[Section]]:
    """Sections -> lists of STEPS_A_PIECE steps each, which may divide a section."""
    pieces: list[list[Section]] = []
    room = 0
    for section in found:
        left = section.calls
        while left:
            if not room:
                pieces.append([])
                room = STEPS_A_PIECE
            pieces[-1].append(Section(section.begin, left[:room]))
            left, room = left[room:], max(0, room - len(left))
    return pieces


def _dispatch(pieces: Sequence[Sequence[Section]]) -> tirx.PrimFunc:
    """(table, part, section, unit) -> calls the pieces that have steps of it."""
    params = _params()
    calls = []
    for i, piece in enumerate(pieces):
        made = tirx.Evaluate(tirx.call_extern("int32", f"qcompiler_piece{i}", *params))
        first, end = piece[0].begin, piece[-1].begin + piece[-1].length
        inside = tirx.And(tirx.LE(_int(first), params[2]), tirx.LT(params[2], _int(end)))
        calls.append(tirx.IfThenElse(inside, made, None) if len(pieces) > 1 else made)
    return _function(params, calls)


class _Body:
    """The calls of kernels, with addresses read from the table. `places` and `guards`: of every
    step; `inputs`, `outputs`: how many the table begins with.
    """

    def __init__(
        self,
        places: Sequence[Sequence[Place]],
        inputs: int,
        outputs: int,
        guards: Sequence[Sequence[tuple[Place, bool]]],
    ) -> None:
        self.places, self.inputs, self.guards = places, inputs, guards
        self.table = Table(inputs + outputs)

    def piece(self, piece: Sequence[Section]) -> tirx.PrimFunc:
        """(table, part, section, unit) -> does what the unit does in the section."""
        params = _params()
        found = _Addresses(self, params[0], params[1])
        first = found.number(self.table.first, "first")
        last = found.number(self.table.last, "last")
        cases = [(s.begin, self._section(s, params, found, (first, last))) for s in piece]
        return _function(params, [*found.statements, _search(params[2], cases)])

    def _section(
        self, section: Section, params: list[Value], found: _Addresses, ends: tuple[Value, Value]
    ) -> Statement:
        made = []
        for call in section.calls:
            here = _int(call.step)
            wanted = tirx.And(tirx.LE(ends[0], here), tirx.LT(here, ends[1]))
            pointers = [found.address(p) for p in self.places[call.step]]
            within = params[2] - _int(section.begin)
            what = _parts(call.parts, pointers, within, params[3], call.owner)
            for place, value in self.guards[call.step]:
                held = tirx.EQ(found.flag(place), tirx.IntImm("uint8", int(value)))
                what = tirx.IfThenElse(held, what, None)
            made.append(tirx.IfThenElse(wanted, what, None))
        return _sequence(made)


def _parts(
    parts: Sequence[Part],
    pointers: Sequence[Value],
    within: Value,
    unit: Value,
    owner: int,
    rounds: tuple[Value, ...] = (),
) -> Statement:
    """The phase of section number `within`, counted from the parts' first."""
    cases, begin = [], 0
    for part in parts:
        if isinstance(part, Phase):
            made = _call(part, [*pointers, *rounds], unit, owner)
        else:
            inner = part.length // part.iterations
            number = within - _int(begin)
            iteration, rest = tirx.truncdiv(number, inner), tirx.truncmod(number, inner)
            made = _parts(part.parts, pointers, rest, unit, owner, (*rounds, iteration))
        cases.append((begin, made))
        begin += part.length
    return _search(within, cases)


def _call(phase: Phase, operands: Sequence[Value], unit: Value, owner: int) -> Statement:
    """A phase's call, by the units that have a share in it."""
    mine = [] if phase.whole else [unit]
    made = tirx.Evaluate(tirx.call_extern("int32", phase.name, *operands, *mine))
    inside = tirx.LT(unit, _int(phase.units)) if owner == SHARED else tirx.EQ(unit, _int(owner))
    return tirx.IfThenElse(inside, made, None)


def _search(number: Value, cases: Sequence[tuple[int, Statement]]) -> Statement:
    """Binary search for the last case that does not begin above a number."""
    if len(cases) == 1:
        return cases[0][1]
    middle = len(cases) // 2
    below = tirx.LT(number, _int(cases[middle][0]))
    return tirx.IfThenElse(below, _search(number, cases[:middle]), _search(number, cases[middle:]))


class _Addresses:
    """The addresses of places in a run, read from its table once in each function."""

    def __init__(self, body: _Body, table: Value, part: Value) -> None:
        self.body, self.table, self.part = body, table, part
        self.statements: list[Statement] = []
        self.buffers: dict[int, Value] = {}

    def number(self, index: int, name: str) -> Value:
        """A number in the table."""
        var = tvm.ir.Var(name, _INT)
        value = tirx.call_pure_extern("int32", "team_number", self.table, _int(index))
        self.statements.append(tirx.Bind(var, value))
        return var

    def address(self, place: Place) -> Value:
        """The address of a place."""
        return tirx.address_of(self.flag(place))

    def flag(self, place: Place) -> Value:
        """The first byte at a place."""
        body = self.body
        if place.space in ("input", "output"):
            index = place.offset + (body.inputs if place.space == "output" else 0)
            offset = tirx.Cast("int64", self.part) * tirx.IntImm("int64", place.bytes)
        else:
            index = body.table.weights if place.space == "weights" else body.table.workspace
            offset = tirx.IntImm("int64", place.offset)
        if index not in self.buffers:
            pointer = tvm.ir.Var(f"memory{index}", _BYTES)
            value = tirx.call_pure_extern(_BYTES, "team_pointer", self.table, _int(index))
            self.statements.append(tirx.Bind(pointer, value))
            buffer = tirx.decl_buffer((1 << 40,), "uint8", f"bytes{index}", layout=None)
            self.statements.append(tirx.DeclBuffer(buffer, data=pointer))
            self.buffers[index] = buffer
        return tirx.BufferLoad(self.buffers[index], [offset])


def _params() -> list[Value]:
    """(table, part, section, unit)."""
    return [
        tvm.ir.Var("table", _BYTES),
        *(tvm.ir.Var(n, _INT) for n in ("part", "section", "unit")),
    ]


def _shell(name: str, types: Sequence[Value]) -> tirx.PrimFunc:
    """An exported function that calls one of LLVM text."""
    params = [tvm.ir.Var(f"p{i}", t) for i, t in enumerate(types)]
    return _function(params, [tirx.Evaluate(tirx.call_extern("void", name, *params))])


def _int(value: int) -> Value:
    return tirx.IntImm("int32", value)


def _sequence(statements: Sequence[Statement]) -> Statement:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def _function(params: Sequence[Value], statements: Sequence[Statement]) -> tirx.PrimFunc:
    zero = tirx.Return(_int(0))
    body = tirx.SeqStmt([*statements, zero]) if statements else zero
    return tirx.PrimFunc(list(params), body, _INT)
