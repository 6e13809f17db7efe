"""A graph with symbols -> which of its sizes stay open, and how: the batch by rounds over samples
that do not meet, others by padding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import MAX_ELEMENTS, Graph
from qcompiler.onnx_io.dims import as_asked, positive
from qcompiler.plan.alone import demand_alone
from qcompiler.plan.plan import Opened
from qcompiler.rewrite.padding.pad import Result

log = logging.getLogger(__name__)


def opened(
    graph: Graph, fold: Callable[[], Graph], symbols: Sequence[Symbol], best: Mapping[str, int]
) -> Opened:
    """A graph as read, what folds it, the symbols in it, and what they are asked to be best at ->
    what stays open. Raises Error where that is known to be impossible.
    """
    first = {n.shape[0] if n.type.rank else 0 for n in graph.inputs}
    batch: Symbol | None = next((s for s in symbols if first == {s.name}), None)
    others = [s for s in symbols if s is not batch]
    if batch is not None:
        try:
            demand_alone(fold(), Size.of(batch.name), {s.name for s in others})
            _demand_rows(graph, batch, others)
        except Error as e:
            if batch.high == MAX_ELEMENTS:
                raise
            log.warning("%s; a run computes as many as the next larger batch of a few", e)
            others, batch = [batch, *others], None
    inner = [replace(s, best=best.get(s.name, s.high)) for s in others]
    for symbol in inner:
        if symbol.high == MAX_ELEMENTS:
            hint = "name the largest: --dim NAME=LO..HI"
            raise Error(f"{symbol.name} has no upper bound", where="--dim", hint=hint)
    sides = [
        tuple(tuple(as_asked(d, symbols) for d in n.type.shape) for n in side)
        for side in (graph.inputs, graph.results.values())
    ]
    kept = [] if batch is None else [replace(batch, best=1) if others else batch]
    return Opened((*kept, *inner), (sides[0], sides[1]), batched=bool(kept))


def _demand_rows(graph: Graph, batch: Symbol, others: Sequence[Symbol]) -> None:
    """Raise Error unless outputs with other open sizes have rows for each sample, so many each."""
    for name, node in graph.results.items() if others else ():
        if Size.of(node.type.shape[0]).symbols != {batch.name}:
            raise Error(
                f"the output {name} is not one for each sample: {list(node.type.shape)}",
                hint=f"pin one: --dim {batch.name}=N",
            )


def fitted(asked: Opened, made: Result) -> Opened:
    """What stays open, and the graph of the largest sizes -> the same with the sizes that it reads,
    and the shapes in memory of inputs with room for more.
    """
    sizes = tuple(str(as_asked(Size.of(s), asked.inner)) for s in made.sizes)
    rooms = {k: tuple(as_asked(d, asked.inner) for d in v) for k, v in made.rooms.items()}
    if asked.batched:  # the graph is that of one sample
        rooms = {k: (asked.symbol.name, *v[1:]) for k, v in rooms.items()}
    return replace(asked, sizes=sizes, rooms=rooms)


def as_named(asked: Opened, sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes as types have them -> as the user has named them."""
    more = (positive(s).high - s.high for s in asked.inner)
    return tuple(n - m for n, m in zip(sizes, more, strict=True))
