"""A graph that cannot be compiled -> an Error that says which node of the model is in the way, and
why.

Kernels are made for shapes that are known. Where a shape follows from data (the shape that a
Reshape reads, the ends of a Slice, how many numbers are not zero), no later stage can say more than
"no kernel": so it is said here, as soon as all that can be folded is folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qcompiler.errors import Error
from qcompiler.ir import Dim, Graph, Node, Type, walk

LISTED = 4
"""How many nodes an Error names."""

Reasons = Mapping[str, str]
"""A node's name -> why rules or generators left it alone."""


def demand_static(types: Mapping[str, Type]) -> None:
    """Types of a model's inputs, by name: refuse symbolic dimensions, naming the inputs to pin."""
    open_ = {name: t for name, t in types.items() if not t.static}
    if open_:
        symbols = sorted({str(d) for t in open_.values() for d in t.shape if isinstance(d, str)})
        raise Error(
            f"the size of {', '.join(symbols)} is open",
            where=", ".join(f"input {name}: {t}" for name, t in open_.items()),
            hint=f"{pins(open_)}, with a number for each <name>",
        )


def with_open_sizes(error: Error, inputs: Sequence[Node]) -> Error:
    """An Error of reading a model -> the same; where inputs have open sizes, which may be why, its
    hint says how to pin them.
    """
    flags = pins({n.name: n.type for n in inputs})
    if not flags:
        return error
    hint = f"sizes of inputs are open, which may be why: {flags}, with a number for each <name>"
    return Error(
        error.what, where=error.where, hint=f"{error.hint}; {hint}" if error.hint else hint
    )


def pins(types: Mapping[str, Type]) -> str:
    """Types of inputs, by name -> the flags that pin those of open sizes."""
    open_ = {name: t for name, t in types.items() if not t.static}
    return " ".join(f"--input-shape {name}={_asked(t.shape)}" for name, t in open_.items())


def _asked(shape: Sequence[Dim]) -> str:
    """A shape as a flag spells it, with <names> where numbers are to be given."""
    return "x".join(f"<{d}>" if isinstance(d, str) else str(d) for d in shape)


def demand_known(graph: Graph) -> None:
    """Refuse shapes that only running the model tells, naming where the first of them begin."""
    begin = [n for n in graph.nodes if _open(n) and not any(_open(i) for i in n.operands)]
    if begin:
        more = f" and {len(begin) - LISTED} more" if len(begin) > LISTED else ""
        raise Error(
            f"the shape of what it makes depends on data: {'; '.join(map(_cause, begin[:LISTED]))}",
            where=", ".join(map(said, begin[:LISTED])) + more,
            hint="make that a constant of the model (an initializer): shapes are fixed when "
            "compiling",
        )


def _open(node: Node) -> bool:
    return any(not t.static for t in node.types)


def said(node: Node) -> str:
    """A node as the model's author knows it: "mine (Reshape)"."""
    return f"{node.name or 'unnamed'} ({node.op})"


def _cause(node: Node) -> str:
    """What a node's shape follows from: its parameters, where they are computed; else its data."""
    place = {i: k for k, i in enumerate(node.inputs) if i is not None}
    computed = [i for i in node.operands[1:] if not i.is_constant]
    computed = computed or [i for i in node.operands if not i.is_constant]
    return ", ".join(f"input {place[i]} is {_origin(i)}" for i in computed)


def _origin(value: Node) -> str:
    if value.op == "input":
        return f"the model's input {value.name!r}"
    sources = [repr(n.name) for n in walk([value]) if n.op == "input"]
    return f"made of the model's {', '.join(sources)} by {said(value)}"


def missing(nodes: Sequence[Node], reasons: Reasons) -> Error:
    """Nodes that have a meaning but no kernel -> the Error that names every one."""
    by_kind: dict[str, list[str]] = {}
    for node in nodes:
        kind = f"{node.op} of {node.operands[0].types[0].dtype if node.operands else node.dtype}"
        told = "; ".join(dict.fromkeys(_why(node, reasons)))
        by_kind.setdefault(kind, []).append((node.name or "unnamed") + (f" ({told})" * bool(told)))
    listed = (f"{kind}: {', '.join(dict.fromkeys(names))}" for kind, names in by_kind.items())
    return Error(
        f"no kernel yet for {'; '.join(listed)}",
        hint="--log-level info says why each generator refused",
    )


def _why(node: Node, reasons: Reasons) -> Iterator[str]:
    """The rule's or generator's reason, and what the node reads that only running tells."""
    if node.name in reasons:
        yield reasons[node.name]
    for place, i in enumerate(node.inputs):
        if place and i is not None and not i.is_constant:
            yield f"its input {place} is {_origin(i)}, known at run time only"
