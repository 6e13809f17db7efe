"""Samples of any sizes -> runs of a graph of the largest sizes, and what counts of their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size
from qcompiler.data.calibrate import Observe, Run, value_names
from qcompiler.errors import Error
from qcompiler.ir import SIZE, Array, Dim, Graph, Node
from qcompiler.onnx_io.dims import positive
from qcompiler.rewrite.padding.digits import Digits, is_open
from qcompiler.rewrite.padding.pad import Result
from qcompiler.rewrite.padding.traced import Dims, rooms, through

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Sampled:
    """A padded graph, the shapes of its inputs with their symbols, and what these may be."""

    padding: Result
    shapes: Mapping[str, Sequence[Dim]]
    symbols: Sequence[Symbol]
    """As the user has named them: one that may be 0 is one more in the graph."""

    @property
    def largest(self) -> Mapping[str, Sequence[Dim]]:
        """The shapes of its inputs where all sizes are largest."""
        top = {s.name: s.high for s in self.symbols}
        return {k: tuple(Size.of(d).at(top) for d in dims) for k, dims in self.shapes.items()}

    def sizes(self, sample: Mapping[str, Array]) -> Sizes:
        """The open sizes of a sample, as the graph has them. Raises Error for one that a run could
        not have.
        """
        pairs = [
            (d, n) for k, a in sample.items() for d, n in zip(self.shapes[k], a.shape, strict=True)
        ]
        found = {d: n for d, n in pairs if isinstance(d, str)}
        for symbol in self.symbols:
            count = found.get(symbol.name, symbol.high)
            if count not in range(symbol.low, symbol.high + 1, symbol.step):
                what = f"{symbol.name} is {count} in a sample, and is to be {symbol}"
                hint = f"resize the samples, or another --dim {symbol.name}=LO..HI"
                raise Error(what, where="--calibration", hint=hint)
        for d, n in pairs:
            if isinstance(d, str) and Size.of(d).at(found) != n:
                raise Error(f"{d} is {n} in a sample with {found}", where="--calibration")
        more = {s.name: positive(s).high - s.high for s in self.symbols}
        return {name: found[name] + by for name, by in more.items() if name in found}

    def whole(self, sample: Mapping[str, Array]) -> dict[str, Array]:
        """A sample -> all inputs of the padded graph."""
        sizes = self.sizes(sample)
        made: dict[str, Array] = {}
        for node in self.padding.graph.inputs:
            if node.name.startswith(SIZE):
                size = Size.of(node.name[len(SIZE) :]).at(sizes)
                made[node.name] = np.array([size], np.int32)
                continue
            given = sample[node.name]
            made[node.name] = np.zeros(node.type.dims, given.dtype)
            made[node.name][tuple(map(slice, given.shape))] = given
        return made

    def running(self, run: Run, graph: Graph) -> Run:
        """A run of the padded graph -> one that takes samples, and reports what counts."""
        names = value_names(graph)
        dims = {names[n]: d for n, d in self.dims(graph).items() if n in names}

        def made(sample: Mapping[str, Array], observe: Observe) -> None:
            sizes, top = self.sizes(sample), self.padding.top

            def told(name: str, array: Array) -> None:
                counts = valid(array, dims[name], sizes, top) if name in dims else array
                if counts.size:
                    observe(name, counts)

            run(self.whole(sample), told)

        return made

    def counting(self, graph: Graph) -> Callable[[Node, Array, Mapping[str, Array]], Array]:
        """A graph -> (a node of it, its value, the sample) -> what counts of the value."""
        dims = self.dims(graph)

        def made(node: Node, value: Array, sample: Mapping[str, Array]) -> Array:
            known = dims.get(node)
            return valid(value, known, self.sizes(sample), self.padding.top) if known else value

        return made

    def dims(self, graph: Graph) -> dict[Node, Dims]:
        """The digits of values: by their names, or as they follow from those of operands."""
        found: dict[Node, Dims] = {}
        for node in graph.nodes:
            if len(node.types) != 1:
                continue
            given = [self.padding.dims.get(node.name), through(node, found, self.padding.top)]
            fitting = [d for d in given if d is not None and self._fits(d, node)]
            if fitting:
                found[node] = fitting[0]
        return found

    def _fits(self, dims: Dims, node: Node) -> bool:
        return [rooms(g, self.padding.top) for g in dims] == list(node.shape)


def valid(array: Array, dims: Dims, sizes: Sizes, top: Sizes) -> Array:
    """The part of an array of the sizes `top` that counts, of the same rank."""
    if not any(map(is_open, dims)):
        return array
    return array[np.ix_(*(_kept(g, sizes, top) for g in dims))]


def _kept(digits: Digits, sizes: Sizes, top: Sizes) -> Array:
    """The positions of a dimension that are valid."""
    made = np.zeros(1, np.int64)
    for d in digits:
        most, count = (d, d) if isinstance(d, int) else (Size.of(d).at(s) for s in (top, sizes))
        made = (made[:, None] * most + np.arange(count)).ravel()
    return made
