"""Loop and Scan -> one `loop`, whose body is read once and which a run repeats as often as needed.

Its states: whether it goes on, the number of the iteration, what the body carries, the memory of
stacked outputs, where each iteration writes its rows, and whether what the body checks has held so
far. What the body reads from around it, and does not change, is computed once, before.

A loop is read this way if its iterations times its body's nodes are more than UNROLLED, or if
nobody knows how many there are; others are unrolled (loops.py), as more is then known of each
iteration. So are those of which only unrolling can make sense: Rolling raises Unrolled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from onnx import GraphProto

from qcompiler.errors import Error
from qcompiler.ir import MAX_ELEMENTS, Graph, Node, constant, placeholder
from qcompiler.ir.graph import walk
from qcompiler.onnx_io.checks import Checks
from qcompiler.onnx_io.sequences import Held
from qcompiler.onnx_io.settle import Settling
from qcompiler.onnx_io.structure import all_nodes
from qcompiler.ops import known_value, make

log = logging.getLogger(__name__)

UNROLLED = 2000
"""Most nodes that iterations are unrolled to, where they need not be."""

_DRAWN = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"})
_DRAWN |= {"RandomUniform", "RandomUniformLike", "Dropout"}
"""Operators whose numbers are drawn when the model is read, anew for each iteration."""

Body = Callable[..., Sequence[Held]]
"""(what names it, its inputs) -> its outputs."""


class Unrolled(Exception):
    """Why a loop must be unrolled."""


def attempted(
    allowed: bool,
    checks: Checks,
    unsupported: dict[tuple[str, str], list[str]],
    make: Callable[[], Sequence[Held]],
) -> Sequence[Held] | None:
    """The values of a loop that stays one, if that is `allowed`; None where something is in the
    way, of which nothing stays among the checks and what is unsupported.
    """
    if not allowed:
        return None
    held = dict(checks.made)
    reported = {key: [*names] for key, names in unsupported.items()}
    try:
        made = make()
        if unsupported == reported:
            return made
        log.info("a loop is unrolled: its body has unsupported operators")
    except Unrolled as e:
        log.info("a loop is unrolled: %s", e)
    except Error as e:
        log.info("a loop is unrolled: %s", e.what)
    checks.made = held
    unsupported.clear()
    unsupported.update(reported)
    return None


def is_worth(iterations: int | None, body: GraphProto) -> bool:
    """Is a loop of so many iterations, at most, (None: any number) read as one?"""
    return iterations is None or iterations * sum(1 for _ in all_nodes(body.node)) > UNROLLED


Step = Callable[[Node, list[Node]], tuple[list[Node], list[Node], list[Node]]]
"""(number of the iteration, carried values) -> conditions of the next iteration, new values, rows
of stacked outputs.
"""


@dataclass
class Rolling:
    """A loop while it is read; `graph`: its body, as the file has it."""

    s: Settling
    checks: Checks
    graph: GraphProto
    given: list[Node] = field(default_factory=list)
    """What the body reads as its states: `going` and the iteration's number, vectors of one, then
    others."""
    firsts: list[Node] = field(default_factory=list)
    """What these are at first."""

    def loop(self, inputs: Sequence[Held], body: Body) -> list[Held]:
        """Loop(trip count, condition, carried values...) -> as `loops.loop`. Raises Unrolled."""
        s = self.s
        given, first = (*inputs[:2], None, None)[:2]
        limit = s.flat(given) if isinstance(given, Node) else None
        begin = [s.flag(first)] if isinstance(first, Node) else []
        carried = _tensors(inputs[2:])
        most = known_value(limit)
        lengths = [h[0] for h in s.shapes[len(carried) :] if h]
        rows = lengths[0] if lengths else None if most is None else int(most[0])
        exact = most is not None and all(map(_is_true, begin))
        # One iteration more than an output's shape says is one too many, which a check finds.
        ends = [limit] if limit is not None else []
        ends += [s.ints([lengths[0] + 1])] if lengths else []
        begin += [s.node("Less", [0], end) for end in ends]

        def step(turn: Node, states: list[Node]) -> tuple[list[Node], list[Node], list[Node]]:
            nonlocal exact
            scalar = s.node("Reshape", turn, s.ints([]))
            made = _tensors(body("body", [scalar, constant(np.array(True)), *states]))
            exact = exact and _is_true(made[0])
            after = s.node("Add", turn, [1])
            on = [s.flag(made[0]), *(s.node("Less", after, end) for end in ends)]
            return on, made[1 : 1 + len(carried)], made[1 + len(carried) :]

        turns, found, stacks = self._made(begin, carried, rows, step)
        if exact and rows != most:
            raise Unrolled("the declared length of its outputs is not that which they have")
        if lengths and not exact:
            what = f"it does not have {rows} iterations, as an output's shape says"
            s.check(s.node("Equal", turns, lengths[:1]), what)
        elif stacks and not exact:
            if s.bound is None:
                raise Unrolled("how many rows its outputs have is not known")
            for stack in stacks:
                s.bound(stack, {0: turns})
        return [*found, *stacks]

    def scan(
        self, states: Sequence[Node], pieces: Sequence[tuple[Node, int, int]], body: Body
    ) -> tuple[list[Node], list[Node]]:
        """A Scan of carried values and of sequences, each with its axis and whether it is read
        backward, -> the carried values and the stacked outputs, along a first axis, in the order of
        the iterations. Raises Unrolled.
        """
        s = self.s
        length = pieces[0][0].type.dims[pieces[0][1]]

        def step(turn: Node, states: list[Node]) -> tuple[list[Node], list[Node], list[Node]]:
            forth = s.node("Reshape", turn, s.ints([]))
            parts = [
                s.node("Gather", x, s.node("Sub", length - 1, forth) if back else forth, axis=axis)
                for x, axis, back in pieces
            ]
            made = _tensors(body("body", [*states, *parts]))
            on = [s.node("Less", s.node("Add", turn, [1]), [length])]
            return on, made[: len(states)], made[len(states) :]

        return self._made([], _tensors(states), length, step)[1:]

    def _made(
        self, begin: Sequence[Node], carried: list[Node], rows: int | None, step: Step
    ) -> tuple[Node, list[Node], list[Node]]:
        """Conditions of a first iteration, carried values at first, how many rows there are at
        most, and an iteration -> how many iterations there were, the last values, stacked rows.
        """
        s = self.s
        if any(n.op_type in _DRAWN for n in all_nodes(self.graph.node)):
            raise Unrolled("numbers are drawn for each iteration")
        self._state(self._all([*begin, *self.checks.guards]))
        turn = self._state(s.ints([0]))
        states = [self._state(first) for first in carried]
        before = dict(self.checks.made)
        on, new, made = step(turn, states)
        if [n.type for n in new] != [n.type for n in states]:
            raise Unrolled("what it carries changes its type")
        stacks = [self._put(row, rows, turn) for row in made]
        fresh = {what: holds for what, holds in self.checks.made.items() if what not in before}
        held = [self._held(holds) for holds in fresh.values()]
        found = self._closed([self._all(on), s.node("Add", turn, [1]), *new, *stacks, *held])
        turns, values = found[1], found[2 : 2 + len(new)]
        whole = found[2 + len(new) : 2 + len(new) + len(stacks)]
        self.checks.made = {
            **before,
            **dict(zip(fresh, found[len(found) - len(held) :], strict=True)),
        }
        for at, row in enumerate(made):
            if row.dtype == "bool":
                whole[at] = s.node("Cast", whole[at], to="bool")
        return turns, values, whole

    def _state(self, first: Node) -> Node:
        """One more state -> what the body reads."""
        made = placeholder(f"state{len(self.given)}", first.type)
        self.firsts.append(first)
        self.given.append(made)
        return made

    def _put(self, row: Node, rows: int | None, turn: Node) -> Node:
        """A row in its place among so many; what is not written is 0."""
        s = self.s
        if not rows:
            raise Unrolled("how many rows its outputs have at most is not known")
        if row.dtype == "bool":
            row = s.node("Cast", row, to="uint8")
        dims = row.type.dims
        if rows * row.type.size > MAX_ELEMENTS:
            raise Unrolled(f"{rows} rows of {row.type} do not fit")
        stack = self._state(make("room", dtype=row.dtype, shape=(rows, *dims), name="rows"))
        place = s.node("Reshape", s.node("Min", turn, [rows - 1]), [1, 1])
        return s.node("ScatterND", stack, place, s.node("Reshape", row, [1, *dims]))

    def _held(self, holds: Node) -> Node:
        """Whether what a body checks holds in this iteration and has in those before."""
        s = self.s
        old = self._state(constant(np.ones(1, np.bool_)))
        least = s.node("ReduceMin", s.node("Cast", holds, to="int32"), keepdims=0)
        return s.node("And", old, s.flag(s.node("Cast", least, to="bool")))

    def _all(self, conditions: Sequence[Node]) -> Node:
        """Whether conditions, vectors of one, are all true."""
        unknown = [c for c in conditions if not _is_true(c)] or [constant(np.ones(1, np.bool_))]
        return reduce(lambda a, b: self.s.node("And", a, b), unknown)

    def _closed(self, outputs: Sequence[Node]) -> list[Node]:
        """What the body makes of its states -> what these are when the loop has ended."""
        inside, around = set(self.given), dict[Node, Node]()
        new: dict[Node, Node] = {n: n for n in self.given}
        for node in walk(outputs):
            if node in new or not any(i in inside for i in node.operands):
                continue
            inside.add(node)
            new[node] = node.with_inputs(
                i and (new.get(i) or _taken(i, around)) for i in node.inputs
            )
        ends = [new.get(o) or _taken(o, around) for o in outputs]
        names = tuple(f"next{i}" for i in range(len(ends)))
        body = Graph((*self.given, *around.values()), tuple(ends), names, "body")
        name = self.s.call.name
        made = make("loop", *self.firsts, *around, body=body, name=name)
        return [make("item", made, index=i, name=f"{name}.{i}") for i in range(len(ends))]


def _taken(node: Node, around: dict[Node, Node]) -> Node:
    """What a body reads from around it: a constant, or one more of its inputs."""
    known = node.array if node.is_constant else known_value(node)
    if known is not None:
        return node if node.is_constant else constant(known, node.name)
    if node not in around:
        _tensors([node])
        around[node] = placeholder(f"around{len(around)}", node.type)
    return around[node]


def _tensors(values: Sequence[Held]) -> list[Node]:
    """Values that a loop may read or carry. Raises Unrolled for others."""
    found = [v for v in values if isinstance(v, Node)]
    if len(found) < len(values):
        raise Unrolled("it carries sequences")
    for node in found:
        if not node.type.static or not node.type.size or node.dtype == "string":
            raise Unrolled(f"it carries or reads {node.type}")
    return found


def _is_true(condition: Node) -> bool:
    known = known_value(condition)
    return known is not None and bool(known.all())
