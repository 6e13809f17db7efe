"""A run of open sizes: arrays of any sizes -> those of the largest, in which kernels run, and back.

What lies behind an array's end may be anything: what is made of it is never read (rewrite/padding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.artifact.manifest import Batch, Manifest, Variant
from qcompiler.artifact.sizes import Size
from qcompiler.runtime.arrays import Array, Context, Kind
from qcompiler.runtime.library import aligned
from qcompiler.runtime.open_batch import rounds, sizes_of

HIDDEN: Kind = (np.dtype(np.int32), (1,))
"""dtype and shape of an input that says a size of the run."""
BEHIND: Mapping[str, int] = {}
"""What lies behind an array's end, by the kind of its dtype; 0 where it does not say. Nothing
depends on it, which tests make sure of; only 0 is sure to be no slow number. It is 0 behind an
input with room for more."""

RUNS = 256
"""For so many shapes of inputs, what a run of them is stays known."""

Found = Mapping[str, int]
"""The open sizes of a run."""
Dims = Sequence["int | Size"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fitted:
    """The sizes in which a run's kernels run, and the batches of steps to run."""

    sizes: Found
    batches: Sequence[Batch]
    count: int = 1
    """How many samples they compute."""


@dataclass(frozen=True)
class Run:
    """What all runs of inputs of some shapes have in common."""

    fitted: Fitted
    rooms: Sequence[Shape]
    """The shapes of inputs as kernels read them."""
    made: Sequence[Shape]
    """Those of outputs as kernels make them."""
    own: Sequence[Shape]
    """Those of outputs of the run."""
    hidden: Sequence[int]
    """The sizes that kernels read."""


class Sizes:
    """What a manifest says of open sizes, ready for runs."""

    def __init__(self, manifest: Manifest, variant: Variant) -> None:
        self._manifest, self._runs = manifest, dict[tuple[Shape, ...], Run]()
        self.batch = manifest.symbols[0].name if variant.batches else ""
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self._taken = [_dims(v.room or v.dims) for v in self.inputs]
        self._made = [_dims(v.dims) for v in self.outputs]
        self._hidden = [Size.of(s) for s in manifest.sizes]
        names = [s.name for s in manifest.symbols if s.name != self.batch]
        self._pinned = [
            Fitted(dict(zip(names, p.sizes)), (Batch(1, p.first, p.last, 0),))
            for p in reversed(variant.pinned)
        ] or [Fitted({}, variant.batches)]

    def fitting(self, found: Found) -> Fitted:
        """The least sizes that kernels were made for and these fit into, but for the batch."""
        fits = (p for p in self._pinned if all(found[k] <= n for k, n in p.sizes.items()))
        one = next(fits)
        if not self.batch:
            return one
        count = found[self.batch]
        return Fitted({**one.sizes, self.batch: count}, one.batches, count)

    def run(self, shapes: tuple[Shape, ...]) -> Run:
        """What a run of inputs of these shapes is. Raises Error as `sizes_of`."""
        run = self._runs.get(shapes)
        if run is None:
            found = sizes_of(self._manifest, shapes)
            fitted = self.fitting(found)
            sides = (self._taken, fitted.sizes), (self._made, fitted.sizes), (self._made, found)
            rooms, made, own = ([_at(dims, at) for dims in side] for side, at in sides)
            run = Run(fitted, rooms, made, own, [size.at(found) for size in self._hidden])
            if len(self._runs) >= RUNS:
                self._runs.clear()
            self._runs[shapes] = run
        return run

    def padded(self, arrays: Sequence[Array], rooms: Sequence[Shape]) -> list[Array]:
        """Arrays of a run -> arrays of these shapes."""
        return [
            _padded(a, shape, {} if v.room else BEHIND)
            for v, a, shape in zip(self.inputs, arrays, rooms)
        ]

    def enter(self, context: Context, hidden: Sequence[int]) -> None:
        """Enter the sizes that kernels read."""
        for at, size in enumerate(hidden, len(self.inputs)):
            context.stage(at)[0] = size


def turns(manifest: Manifest, variant: Variant, arrays: Sequence[Array]) -> list[int]:
    """How often each step runs for these inputs."""
    if not manifest.symbols:
        return [1] * len(variant.steps)
    fitted = Sizes(manifest, variant).fitting(sizes_of(manifest, [a.shape for a in arrays]))
    found = [0] * len(variant.steps)
    for batch, _, times in rounds(fitted.batches, fitted.count):
        for step in range(batch.first, batch.last):
            found[step] += times
    return found


def first(array: Array, shape: Shape) -> Array:
    """An output of a run, of what kernels made."""
    return array if array.shape == shape else np.array(array[tuple(map(slice, shape))])


def _dims(dims: Sequence[int | str]) -> Dims:
    return [d if isinstance(d, int) else Size.of(d) for d in dims]


def _at(dims: Dims, sizes: Found) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else d.at(sizes) for d in dims)


def _padded(array: Array, shape: tuple[int, ...], behind: Mapping[str, int]) -> Array:
    """An array at the begin of one of a larger shape, with what lies behind."""
    if array.shape == shape:
        return array
    made = aligned(array.dtype, shape).array
    made.fill(behind.get(array.dtype.kind, 0))
    made[tuple(map(slice, array.shape))] = array
    return made
