"""Loop and Scan -> one `loop`, whose body is read once and which a run repeats as often as needed.

Its states: whether it goes on, the number of the iteration, what the body carries, the memory of
stacked outputs, where each iteration writes its rows, and whether what the body checks has held so
far. What the body reads from around it, and does not change, is computed once, before.

A loop is read this way if its iterations times its body's nodes are more than UNROLLED, or if
nobody knows how many there are; others are unrolled (loops.py), as more is then known of each
iteration. So are those of which only unrolling can make sense: Rolling raises Unrolled. A number of
iterations may be an open size: then stacked outputs have memory for as many rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from onnx import GraphProto

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error, Skip
from qcompiler.ir import MAX_ELEMENTS, Node, constant, placeholder
from qcompiler.onnx_io.checks import Checks
from qcompiler.onnx_io.sequences import Held
from qcompiler.onnx_io.settle import Settling
from qcompiler.onnx_io.structure import all_nodes
from qcompiler.ops import known_value, make
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.ops.loop import looped
from qcompiler.ops.shapes import agree

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
) -> Sequence[Held] | Skip:
    """The values of a loop that stays one, if that is `allowed`; or what is in the way, of which
    nothing stays among the checks and what is unsupported.
    """
    if not allowed:
        return Skip("loops stay loops where a CPU runs them")
    held = dict(checks.made)
    reported = {key: [*names] for key, names in unsupported.items()}
    try:
        made = make()
        if unsupported == reported:
            return made
        new = (what for what, _ in unsupported.keys() - reported.keys())
        reason = f"its body has unsupported operators: {', '.join(sorted(new))}"
    except Unrolled as e:
        reason = str(e)
    except Error as e:
        reason = e.what
    log.info("a loop is unrolled: %s", reason)
    checks.made = held
    unsupported.clear()
    unsupported.update(reported)
    return Skip(reason)


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
        turns_known = known_sizes(limit)
        lengths = [h[0] for h in s.shapes[len(carried) :] if h]
        rows = s.ints(lengths[:1]) if lengths else limit if turns_known is not None else None
        exact = turns_known is not None and all(map(_is_true, begin))
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
        if exact and lengths and turns_known is not None and lengths[0] != turns_known[0]:
            raise Unrolled("the declared length of its outputs is not that which they have")
        if lengths and not exact:
            what = f"it does not have {lengths[0]} iterations, as an output's shape says"
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
        length = _length(s, *pieces[0][:2])
        last = s.node("Reshape", s.node("Sub", length, [1]), s.ints([]))

        def step(turn: Node, states: list[Node]) -> tuple[list[Node], list[Node], list[Node]]:
            forth = s.node("Reshape", turn, s.ints([]))
            parts = [
                s.node("Gather", x, s.node("Sub", last, forth) if back else forth, axis=axis)
                for x, axis, back in pieces
            ]
            made = _tensors(body("body", [*states, *parts]))
            for was, now in zip(states, made, strict=False):  # a Scan's states keep their shapes
                all(map(agree, was.shape, now.shape))
            on = [s.node("Less", s.node("Add", turn, [1]), length)]
            return on, made[: len(states)], made[len(states) :]

        return self._made([], _tensors(states), length, step)[1:]

    def _made(
        self, begin: Sequence[Node], carried: list[Node], rows: Node | None, step: Step
    ) -> tuple[Node, list[Node], list[Node]]:
        """Conditions of a first iteration, carried values at first, how many rows there are at
        most (a vector of one, which may be an open size), and an iteration -> how many iterations
        there were, the last values, stacked rows.
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
        ends = [self._all(on), s.node("Add", turn, [1]), *new, *stacks, *held]
        found = looped(self.firsts, self.given, ends, s.call.name)
        _tensors(found[0].operands[0].operands)
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

    def _put(self, row: Node, rows: Node | None, turn: Node) -> Node:
        """A row in its place among so many; what is not written is 0."""
        s = self.s
        known = known_sizes(rows)
        if rows is None or known is None or known[0] == 0:
            raise Unrolled("how many rows its outputs have at most is not known")
        if row.dtype == "bool":
            row = s.node("Cast", row, to="uint8")
        shape = (known[0], *row.type.shape)
        most = settled(reduce(lambda a, b: a * b, shape, Size.of(1)))
        if isinstance(most, int) and most > MAX_ELEMENTS:
            raise Unrolled(f"{known[0]} rows of {row.type} do not fit")
        stack = self._state(make("room", dtype=row.dtype, shape=shape, name="rows"))
        place = s.node("Min", turn, s.node("Sub", rows, [1]))
        return s.node(
            "ScatterND", stack, s.node("Reshape", place, [1, 1]), s.node("Unsqueeze", row, [0])
        )

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


def _tensors(values: Sequence[Held]) -> list[Node]:
    """Values that a loop may read or carry. Raises Unrolled for others."""
    found = [v for v in values if isinstance(v, Node)]
    if len(found) < len(values):
        raise Unrolled("it carries sequences")
    for node in found:
        if 0 in node.type.shape or node.dtype == "string":
            raise Unrolled(f"it carries or reads {node.type}")
    return found


def _length(s: Settling, x: Node, axis: int) -> Node:
    """The size of a value along an axis, as a vector of one."""
    size = x.type.shape[axis]
    if isinstance(size, int):
        return s.ints([size])
    return s.node("Shape", x, start=axis % x.type.rank, end=axis % x.type.rank + 1)


def _is_true(condition: Node) -> bool:
    known = known_value(condition)
    return known is not None and bool(known.all())
