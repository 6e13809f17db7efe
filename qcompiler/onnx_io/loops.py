"""Loop and Scan -> their unrolled bodies; long ones are one loop (rolled.py).

The number of iterations follows from constants and shapes: a Loop's maximum and condition, the
length of a Scan's sequences. Then every iteration's nodes are as if the file listed them. If a
Loop's is known at run time only, the declared length of a stacked output says it, and runs are
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Attr, Dim, Node, constant, numpy_dtype
from qcompiler.onnx_io.rolled import Rolling, Unrolled, is_worth
from qcompiler.onnx_io.sequences import Held
from qcompiler.onnx_io.settle import Settling
from qcompiler.onnx_io.tensors import Unsupported
from qcompiler.ops import known_value, make

MAX_ITERATIONS = 4096
_OPEN = "export the model with a fixed number of iterations"
PIN = "pin it: --dim NAME=N"

Body = Callable[..., Sequence[Held]]
"""(iteration, inputs of the body, [a condition under which a run comes to it]) -> its outputs."""


Scanned = Callable[[Mapping[str, Attr], Sequence[Held]], Sequence[Held]]
"""(attributes and inputs of a Scan) -> its outputs."""


def known_count(inputs: Sequence[Held], name: str) -> int | None:
    """The most iterations of a Loop (MAX_ITERATIONS: no limit), if they and its first condition are
    known when the model is read.
    """
    most, going = (*inputs[:2], None, None)[:2]
    known = [known_value(i) for i in (most, going) if isinstance(i, Node)]
    if any(k is None or k.size != 1 for k in known):
        return None
    limit = known_value(most) if isinstance(most, Node) else None
    return MAX_ITERATIONS + 1 if limit is None else int(limit.reshape(()))


def most_iterations(s: Settling, inputs: Sequence[Held], most: int) -> int | None:
    """The most iterations of a Loop, as far as is known when the model is read. `most` as below."""
    lengths = [h[0] for h in s.shapes[len(inputs[2:]) :] if h]
    limit = known_value(inputs[0]) if inputs and isinstance(inputs[0], Node) else None
    known = [*lengths[:1], *([most] if most else [])]
    known += [] if limit is None else [int(limit.reshape(()))]
    return min(known, default=None)


def loop(s: Settling, inputs: Sequence[Held], body: Body, name: str, most: int = 0) -> list[Held]:
    """Loop(trip count, condition, carried values...) -> the final carried values, then the scan
    outputs, stacked along a new first axis. `most`: no run has more iterations (0: not known).
    """
    count = known_count(inputs, name)
    if count is None:
        return repeated(s, inputs, body, most)
    first = inputs[1] if len(inputs) > 1 else None
    going: Held = first if isinstance(first, Node) else constant(np.array(True))
    state = [_given(i, name) for i in inputs[2:]]
    stacked: list[list[Node]] = []
    iteration = 0
    goes_on = constant(np.array(True))
    while iteration < count and _known(going):
        if iteration == MAX_ITERATIONS:
            what = f"a loop of more than {MAX_ITERATIONS} iterations"
            raise Unsupported(what, hint=_OPEN, where=name)
        made = body(iteration, [constant(np.array(iteration, np.int64)), goes_on, *state])
        going, state, rest = made[0], list(made[1 : 1 + len(state)]), made[1 + len(state) :]
        if not isinstance(going, Node) or known_value(going) is None:
            return repeated(s, inputs, body, count)
        stacked = stacked or [[] for _ in rest]
        for rows, row in zip(stacked, rest, strict=True):
            rows.append(_tensor(row, name))
        iteration += 1
    if not stacked:
        return [*state, *_nothing(s, inputs, body)]
    return [*state, *(_joined(rows, 0) for rows in stacked)]


def repeated(s: Settling, inputs: Sequence[Held], body: Body, most: int) -> list[Held]:
    """A Loop whose number of iterations is known at run time only.

    A stacked output's declared length is that number: as many bodies, and a check that the
    conditions say the same. Without one, a known maximum of iterations: those that come after a
    condition has become false leave the carried values as they are (runs skip their steps, as
    nothing else reads them), and how many there were goes with stacked outputs.
    """
    name = f"{s.call.name} (Loop)"
    state = [_given(i, name) for i in inputs[2:]]
    lengths = [h[0] for h in s.shapes[len(state) :] if h]
    stacks = s.call.outputs > len(state)
    if not lengths and (not 0 < most <= MAX_ITERATIONS or (stacks and s.bound is None)):
        raise Unsupported("a number of iterations known at run time only", hint=_OPEN, where=name)
    count = lengths[0] if lengths else most
    if count > MAX_ITERATIONS:
        raise Unsupported(f"a loop of {count} iterations", hint=_OPEN, where=name)
    limit, first = (*inputs[:2], None, None)[:2]
    going = s.flag(first) if isinstance(first, Node) else constant(np.ones(1, np.bool_))
    stacked: list[list[Node]] = []
    goings: list[Node] = []
    for iteration in range(count):
        if isinstance(limit, Node):
            going = s.node("And", going, s.node("Less", s.ints([iteration]), s.flat(limit)))
        goings.append(going)
        if lengths:
            s.check(going, f"it ends before iteration {count}, as an output's shape says")
        start = constant(np.array(iteration, np.int64))
        wanted = None if lengths else going
        made = body(iteration, [start, constant(np.array(True)), *state], wanted)
        new, rest = list(made[1 : 1 + len(state)]), made[1 + len(state) :]
        state = new if lengths else [_kept(s, going, a, b) for a, b in zip(new, state, strict=True)]
        going = s.node("And", going, s.flag(_tensor(made[0], name)))
        stacked = stacked or [[] for _ in rest]
        for rows, row in zip(stacked, rest, strict=True):
            rows.append(_tensor(row, name))
    if lengths:
        if isinstance(limit, Node):
            going = s.node("And", going, s.node("Less", s.ints([count]), s.flat(limit)))
        s.check(s.node("Not", going), f"it goes on after {count} iterations")
    joined = [_joined(rows, 0) for rows in stacked] if count else _nothing(s, inputs, body)
    if joined and not lengths and s.bound is not None:
        flags = s.node("Cast", s.node("Concat", *goings, axis=0), to="int64")
        turns = s.node("ReduceSum", flags, [0], keepdims=1)
        for whole in joined:
            s.bound(whole, {0: turns})
    return [*state, *joined]


def _kept(s: Settling, going: Node, new: Held, old: Held) -> Held:
    """A carried value: the new one while the loop goes on."""
    if not isinstance(new, Node) or not isinstance(old, Node) or new.type != old.type:
        what = "carried values of changing shapes, and iterations known at run time only"
        raise s.call.unsupported(what, _OPEN)
    scalar = s.node("Reshape", going, s.ints(np.zeros(0, np.int64)))  # type: ignore[arg-type]
    return s.node("Where", scalar, new, old)


def _nothing(s: Settling, inputs: Sequence[Held], body: Body) -> list[Node]:
    """No iterations -> each stacked output, of no rows of the type that they would have; what the
    body checks matters to no run.
    """
    state = [_given(i, s.call.name) for i in inputs[2:]]
    if s.call.outputs <= len(state):
        return []
    given = [constant(np.array(0, np.int64)), constant(np.array(True)), *state]
    never = constant(np.zeros(1, np.bool_))
    rows = [_tensor(r, s.call.name) for r in body(0, given, never)[1 + len(state) :]]
    return [
        constant(np.zeros((0, *r.type.dims), numpy_dtype(r.dtype)))
        if r.type.static and r.dtype != "string"
        else s.node("Slice", s.node("Unsqueeze", r, [0]), [0], [0], [0])
        for r in rows
    ]


@dataclass(frozen=True)
class _Scan:
    """A Scan's operands: carried values; and sequences, each with its axis, and 1 if it is read
    backward; where outputs are stacked, and 1 if backward.
    """

    attrs: Mapping[str, Attr]
    states: list[Node]
    pieces: list[tuple[Node, int, int]]
    length: Dim
    name: str

    def stacked(self, rows: Sequence[Sequence[Node]]) -> list[Node]:
        """Rows of outputs in the order of the iterations -> the outputs."""
        to, back = self.ends(len(rows))
        whole = [r[::-1] if b else r for r, b in zip(rows, back, strict=True)]
        return [_joined(r, axis) for r, axis in zip(whole, to, strict=True)]

    def ends(self, count: int) -> tuple[list[int], list[int]]:
        """The axes of so many outputs, and which are stacked backward."""
        to = _numbers(self.attrs, "scan_output_axes", count, self.name)
        return to, _numbers(self.attrs, "scan_output_directions", count, self.name)


def _scan(attrs: Mapping[str, Attr], inputs: Sequence[Held], name: str) -> _Scan:
    given = [_tensor(i, name) for i in inputs]
    count = attrs["num_scan_inputs"]
    assert isinstance(count, int)
    if not 1 <= count <= len(given):
        raise Error(f"{count} sequences among {len(given)} inputs", where=name)
    axes = _numbers(attrs, "scan_input_axes", count, name)
    back = _numbers(attrs, "scan_input_directions", count, name)
    pieces = list(zip(given[-count:], axes, back, strict=True))
    lengths = {x.shape[a] for x, a, _ in pieces}
    if len(lengths) > 1:
        raise Unsupported("sequences of unknown length", hint=_OPEN, where=name)
    (length,) = lengths
    return _Scan(attrs, given[:-count], pieces, length, name)


def rolled_scan(
    rolling: Rolling, attrs: Mapping[str, Attr], inputs: Sequence[Held], body: Body, name: str
) -> list[Held]:
    """As `scan`, by one loop. Raises Unrolled."""
    scan, s = _scan(attrs, inputs, name), rolling.s
    count = scan.length if isinstance(scan.length, int) else None
    if count == 0 or not is_worth(count, rolling.graph):
        raise Unrolled("it has few iterations")
    states, stacks = rolling.scan(scan.states, scan.pieces, body)
    made: list[Held] = [*states]
    for stack, to, back in zip(stacks, *scan.ends(len(stacks)), strict=True):
        if back:
            stack = s.node("Slice", stack, [-1], [np.iinfo(np.int64).min], [0], [-1])
        order = list(range(1, stack.type.rank))
        order.insert(to % stack.type.rank, 0)
        made.append(s.node("Transpose", stack, perm=tuple(order)))
    return made


def scan(
    attrs: Mapping[str, Attr], inputs: Sequence[Held], body: Body, name: str, why: str = ""
) -> list[Held]:
    """Scan(carried values..., sequences...) -> the final carried values, then the stacked scan
    outputs. `why`: what keeps it from staying a loop.
    """
    made = _scan(attrs, inputs, name)
    state, length = made.states, made.length
    if not isinstance(length, int):
        raise Unsupported(f"{length} iterations, an open size: {why}", hint=PIN, where=name)
    if not 1 <= length <= MAX_ITERATIONS:
        raise Unsupported(f"a scan of {length} iterations", where=name)
    stacked: list[list[Node]] = []
    for iteration in range(length):
        places = [length - 1 - iteration if back else iteration for _, _, back in made.pieces]
        pieces = [
            make("Gather", x, constant(np.array(at)), axis=axis)
            for at, (x, axis, _) in zip(places, made.pieces, strict=True)
        ]
        found = [_tensor(v, name) for v in body(iteration, [*state, *pieces])]
        state, rest = found[: len(state)], found[len(state) :]
        stacked = stacked or [[] for _ in rest]
        for rows, row in zip(stacked, rest, strict=True):
            rows.append(row)
    return [*state, *made.stacked(stacked)]


def batched_scan(
    attrs: Mapping[str, Attr], inputs: Sequence[Held], scanned: Scanned, name: str
) -> list[Held]:
    """Scan of opset 8, (lengths, carried values..., sequences...) of a batch -> a Scan of each
    sample, stacked.
    """
    if inputs[0] is not None:
        raise Unsupported("a scan of sequences of different lengths", hint=_OPEN, where=name)
    whole = [_tensor(i, name) for i in inputs[1:]]
    sizes = {n.shape[0] for n in whole if n.shape}
    (size,) = sizes if len(sizes) == 1 else ("",)
    if not isinstance(size, int) or not 1 <= size <= MAX_ITERATIONS:
        raise Unsupported("a scan of an unknown number of samples", hint=_OPEN, where=name)
    plain = {"num_scan_inputs": attrs["num_scan_inputs"]}
    plain["scan_input_directions"] = attrs.get("directions")
    samples = []
    for at in range(size):
        given = [make("Gather", n, constant(np.array(at)), axis=0) for n in whole]
        samples.append([_tensor(v, name) for v in scanned(plain, given)])
    return [_joined(rows, 0) for rows in zip(*samples, strict=True)]


def _given(node: Held, name: str) -> Held:
    if node is None:
        raise Error("an input is missing", where=name)
    return node


def _tensor(value: Held, name: str) -> Node:
    if not isinstance(value, Node):
        raise Error("a tensor is missing", where=name)
    return value


def _known(node: Held) -> bool:
    """A condition that is known."""
    value = known_value(node) if isinstance(node, Node) else None
    assert value is not None
    return bool(value.any())


def _numbers(attrs: Mapping[str, Attr], key: str, count: int, name: str) -> list[int]:
    value = attrs.get(key)
    numbers = [int(v) for v in value if isinstance(v, int)] if isinstance(value, tuple) else []
    if numbers and len(numbers) != count:
        raise Error(f"{len(numbers)} {key} where {count} are needed", where=name)
    return numbers or [0] * count


def _joined(rows: Sequence[Node], axis: int) -> Node:
    """Nodes of one type -> stacked along a new axis."""
    places = constant(np.array([axis], np.int64))
    return make("Concat", *(make("Unsqueeze", row, places) for row in rows), axis=axis)
