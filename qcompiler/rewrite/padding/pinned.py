"""Ranges of open sizes -> the sizes that kernels are made for, the largest first.

A run takes the least of these that its sizes fit into. Each has about half the elements of the one
before; the last are single positions. Not all are worth kernels of their own (plan/open_plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qcompiler.artifact.manifest import Symbol
from qcompiler.errors import Error, Skip
from qcompiler.ir import SIZE, Graph, placeholder
from qcompiler.rewrite.padding.frame import SIZED
from qcompiler.rewrite.padding.pad import Result, padded

MOST, LEAST = 5, 8
"""Most sizes, unless one is asked for besides; and the least size that is worth one."""
ROUND = 16
"""Sizes above this are multiples of it, as rows are computed some at a time; or of their step."""


def pinned(symbols: Sequence[Symbol]) -> list[tuple[int, ...]]:
    """Symbols -> numbers for them, each list of which fits into the one before."""
    found = [tuple(s.high for s in symbols)]
    for i in range(1, MOST):
        share = 0.5 ** (i / len(symbols))
        found.append(tuple(_rounded(s, share) for s in symbols))
    found.append(tuple(s.best for s in symbols))
    found = [sizes for i, sizes in enumerate(found) if not i or max(sizes) >= LEAST]
    if all(s.low == 1 for s in symbols):
        found.append(tuple(1 for _ in symbols))
    ordered = sorted(set(found), reverse=True)
    kept = ordered[:1]
    for sizes in ordered[1:]:
        if all(n <= m for n, m in zip(sizes, kept[-1], strict=True)):
            kept.append(sizes)
    return kept


def _rounded(symbol: Symbol, share: float) -> int:
    size = max(symbol.low, round(symbol.high * share))
    by = ROUND if size > ROUND and ROUND % symbol.step == 0 else symbol.step
    return min(symbol.high, -(-size // by) * by)


class Paddings:
    """A graph with symbols in its types -> padded graphs, with the same inputs, of the largest
    sizes and, when they are asked for, of `smaller` ones; `one`: of the largest alone. Raises Error
    as `padded`.
    """

    def __init__(self, graph: Graph, symbols: Sequence[Symbol], *, one: bool) -> None:
        self._graph, self._symbols = graph, symbols
        first, *others = pinned(symbols)
        made = padded(graph, _up_to(symbols, first))
        self._hidden = tuple(dict.fromkeys([*made.sizes, *(s.name for s in symbols)]))
        self.largest = _reading(made, self._hidden)
        self.smaller = () if one else tuple(others)

    def at(self, sizes: Sequence[int]) -> Result | Skip:
        """That of smaller sizes, or why there is none."""
        try:
            made = padded(self._graph, _up_to(self._symbols, sizes))
        except Error as e:  # a size that is largest in the middle of a range, and not at its end
            return Skip(str(e))
        if others := [s for s in made.sizes if s not in self._hidden]:
            return Skip(f"it computes with {', '.join(others)}, too")
        return _reading(made, self._hidden)


def _up_to(symbols: Sequence[Symbol], sizes: Sequence[int]) -> list[Symbol]:
    return [replace(s, high=n, best=n) for s, n in zip(symbols, sizes, strict=True)]


def _reading(made: Result, hidden: tuple[str, ...]) -> Result:
    """A padded graph that takes these sizes, some of which it may not read: kernels may."""
    known = {n.name: n for n in made.graph.inputs}
    given = [n for n in made.graph.inputs if not n.name.startswith(SIZE)]
    more = [known.get(f"{SIZE}{s}") or placeholder(f"{SIZE}{s}", SIZED) for s in hidden]
    return replace(made, graph=replace(made.graph, inputs=(*given, *more)), sizes=hidden)
