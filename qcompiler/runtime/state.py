"""A model that reads what its last run wrote, as a decoder reads its caches: that stays in memory
of its own, and no run copies it.

An input that is bound to an output has two buffers, which change places after every run; or one, if
the model works there in place, as where rows are added to a cache: then only these are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from qcompiler.artifact.manifest import Value, Variant
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array, Context
from qcompiler.runtime.feeds import array_of
from qcompiler.runtime.library import Memory, aligned, aligned_copy
from qcompiler.runtime.model import Interface, array_of_dtype, arrays_in_order, input_specs
from qcompiler.runtime.open_batch import fits, in_batches
from qcompiler.runtime.open_sizes import Shape, Sizes, first

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
        self._specs = specs = {spec[1]: spec for spec in input_specs(model.inputs)}
        self._now: dict[str, Memory] = {}
        self._next: dict[str, Memory] = {}
        for name, source in self.pairs.items():
            value = _named(inputs, name, "input")
            self._demand_fit(value, _named(outputs, source, "output"))
            self._allot(name, specs[name][3])
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

    def _allot(self, name: str, shape: Shape) -> None:
        """Let a bound input read zeros next, in memory of this shape."""
        dtype = self._specs[name][2]
        now = self._now[name] = _zeros(dtype, shape)
        one = (name, self.pairs[name]) in self._runs.variant.in_place
        self._next[name] = now if one else _zeros(dtype, shape)

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

    The first run, or array put, decides an open batch; all that follow have that, until `reset`.
    """

    def __init__(self, runs: Runs, pairs: Pairs) -> None:
        super().__init__(runs, pairs)
        model = runs.model
        self._sizes = Sizes(model.manifest, runs.variant)
        self._values = {v.name: v for v in model.inputs}
        self._made = [spec[2] for spec in input_specs(model.outputs)]
        self._laid = {name: memory.array.shape for name, memory in self._now.items()}
        self._held: dict[str, Shape] = {}
        self.reset()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """{input that is not bound: array} -> {output that is not bound: array}."""
        sizes, context, variant = self._sizes, self._context, self._runs.variant
        free = arrays_in_order(self._free, inputs)
        held = self._held_by(len(free[0])) if sizes.batch and free else self._held
        arrays = {spec[1]: array for spec, array in zip(self._free, free)}
        run = sizes.run(tuple([held[n] if n in held else arrays[n].shape for n in self._ins]))
        self._begin(held)
        for name, shape in zip(self._ins, run.rooms):
            if name in held:
                self._lay(name, shape)
                arrays[name] = _first(self._now[name], shape).array
        taken = [*map(aligned_copy, sizes.padded([arrays[n] for n in self._ins], run.rooms))]
        nexts = {source: self._next[name] for name, source in self.pairs.items()}
        made = [
            _first(nexts[n], shape) if n in nexts else aligned(dtype, shape)
            for n, shape, dtype in zip(self._outs, run.made, self._made)
        ]
        sizes.enter(context, run.hidden)
        how = run.fitted.batches, taken, made, run.fitted.count, len(run.hidden)
        launch = partial(self._runs.launch, context)
        in_batches(context.frame, launch, *how, again=not variant.in_place)
        context.demand_fit()
        own = dict(zip(self._outs, run.own))
        self._held = {name: own[source] for name, source in self.pairs.items()}
        self._now, self._next, self._fresh = self._next, self._now, False
        outputs = zip(self._outs, made)
        return {n: first(m.array, own[n]) for n, m in outputs if n not in nexts}

    def value(self, input: str) -> Array:
        """A copy of what a bound input reads next."""
        self._memory(input)
        return self._rows(input).copy()

    def put(self, input: str, array: Any) -> None:
        """Let a bound input read this next, of any size that it may have."""
        held = self._memory(input).array
        value = self._values[input]
        given = array_of_dtype(value, held.dtype, array)
        fit = fits(value.dims, given.shape)
        if fit and self._sizes.batch:
            self._begin(self._held_by(len(given)))
        room = zip(given.shape, self._now[input].array.shape)
        if not fit or any(n > most for n, most in room):
            raise Error(f"{list(given.shape)} given, {value} wanted", where=f"input {input!r}")
        self._fresh = False
        self._laid[input] = self._now[input].array.shape
        self._fill(input, given)

    def reset(self) -> None:
        """Let all bound inputs be of the least size that they may have, of zeros, next."""
        least = {s.name: s.low for s in self._runs.model.manifest.symbols}
        for name, memory in self._now.items():
            memory.array[...] = 0
            self._held[name] = self._values[name].at(least)
        self._fresh = bool(self._sizes.batch)

    def _held_by(self, count: int) -> dict[str, Shape]:
        """The shapes of bound inputs in a run of so many samples."""
        found = {name: (count, *shape[1:]) for name, shape in self._held.items()}
        if found != self._held and not self._fresh:
            batch, (now, *_) = self._sizes.batch, next(iter(self._held.values()))
            hint = "`reset` lets runs of another begin"
            raise Error(f"{batch} is {count}, and {now} in what is bound", hint=hint)
        return found

    def _begin(self, held: dict[str, Shape]) -> None:
        """Where nothing ran, let bound inputs be zeros of these shapes."""
        for name, shape in held.items() if self._fresh else ():
            whole = self._laid[name] = (shape[0], *self._values[name].shape[1:])
            if whole != self._now[name].array.shape:
                self._allot(name, whole)
        self._held = held

    def _rows(self, name: str) -> Array:
        """What a bound input reads next, where it lies."""
        laid = _first(self._now[name], self._laid[name]).array
        return laid[tuple(map(slice, self._held[name]))]

    def _lay(self, name: str, shape: Shape) -> None:
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


def _zeros(dtype: np.dtype[Any], shape: Shape) -> Memory:
    made = aligned(dtype, shape)
    made.array[...] = np.zeros((), dtype)
    return made


def _named(values: Mapping[str, Value], name: str, what: str) -> Value:
    if name not in values:
        raise Error(f"no such {what}", where=repr(name), hint=f"{what}s: {', '.join(values)}")
    return values[name]


def _first(memory: Memory, shape: Shape) -> Memory:
    """The begin of memory as an array of this shape."""
    return Memory(memory.array.reshape(-1)[: prod(shape)].reshape(shape), memory.address)
