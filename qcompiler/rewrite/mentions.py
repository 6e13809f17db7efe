"""Check that every pattern that names nodes in an option matches one.

Otherwise a misspelled name would silently have no effect: everything would be quantized, or pruned.
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
"""Pass options that name nodes; the last two as "PATTERN=BITS" and "PATTERN=METHOD"."""

Mention = tuple[str, str]
"""(flag or pass option it came from, pattern)."""


def named(node: Node, patterns: Sequence[str]) -> bool:
    """Does a pattern equal a node's operator or name, or match its whole name as a regex?"""
    for pattern in patterns:
        if pattern in (node.op, node.name):
            return True
        try:
            if re.fullmatch(pattern, node.name):
                return True
        except re.error as e:
            raise Error(f"{pattern!r} is not a node, operator or regular expression: {e}") from e
    return False


def exactly(names: Iterable[str]) -> tuple[str, ...]:
    """Node names -> patterns that match these nodes, and no operator of the same name."""
    return tuple(f"(?:{re.escape(name)})" for name in names)


def mentions(
    flags: Mapping[str, Sequence[str]], passes: Mapping[str, Mapping[str, object]]
) -> Iterator[Mention]:
    """Flags and their patterns, passes and their options -> every pattern with its origin."""
    for flag, patterns in flags.items():
        yield from ((flag, p) for p in patterns)
    for name, options in passes.items():
        for field in FIELDS:
            given = options.get(field, ())
            for pattern in given if isinstance(given, (tuple, list)) else ():
                plain = str(pattern).rpartition("=")[0] if field in FIELDS[2:] else str(pattern)
                yield f"--pass {name}{{{field}}}", plain


def demand_nodes(found: Sequence[Mention], model: Graph, graph: Graph) -> None:
    """Raise Error for a pattern that names no node of the model, nor of the folded graph; warn of
    one that matches only nodes that were folded away.
    """
    for where, pattern in found:
        if any(n.name and named(n, (pattern,)) for n in graph.nodes):
            continue
        if any(n.name and named(n, (pattern,)) for n in model.nodes):
            log.warning(
                "%s: the nodes named by %r were merged into others, so it has no effect; "
                "`qcompiler inspect --text` prints the remaining names",
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
    return "use a name, an operator or a regular expression; see `qcompiler inspect --text`"
