"""Errors for graphs that cannot be compiled, naming the nodes of the model responsible.

Kernels are compiled for known shapes. Where a shape depends on data (a Reshape's target shape, the
bounds of a Slice, the number of nonzero elements), later stages could only report "no kernel", so
the check runs as soon as everything foldable is folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qcompiler.errors import Error
from qcompiler.ir import Dim, Graph, Node, Type, walk

LISTED = 4
"""Most nodes an Error names."""

Reasons = Mapping[str, str]
"""A node's name -> why rules or generators skipped it."""


def demand_static(types: Mapping[str, Type]) -> None:
    """Raise Error if inputs (name -> type) have symbolic dimensions, naming them."""
    open_ = {name: t for name, t in types.items() if not t.static}
    if open_:
        symbols = sorted({str(d) for t in open_.values() for d in t.shape if isinstance(d, str)})
        raise Error(
            f"the size of {', '.join(symbols)} is open",
            where=", ".join(f"input {name}: {t}" for name, t in open_.items()),
            hint=f"{pins(open_)}, with a number for each <name>",
        )


def with_open_sizes(error: Error, inputs: Sequence[Node]) -> Error:
    """An Error from reading a model -> the same; if inputs have symbolic dimensions, a possible
    cause, its hint says how to pin them.
    """
    flags = pins({n.name: n.type for n in inputs})
    if not flags:
        return error
    hint = f"sizes of inputs are open, which may be why: {flags}, with a number for each <name>"
    return Error(
        error.what, where=error.where, hint=f"{error.hint}; {hint}" if error.hint else hint
    )


def pins(types: Mapping[str, Type]) -> str:
    """Input types by name -> the flags that pin their symbolic dimensions."""
    open_ = {name: t for name, t in types.items() if not t.static}
    return " ".join(f"--input-shape {name}={_to_pin(t.shape)}" for name, t in open_.items())


def _to_pin(shape: Sequence[Dim]) -> str:
    """A shape as in the flag, with <names> in place of numbers."""
    return "x".join(f"<{d}>" if isinstance(d, str) else str(d) for d in shape)


def demand_known(graph: Graph) -> None:
    """Raise Error for data-dependent shapes, naming the nodes they originate at."""
    begin = [n for n in graph.nodes if _open(n) and not any(_open(i) for i in n.operands)]
    if begin:
        more = f" and {len(begin) - LISTED} more" if len(begin) > LISTED else ""
        raise Error(
            f"the output shape depends on data: {'; '.join(map(_cause, begin[:LISTED]))}",
            where=", ".join(map(described, begin[:LISTED])) + more,
            hint="make that a constant (an initializer) of the model: shapes are fixed when "
            "compiling",
        )


def _open(node: Node) -> bool:
    return any(not t.static for t in node.types)


def described(node: Node) -> str:
    """A node as the model's author knows it: "mine (Reshape)"."""
    return f"{node.name or 'unnamed'} ({node.op})"


def _cause(node: Node) -> str:
    """What a node's shape depends on: its computed parameters, else its data."""
    place = {i: k for k, i in enumerate(node.inputs) if i is not None}
    computed = [i for i in node.operands[1:] if not i.is_constant]
    computed = computed or [i for i in node.operands if not i.is_constant]
    return ", ".join(f"input {place[i]} is {_origin(i)}" for i in computed)


def _origin(value: Node) -> str:
    if value.op == "input":
        return f"the model's input {value.name!r}"
    sources = [repr(n.name) for n in walk([value]) if n.op == "input"]
    return f"computed from the model's {', '.join(sources)} by {described(value)}"


def missing(nodes: Sequence[Node], reasons: Reasons) -> Error:
    """Nodes without a kernel -> the Error that names every one."""
    by_kind: dict[str, list[str]] = {}
    for node in nodes:
        kind = f"{node.op} of {node.operands[0].types[0].dtype if node.operands else node.dtype}"
        why = "; ".join(dict.fromkeys(_why(node, reasons)))
        by_kind.setdefault(kind, []).append((node.name or "unnamed") + (f" ({why})" * bool(why)))
    listed = (f"{kind}: {', '.join(dict.fromkeys(names))}" for kind, names in by_kind.items())
    return Error(
        f"no kernel yet for {'; '.join(listed)}",
        hint="--log-level info prints why each generator skipped it",
    )


def _why(node: Node, reasons: Reasons) -> Iterator[str]:
    """The rule's or generator's reason, and the inputs known at run time only."""
    if node.name in reasons:
        yield reasons[node.name]
    for place, i in enumerate(node.inputs):
        if place and i is not None and not i.is_constant:
            yield f"its input {place} is {_origin(i)}, known at run time only"
