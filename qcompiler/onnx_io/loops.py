"""Loop and Scan of a file -> their bodies one after the other, as often as they turn.

How often must follow from constants and shapes: the number of turns of a Loop and its condition,
the length of what a Scan goes through. Then every turn's nodes are as if the file listed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Attr, Node, constant
from qcompiler.onnx_io.tensors import Unsupported
from qcompiler.ops import known_value, make

MAX_TURNS = 4096
_OPEN = "export the model with a fixed number of turns"

Body = Callable[[int, Sequence[Node]], Sequence[Node]]
"""(number of the turn, what the body reads) -> what it gives."""


def loop(inputs: Sequence[Node | None], body: Body, name: str) -> list[Node]:
    """Loop(turns, condition, values...) -> the values after it, then what every turn gave, stacked
    along a new first axis."""
    most, going = (_known(i, name) for i in (*inputs[:2], None, None)[:2])
    state = [_given(i, name) for i in inputs[2:]]
    stacked: list[list[Node]] = []
    turn = 0
    goes_on = constant(np.array(True))
    while (most is None or turn < int(most)) and (going is None or bool(going)):
        if turn == MAX_TURNS:
            raise Unsupported(f"a loop of more than {MAX_TURNS} turns", hint=_OPEN, where=name)
        made = body(turn, [constant(np.array(turn, np.int64)), goes_on, *state])
        condition, state, rest = made[0], list(made[1 : 1 + len(state)]), made[1 + len(state) :]
        going = _known(condition, name)
        stacked = stacked or [[] for _ in rest]
        for rows, row in zip(stacked, rest, strict=True):
            rows.append(row)
        turn += 1
    return [*state, *(_joined(rows, 0) for rows in stacked)]


def scan(
    attrs: Mapping[str, Attr], inputs: Sequence[Node | None], body: Body, name: str
) -> list[Node]:
    """Scan(values..., sequences...) -> the values after the last turn, then what every turn gave,
    stacked."""
    given = [_given(i, name) for i in inputs]
    count = attrs["num_scan_inputs"]
    assert isinstance(count, int)
    if not 1 <= count <= len(given):
        raise Error(f"{count} sequences among {len(given)} inputs", where=name)
    state, sequences = given[:-count], given[-count:]
    axes = _numbers(attrs, "scan_input_axes", count)
    back = _numbers(attrs, "scan_input_directions", count)
    lengths = {s.shape[a] for s, a in zip(sequences, axes, strict=True)}
    (length,) = lengths if len(lengths) == 1 else ("",)
    if not isinstance(length, int):
        raise Unsupported("sequences of a length that is not known", hint=_OPEN, where=name)
    if not 1 <= length <= MAX_TURNS:
        raise Unsupported(f"a scan of {length} turns", where=name)
    stacked: list[list[Node]] = []
    for turn in range(length):
        pieces = [
            make("Gather", s, constant(np.array(length - 1 - turn if b else turn)), axis=a)
            for s, a, b in zip(sequences, axes, back, strict=True)
        ]
        made = body(turn, [*state, *pieces])
        state, rest = list(made[: len(state)]), made[len(state) :]
        stacked = stacked or [[] for _ in rest]
        for rows, row in zip(stacked, rest, strict=True):
            rows.append(row)
    to = _numbers(attrs, "scan_output_axes", len(stacked))
    turned = _numbers(attrs, "scan_output_directions", len(stacked))
    whole = [r[::-1] if b else r for r, b in zip(stacked, turned, strict=True)]
    return [*state, *(_joined(rows, axis) for rows, axis in zip(whole, to, strict=True))]


def _given(node: Node | None, name: str) -> Node:
    if node is None:
        raise Error("an input is missing", where=name)
    return node


def _known(node: Node | None, name: str) -> int | None:
    """A number that must be known; None where there is none."""
    if node is None:
        return None
    value = known_value(node)
    if value is None or value.size != 1:
        what = "a number of turns that only running the model tells"
        raise Unsupported(what, hint=_OPEN, where=name)
    return int(value.reshape(()))


def _numbers(attrs: Mapping[str, Attr], key: str, count: int) -> list[int]:
    value = attrs.get(key)
    numbers = [int(v) for v in value if isinstance(v, int)] if isinstance(value, tuple) else []
    if numbers and len(numbers) != count:
        raise Error(f"{len(numbers)} {key} where {count} are needed")
    return numbers or [0] * count


def _joined(rows: Sequence[Node], axis: int) -> Node:
    """Nodes of one type -> one with a new axis."""
    places = constant(np.array([axis], np.int64))
    return make("Concat", *(make("Unsqueeze", row, places) for row in rows), axis=axis)
