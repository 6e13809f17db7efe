"""The patterns that options name nodes by, and the graphs -> nothing, or an Error that says which
pattern names no node.

A misspelt name would else be passed over in silence: everything is quantized, or pruned.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qcompiler.errors import Error
from qcompiler.ir import Graph, Node
from qcompiler.ops import OPERATORS

log = logging.getLogger(__name__)

FIELDS = ("include", "exclude", "layers", "ranges")
"""Options of passes that name nodes; the last two as "PATTERN=BITS" and "PATTERN=METHOD"."""

Mention = tuple[str, str]
"""(where it was written, the pattern)."""


def named(node: Node, patterns: Sequence[str]) -> bool:
    """Whether a node's operator, its name, or a regular expression of the whole name is listed."""
    for pattern in patterns:
        if pattern in (node.op, node.name):
            return True
        try:
            if re.fullmatch(pattern, node.name):
                return True
        except re.error as e:
            raise Error(f"{pattern!r} is no node, operator or regular expression: {e}") from e
    return False


def exactly(names: Iterable[str]) -> tuple[str, ...]:
    """Names of nodes -> patterns that match these, and no operator of such a name."""
    return tuple(f"(?:{re.escape(name)})" for name in names)


def mentions(
    flags: Mapping[str, Sequence[str]], passes: Mapping[str, Mapping[str, object]]
) -> Iterator[Mention]:
    """Flags and their patterns, passes and their options -> every pattern, and where it stands."""
    for flag, patterns in flags.items():
        yield from ((flag, p) for p in patterns)
    for name, options in passes.items():
        for field in FIELDS:
            given = options.get(field, ())
            for pattern in given if isinstance(given, (tuple, list)) else ():
                plain = str(pattern).rpartition("=")[0] if field in FIELDS[2:] else str(pattern)
                yield f"--pass {name}{{{field}}}", plain


def demand_nodes(found: Sequence[Mention], model: Graph, graph: Graph) -> None:
    """Refuse a pattern that names no node of the model, nor of the graph that was made of it by
    folding; warn of one that names only nodes that were folded away.
    """
    for where, pattern in found:
        if any(named(n, (pattern,)) for n in graph.nodes):
            continue
        if any(named(n, (pattern,)) for n in model.nodes):
            log.warning(
                "%s: what %r names was merged into other nodes and has no effect by that name; "
                "`qcompiler inspect --text` prints the names there are",
                where,
                pattern,
            )
        elif pattern in OPERATORS:
            log.warning("%s: the model has no operator %s", where, pattern)
        else:
            raise Error(f"{pattern!r} names no node", where=where, hint=_nearest(pattern, model))


def _nearest(pattern: str, model: Graph) -> str:
    names = [n.name for n in model.nodes if n.name and not n.is_constant]
    names += sorted({n.op for n in model.nodes})
    near = difflib.get_close_matches(pattern, names, 3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "names, operators, or regular expressions of whole names; `qcompiler inspect --text`"
