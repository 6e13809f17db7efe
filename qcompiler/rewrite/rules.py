"""Pattern rewriting to a fixed point, and the registry of passes.

A rule is a pattern and a function that builds the replacement:

    @rule(op("BatchNormalization", op("Conv", ANY, CONST, OPTIONAL), CONST, CONST, CONST, CONST))
    def fold_batch_norm(batch_norm: Node, conv: Node) -> Node | Skip | None: ...

The function receives the nodes matched by `op(...)` and `taken(...)` patterns, in the order
written: `op("Add", op("Conv"), taken(CONST), commutes=True)` passes the sum, the convolution and
the constant, in either operand order. It returns the node that replaces the root; `Skip(reason)` if
the rule is meant for this match but cannot be applied (shown by --explain); or None if the match is
accidental. Matched nodes below the root must have no reader outside the match (checked here, once),
unless their pattern says `shared=True`.

Any other pass is a frozen dataclass, `graph -> graph`, whose fields are its
options:

    @graph_pass
    class FoldConstants:
        max_bytes: int = 64 << 20
        def __call__(self, graph: Graph) -> Graph: ...

It is registered under its class name in snake case. The first word of a rule's or pass's
name is its stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

from qcompiler.errors import Error, Skip
from qcompiler.ir import Graph, Node

STAGES = ("fold", "fuse", "prune", "quantize", "integer", "layout")
Explain = Callable[[str, Node, str], None]
"""Called with every Skip: (rule's name, root node, reason)."""

_MAX_SWEEPS = 200


@dataclass(frozen=True)
class Pattern:
    """What a node must be: one of `ops` on matching inputs, a constant, anything, or absent."""

    kind: str
    ops: frozenset[str] = frozenset()
    inputs: tuple[Pattern, ...] | None = None
    commutes: bool = False
    shared: bool = False
    taken: bool = False
    """Is the matched node passed to the rule?"""


ANY = Pattern("any")
CONST = Pattern("constant")
OPTIONAL = Pattern("optional")


def op(names: str, *inputs: Pattern, commutes: bool = False, shared: bool = False) -> Pattern:
    """A node of one of the operators "A|B". If `inputs` are given, they must match exactly (absent
    ones OPTIONAL); otherwise any inputs match.

    `commutes` also tries the first two inputs swapped.
    """
    return Pattern("op", frozenset(names.split("|")), inputs or None, commutes, shared, taken=True)


def taken(pattern: Pattern) -> Pattern:
    """ANY or CONST, with the matched node passed to the rule.

    A rule must not look for "the operand that is not this one": in x + x there is none.
    """
    return replace(pattern, taken=True)


Build = Callable[..., Node | Skip | None]


@dataclass(frozen=True)
class Rule:
    """A pattern and the function that builds the matched root's replacement."""

    name: str
    pattern: Pattern
    build: Build
    doc: str

    def __call__(self, graph: Graph) -> Graph:
        """Apply this rule alone, to a fixed point."""
        return rewrite(graph, [self])


class Pass(Protocol):
    """A frozen dataclass whose fields are options."""

    def __call__(self, graph: Graph) -> Graph:
        """Return an equal graph, the same one (`is`) if nothing changed."""


PASSES: dict[str, Rule | type[Pass]] = {}
P = TypeVar("P", bound=type[Any])


def rule(pattern: Pattern) -> Callable[[Build], Rule]:
    """Register a function as the rule named after it."""

    def register(build: Build) -> Rule:
        name = getattr(build, "__name__", "rule")
        made = Rule(name, pattern, build, build.__doc__ or "")
        _register(name, made)
        return made

    return register


def graph_pass(cls: P) -> P:
    """Make a class a frozen dataclass and register it under the snake case of its name."""
    made = cast(P, dataclass(frozen=True)(cls))
    _register(re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower(), made)
    return made


def _register(name: str, made: Rule | type[Pass]) -> None:
    if name in PASSES:
        raise ValueError(f"pass {name} is defined twice")
    if stage_of(name) not in STAGES:
        raise ValueError(f"the first word of {name} is not a stage ({', '.join(STAGES)})")
    PASSES[name] = made


def stage_of(name: str) -> str:
    """ "fold_batch_norm" -> "fold"."""
    return name.split("_")[0]


def rewrite(graph: Graph, rules: Iterable[Rule], explain: Explain | None = None) -> Graph:
    """Apply rules until none applies; the same graph (`is`) if none did."""
    by_op: dict[str, list[Rule]] = {}
    for r in rules:
        for name in sorted(r.pattern.ops):
            by_op.setdefault(name, []).append(r)
    for _ in range(_MAX_SWEEPS):
        sweep = _Sweep(graph, by_op, explain)
        swept = sweep.run()
        if swept is graph:
            return graph
        graph = swept
    raise unsettled(sweep.used)


def unsettled(names: Iterable[str]) -> Error:
    """The Error for passes that keep undoing each other's work."""
    return Error(
        f"passes never settle: {', '.join(sorted(names))}",
        hint="disable one with --disable-pass; if all are qcompiler's own, please report it",
    )


class _Sweep:
    """One walk over the graph, inputs first; each rule is tried once per node. O(nodes)."""

    def __init__(self, graph: Graph, by_op: dict[str, list[Rule]], explain: Explain | None) -> None:
        self.graph = graph
        self.by_op = by_op
        self.explain = explain
        self.reads: dict[Node, int] = {}
        self.used: set[str] = set()
        """Names of the rules that changed the graph."""

    def run(self) -> Graph:
        new: dict[Node, Node] = {}
        for node in self.graph.nodes:
            moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
            made = self.apply(moved, self.graph.readers[node])
            self.reads[made] = self.reads.get(made, 0) + self.graph.readers[node]
            new[node] = made
        return self.graph.with_outputs(new[o] for o in self.graph.outputs)

    def apply(self, node: Node, reads: int) -> Node:
        for r in self.by_op.get(node.op, ()):
            for matched in _match(r.pattern, node):
                if not self.private(matched):
                    continue
                made = r.build(*(n for p, n in matched if p.taken))
                if isinstance(made, Skip):
                    if self.explain is not None:
                        self.explain(r.name, node, made.reason)
                elif made is not None and made is not node:
                    _check(r, node, made)
                    self.used.add(r.name)
                    return (
                        made if made.name or made.op == "input" else replace(made, name=node.name)
                    )
        return node

    def private(self, matched: Sequence[tuple[Pattern, Node]]) -> bool:
        """Are the matched operators below the root read inside the match only?"""
        inside: dict[Node, int] = {}
        for node in {n for p, n in matched if p.kind == "op"}:
            for i in node.operands:
                inside[i] = inside.get(i, 0) + 1
        return all(
            n in self.reads and self.reads[n] <= inside[n]
            for p, n in matched[1:]
            if p.kind == "op" and not p.shared
        )


Match = tuple[tuple[Pattern, Node], ...]


def _match(pattern: Pattern, node: Node | None) -> Iterator[Match]:
    """Every match of a pattern at a node, as (pattern, node) pairs in the order written."""
    if node is None:
        if pattern.kind == "optional":
            yield ()
    elif pattern.kind in ("any", "optional"):
        yield ((pattern, node),)
    elif pattern.kind == "constant":
        if node.is_constant:
            yield ((pattern, node),)
    elif node.op in pattern.ops:
        if pattern.inputs is None:
            yield ((pattern, node),)
            return
        missing = len(pattern.inputs) - len(node.inputs)
        if missing < 0:
            return
        inputs = (*node.inputs, *[None] * missing)
        orders = [inputs, (inputs[1], inputs[0], *inputs[2:])] if pattern.commutes else [inputs]
        for order in orders:
            for rest in _match_all(pattern.inputs, order):
                yield ((pattern, node), *rest)


def _match_all(patterns: Sequence[Pattern], nodes: Sequence[Node | None]) -> Iterator[Match]:
    if not patterns:
        yield ()
        return
    for first in _match(patterns[0], nodes[0]):
        for rest in _match_all(patterns[1:], nodes[1:]):
            yield (*first, *rest)


def _check(r: Rule, root: Node, made: Node) -> None:
    """A replacement has the root's type; anything else is a bug of the rule."""
    fits = len(root.types) == len(made.types) and all(
        a.dtype == b.dtype
        and a.rank == b.rank
        and (a.shape == b.shape or not (a.static and b.static))
        for a, b in zip(root.types, made.types, strict=True)
    )
    if not fits:
        raise TypeError(f"rule {r.name} turned {root!r} into {made!r}")
