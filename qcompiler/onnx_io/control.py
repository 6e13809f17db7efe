"""If, Loop, Scan and SequenceMap: graphs among a node's attributes -> the values they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
from onnx import GraphProto

from qcompiler.errors import Skip
from qcompiler.ir import Attr, Dim, Node, constant
from qcompiler.onnx_io.bounded import Bounds
from qcompiler.onnx_io.call import Call
from qcompiler.onnx_io.carried import chosen, unlike
from qcompiler.onnx_io.loops import PIN, batched_scan, loop, most_iterations, rolled_scan, scan
from qcompiler.onnx_io.rolled import Rolling, is_worth
from qcompiler.onnx_io.sequences import Absent, Held, Items, merged
from qcompiler.onnx_io.settle import Settling
from qcompiler.onnx_io.tensors import Unsupported
from qcompiler.ops import known_value, make
from qcompiler.ops.known_sizes import known_sizes

Branch = Callable[[GraphProto, str, Sequence[Held]], Sequence[object]]
"""(graph, name, its inputs) -> its outputs; any but Node, Items and Absent is missing."""

Attempt = Callable[[Callable[[], Sequence[Held]]], Sequence[Held] | Skip]
"""(what makes values) -> the values; or why it cannot, and nothing of them is left."""

OPERATORS = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def controlled(
    s: Settling,
    inputs: Sequence[Held],
    graphs: Mapping[str, GraphProto],
    branch: Branch,
    bounds: Bounds,
    attempt: Attempt,
    batched: bool = False,
) -> Sequence[object]:
    """A call of one of OPERATORS, its graphs -> its outputs. `attempt` reads what may turn out to
    make no sense; `batched`: a Scan of opset 8.
    """
    call = s.call
    if call.op == "If":
        return _choice(s, inputs[0], graphs, branch, bounds)
    where = f"{call.name} ({call.op})"

    def body(iteration: object, given: Sequence[Held], going: Node | None = None) -> Sequence[Held]:
        """`going`: runs in which it is false do not come to this iteration."""
        wanted = nullcontext() if going is None else bounds.checks.only_if(going, True)
        with wanted:
            made = branch(graphs["body"], f"{call.name}/{iteration}", given)
        held = [v for v in made if isinstance(v, (Node, Items, Absent))]
        if len(held) < len(made):
            raise Unsupported("a body with unsupported operators", where=where)
        return held

    def rolling() -> Rolling:
        return Rolling(s, bounds.checks, graphs["body"])

    if call.op == "SequenceMap":
        return _mapped(call, inputs, body)
    if call.op == "Loop":
        size = _most(call, inputs[0], bounds)
        most = None if isinstance(size, str) else most_iterations(s, inputs, size)
        if is_worth(most, graphs["body"]):
            made = attempt(lambda: rolling().loop(inputs, body))
            if not isinstance(made, Skip):
                return made
            if isinstance(size, str):
                raise call.unsupported(f"{size} iterations, an open size: {made.reason}", PIN)
        return loop(s, inputs, body, where, int(size))

    def scanned(attrs: Mapping[str, Attr], given: Sequence[Held]) -> Sequence[Held]:
        made = attempt(lambda: rolled_scan(rolling(), attrs, given, body, where))
        if not isinstance(made, Skip):
            return made
        return scan(attrs, given, body, where, made.reason)

    if batched:
        return batched_scan(call.attrs, inputs, scanned, where)
    return scanned(call.attrs, inputs)


def _most(call: Call, limit: Held, bounds: Bounds) -> Dim:
    """The most that a Loop's trip count may be where data decide it; the count, if it is an open
    size; 0: neither.
    """
    sizes = known_sizes(bounds.twin(limit)) if isinstance(limit, Node) else None
    if sizes is None:
        return 0
    if sizes.size != 1:
        raise call.error(f"its trip count is {sizes.size} numbers")
    (size,) = sizes.ravel()
    return bounds.most(size) if bounds.known(size) else size


def _choice(
    s: Settling,
    condition: Held,
    graphs: Mapping[str, GraphProto],
    branch: Branch,
    bounds: Bounds,
) -> Sequence[object]:
    """An If with a constant condition -> the outputs of the branch taken.

    With a condition known at run time only, both branches are computed (they have no side effects)
    and one result is selected; where their sizes differ, data decide the size of the result.
    """
    name = s.call.name
    assert isinstance(condition, Node)
    known = known_value(condition)
    if known is not None:
        return branch(graphs["then_branch" if known.any() else "else_branch"], name, ())
    sides = [branch(graphs[key], f"{name}/{key}", ()) for key in ("then_branch", "else_branch")]
    if len(sides[0]) != len(sides[1]):
        raise s.call.error("its branches have different numbers of outputs")
    no_dims = constant(np.zeros(0, np.int64), f"{name}.no_dims")
    scalar = make("Reshape", condition, no_dims, name=f"{name}.condition")
    picked: list[object] = []
    for yes, no in zip(*sides, strict=True):
        held = (Node, Items, Absent)
        if isinstance(yes, Node) and isinstance(no, Node) and unlike(bounds, yes, no):
            picked.append(chosen(s, bounds, scalar, yes, no))
        elif isinstance(yes, held) and isinstance(no, held):
            bounds.demand_none_in(s.call, (yes, no))
            picked.append(merged(s, scalar, yes, no))
        else:
            picked.append(yes if not isinstance(yes, held) else no)
    return picked


def _mapped(
    call: Call,
    inputs: Sequence[Held],
    body: Callable[[int, Sequence[Held]], Sequence[Held]],
) -> Sequence[object]:
    """The body on every element of the first sequence, with those of the others, and tensors."""
    first = inputs[0]
    if not isinstance(first, Items):
        raise call.error("the first input is not a sequence of a known length")
    rows: list[list[Node]] = [[] for _ in range(call.outputs)]
    for at in range(len(first.nodes)):
        given: list[Held] = []
        for i in inputs:
            if isinstance(i, Items) and len(i.nodes) != len(first.nodes):
                raise call.error("its sequences have different lengths")
            given.append(i.nodes[at] if isinstance(i, Items) else i)
        for row, value in zip(rows, body(at, given), strict=True):
            if not isinstance(value, Node):
                raise call.error("its body makes a sequence")
            row.append(value)
    return [Items(tuple(row)) for row in rows]
