"""A model that reads what its last run wrote, as a decoder reads its caches: that stays in memory
of its own, and no run copies it.

An input that is bound to an output has two buffers, which change places after every run; or one, if
the model works there in place, as where rows are added to a cache: then only these are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from qcompiler.artifact.manifest import Value, Variant
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array, Context
from qcompiler.runtime.feeds import array_of
from qcompiler.runtime.library import Memory, aligned, aligned_copy
from qcompiler.runtime.model import Interface, array_of_dtype, arrays_in_order, input_specs
from qcompiler.runtime.open_batch import fits
from qcompiler.runtime.open_sizes import Sizes

Pairs = Mapping[str, str]
"""Input -> the output whose value it reads in the next run."""


@dataclass(frozen=True)
class Runs:
    """What runs: `launch(context, first, last)` runs steps of the model in a context that is `new`.
    Pairs `in_place` may have one buffer.
    """

    launch: Callable[[Context, int, int], None]
    new: Callable[[], Context]
    model: Interface
    variant: Variant


class Bound:
    """Runs of a model that follow each other; made by `Model.bind`. One thread uses it at a time.

    What a bound input reads is zeros first, and after a run that failed what it was before.
    """

    def __init__(self, runs: Runs, pairs: Pairs) -> None:
        """Raises Error for what is no input or output, is bound twice, or does not fit."""
        self._runs, self.pairs, model = runs, dict(pairs), runs.model
        self._context = runs.new()
        inputs, outputs = ({v.name: v for v in side} for side in (model.inputs, model.outputs))
        self._ins, self._outs = list(inputs), list(outputs)
        specs = {spec[1]: spec for spec in input_specs(model.inputs)}
        self._now: dict[str, Memory] = {}
        self._next: dict[str, Memory] = {}
        for name, source in self.pairs.items():
            value = _named(inputs, name, "input")
            self._demand_fit(value, _named(outputs, source, "output"))
            now = self._now[name] = _zeros(*specs[name][2:])
            one = (name, source) in runs.variant.in_place
            self._next[name] = now if one else _zeros(*specs[name][2:])
        if len(set(self.pairs.values())) < len(self.pairs):
            raise Error("an output is bound to two inputs")
        self._free = [spec for name, spec in specs.items() if name not in self.pairs]
        self._bound = set(self.pairs.values())
        self.inputs = tuple(v for v in model.inputs if v.name not in self.pairs)
        self.outputs = tuple(v for v in model.outputs if v.name not in self._bound)

    def bind(self, input: str, output: str) -> Bound:
        """The same with one more input that reads what an output was; all are zeros again."""
        if input in self.pairs:
            raise Error("it is bound already", where=f"input {input!r}")
        return type(self)(self._runs, {**self.pairs, input: output})

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """{input that is not bound: array} -> {output that is not bound: array}."""
        given = iter(arrays_in_order(self._free, inputs))
        arrays = [None if n in self._now else next(given) for n in self._ins]
        writes = {self._outs.index(o): self._next[i] for i, o in self.pairs.items()}
        reads = {self._ins.index(i): memory for i, memory in self._now.items()}
        kept = self._context.take(arrays, reads)
        outputs = self._context.make(writes)
        self._runs.launch(self._context, 0, len(self._runs.variant.steps))
        outputs = self._context.cut(outputs)
        del kept
        self._now, self._next = self._next, self._now
        return {n: a for n, a in zip(self._outs, outputs) if n not in self._bound}

    def value(self, input: str) -> Array:
        """A copy of what a bound input reads next."""
        return self._memory(input).array.copy()

    def put(self, input: str, array: Any) -> None:
        """Let a bound input read this next."""
        held, given = self._memory(input).array, array_of(array, f"input {input!r}")
        if given.dtype != held.dtype or given.shape != held.shape:
            what = f"{given.dtype}{list(given.shape)} given, {held.dtype}{list(held.shape)} wanted"
            raise Error(what, where=f"input {input!r}")
        held[...] = given

    def reset(self) -> None:
        """Let all bound inputs read zeros next."""
        for memory in self._now.values():
            memory.array[...] = 0

    def _demand_fit(self, value: Value, source: Value) -> None:
        if (value.dtype, value.dims) != (source.dtype, source.dims):
            what = f"{source} does not fit {value}"
            hint = (
                "a cache must have the same type in and out: export one of a fixed greatest length"
            )
            raise Error(what, where=f"input {value.name!r}", hint=hint)

    def _memory(self, input: str) -> Memory:
        if input not in self._now:
            raise Error("it is not bound", where=f"input {input!r}")
        return self._now[input]


class OpenBound(Bound):
    """The same of a model with open sizes, whose caches grow: a bound input has the size that its
    output had, the least that it may have at first. Memory is that of the largest sizes, laid out
    anew when steps for larger ones run.
    """

    def __init__(self, runs: Runs, pairs: Pairs) -> None:
        super().__init__(runs, pairs)
        model = runs.model
        self._sizes = Sizes(model.manifest, runs.variant)
        self._values = {v.name: v for v in (*model.inputs, *model.outputs)}
        self._laid = {name: memory.array.shape for name, memory in self._now.items()}
        self._held: dict[str, tuple[int, ...]] = {}
        self.reset()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """{input that is not bound: array} -> {output that is not bound: array}."""
        sizes, context = self._sizes, self._context
        given = iter(arrays_in_order(self._free, inputs))
        arrays = [self._rows(n) if n in self._now else next(given) for n in self._ins]
        run = sizes.run(arrays)
        for i, (name, shape) in enumerate(zip(self._ins, run.rooms)):
            if name in self._now:
                self._lay(name, shape)
                arrays[i] = _first(self._now[name].array, shape)
        kept = [aligned_copy(a) for a in sizes.padded(arrays, run.rooms)]
        context.frame.fill(kept)
        sizes.enter(context, run.hidden)
        outputs = context.make({self._outs.index(o): self._next[i] for i, o in self.pairs.items()})
        (steps,) = run.fitted.batches
        self._runs.launch(context, steps.first, steps.last)
        context.demand_fit()
        del kept
        own = dict(zip(self._outs, run.own))
        for name, output in self.pairs.items():
            self._held[name] = own[output]
        self._now, self._next = self._next, self._now
        made = {}
        for name, array, shape in zip(self._outs, outputs, run.made):
            if name not in self._bound:
                valid = map(slice, own[name])
                made[name] = _first(array, shape)[tuple(valid)].copy()
        return made

    def value(self, input: str) -> Array:
        """A copy of what a bound input reads next."""
        self._memory(input)
        return self._rows(input).copy()

    def put(self, input: str, array: Any) -> None:
        """Let a bound input read this next, of any size that it may have."""
        whole, value = self._memory(input).array, self._values[input]
        given = array_of_dtype(value, whole.dtype, array)
        room = zip(given.shape, whole.shape)
        if not fits(value.dims, given.shape) or any(n > most for n, most in room):
            raise Error(f"{list(given.shape)} given, {value} wanted", where=f"input {input!r}")
        self._laid[input] = whole.shape
        self._fill(input, given)

    def reset(self) -> None:
        """Let all bound inputs be of the least size that they may have, of zeros, next."""
        least = {s.name: s.low for s in self._runs.model.manifest.symbols}
        for name, memory in self._now.items():
            memory.array[...] = 0
            self._held[name] = self._values[name].at(least)

    def _rows(self, name: str) -> Array:
        """What a bound input reads next, where it lies."""
        laid = _first(self._now[name].array, self._laid[name])
        return laid[tuple(map(slice, self._held[name]))]

    def _lay(self, name: str, shape: tuple[int, ...]) -> None:
        """Lay a bound input out as an array of this shape."""
        if shape != self._laid[name]:
            kept = self._rows(name).copy()
            self._laid[name] = shape
            self._fill(name, kept)

    def _fill(self, name: str, array: Array) -> None:
        self._now[name].array[...] = 0
        self._held[name] = array.shape
        self._rows(name)[...] = array

    def _demand_fit(self, value: Value, source: Value) -> None:
        if value.room != source.dims or value.dtype != source.dtype:
            super()._demand_fit(value, source)


def _zeros(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Memory:
    made = aligned(dtype, shape)
    made.array[...] = np.zeros((), dtype)
    return made


def _named(values: Mapping[str, Value], name: str, what: str) -> Value:
    if name not in values:
        raise Error(f"no such {what}", where=repr(name), hint=f"{what}s: {', '.join(values)}")
    return values[name]


def _first(array: Array, shape: tuple[int, ...]) -> Array:
    """The first elements of an array's memory, in another shape."""
    return array.reshape(-1)[: prod(shape)].reshape(shape)
