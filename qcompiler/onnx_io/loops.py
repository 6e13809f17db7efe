"""Loop and Scan -> their unrolled bodies.

The trip count must follow from constants and shapes: a Loop's maximum and condition, the length of
a Scan's sequences. Then every iteration's nodes are as if the file listed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Attr, Node, constant
from qcompiler.onnx_io.tensors import Unsupported
from qcompiler.ops import known_value, make

MAX_ITERATIONS = 4096
_OPEN = "export the model with a fixed number of iterations"

Body = Callable[[int, Sequence[Node]], Sequence[Node]]
"""(iteration, inputs of the body) -> its outputs."""


def loop(inputs: Sequence[Node | None], body: Body, name: str) -> list[Node]:
    """Loop(trip count, condition, carried values...) -> the final carried values, then the scan
    outputs, stacked along a new first axis."""
    most, going = (_known(i, name) for i in (*inputs[:2], None, None)[:2])
    state = [_given(i, name) for i in inputs[2:]]
    stacked: list[list[Node]] = []
    iteration = 0
    goes_on = constant(np.array(True))
    while (most is None or iteration < int(most)) and (going is None or bool(going)):
        if iteration == MAX_ITERATIONS:
            what = f"a loop of more than {MAX_ITERATIONS} iterations"
            raise Unsupported(what, hint=_OPEN, where=name)
        made = body(iteration, [constant(np.array(iteration, np.int64)), goes_on, *state])
        condition, state, rest = made[0], list(made[1 : 1 + len(state)]), made[1 + len(state) :]
        going = _known(condition, name)
        stacked = stacked or [[] for _ in rest]
        for rows, row in zip(stacked, rest, strict=True):
            rows.append(row)
        iteration += 1
    return [*state, *(_joined(rows, 0) for rows in stacked)]


def scan(
    attrs: Mapping[str, Attr], inputs: Sequence[Node | None], body: Body, name: str
) -> list[Node]:
    """Scan(carried values..., sequences...) -> the final carried values, then the stacked scan
    outputs."""
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
        raise Unsupported("sequences of unknown length", hint=_OPEN, where=name)
    if not 1 <= length <= MAX_ITERATIONS:
        raise Unsupported(f"a scan of {length} iterations", where=name)
    stacked: list[list[Node]] = []
    for iteration in range(length):
        pieces = [
            make(
                "Gather", s, constant(np.array(length - 1 - iteration if b else iteration)), axis=a
            )
            for s, a, b in zip(sequences, axes, back, strict=True)
        ]
        made = body(iteration, [*state, *pieces])
        state, rest = list(made[: len(state)]), made[len(state) :]
        stacked = stacked or [[] for _ in rest]
        for rows, row in zip(stacked, rest, strict=True):
            rows.append(row)
    to = _numbers(attrs, "scan_output_axes", len(stacked))
    backward = _numbers(attrs, "scan_output_directions", len(stacked))
    whole = [r[::-1] if b else r for r, b in zip(stacked, backward, strict=True)]
    return [*state, *(_joined(rows, axis) for rows, axis in zip(whole, to, strict=True))]


def _given(node: Node | None, name: str) -> Node:
    if node is None:
        raise Error("an input is missing", where=name)
    return node


def _known(node: Node | None, name: str) -> int | None:
    """An integer that must be known; None if absent."""
    if node is None:
        return None
    value = known_value(node)
    if value is None or value.size != 1:
        what = "a number of iterations known at run time only"
        raise Unsupported(what, hint=_OPEN, where=name)
    return int(value.reshape(()))


def _numbers(attrs: Mapping[str, Attr], key: str, count: int) -> list[int]:
    value = attrs.get(key)
    numbers = [int(v) for v in value if isinstance(v, int)] if isinstance(value, tuple) else []
    if numbers and len(numbers) != count:
        raise Error(f"{len(numbers)} {key} where {count} are needed")
    return numbers or [0] * count


def _joined(rows: Sequence[Node], axis: int) -> Node:
    """Nodes of one type -> stacked along a new axis."""
    places = constant(np.array([axis], np.int64))
    return make("Concat", *(make("Unsqueeze", row, places) for row in rows), axis=axis)
