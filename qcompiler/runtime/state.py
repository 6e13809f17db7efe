"""A model that reads what its last run wrote, as a decoder reads its caches: that stays in memory
of its own, and no run copies it.

An input that is bound to an output has two buffers, which change places after every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qcompiler.artifact.manifest import Value
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array, Context
from qcompiler.runtime.feeds import array_of
from qcompiler.runtime.library import Memory, aligned
from qcompiler.runtime.model import Interface, arrays_in_order, input_specs

Launch = Callable[[Context], None]
Pairs = Mapping[str, str]
"""Input -> the output whose value it reads in the next run."""


class Bound:
    """Runs of a model that follow each other; made by `Model.bind`. One thread uses it at a time.

    What a bound input reads is zeros first, and after a run that failed what it was before.
    """

    def __init__(
        self, launch: Launch, new: Callable[[], Context], model: Interface, pairs: Pairs
    ) -> None:
        """`launch`: runs the model in a context that is `new`. Raises Error for what is no input or
        output, is bound twice, or does not fit.
        """
        self._launch, self._new, self._model, self.pairs = launch, new, model, dict(pairs)
        self._context = new()
        inputs, outputs = ({v.name: v for v in side} for side in (model.inputs, model.outputs))
        self._ins, self._outs = list(inputs), list(outputs)
        specs = {spec[1]: spec for spec in input_specs(model.inputs)}
        self._now: dict[str, Memory] = {}
        self._next: dict[str, Memory] = {}
        for name, source in self.pairs.items():
            value = _named(inputs, name, "input")
            _demand_fit(value, _named(outputs, source, "output"))
            self._now[name], self._next[name] = (_zeros(*specs[name][2:]) for _ in range(2))
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
        pairs = {**self.pairs, input: output}
        return Bound(self._launch, self._new, self._model, pairs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """{input that is not bound: array} -> {output that is not bound: array}."""
        given = iter(arrays_in_order(self._free, inputs))
        arrays = [None if n in self._now else next(given) for n in self._ins]
        writes = {self._outs.index(o): self._next[i] for i, o in self.pairs.items()}
        reads = {self._ins.index(i): memory for i, memory in self._now.items()}
        kept = self._context.take(arrays, reads)
        outputs = self._context.make(writes)
        self._launch(self._context)
        outputs = self._context.cut(outputs)
        del kept
        self._now, self._next = self._next, self._now
        return {n: a for n, a in zip(self._outs, outputs) if n not in self._bound}

    def value(self, input: str) -> Array:
        """A copy of what a bound input reads next."""
        return self._held(input).array.copy()

    def put(self, input: str, array: Any) -> None:
        """Let a bound input read this next."""
        held, given = self._held(input).array, array_of(array, f"input {input!r}")
        if given.dtype != held.dtype or given.shape != held.shape:
            what = f"{given.dtype}{list(given.shape)} given, {held.dtype}{list(held.shape)} wanted"
            raise Error(what, where=f"input {input!r}")
        held[...] = given

    def reset(self) -> None:
        """Let all bound inputs read zeros next."""
        for memory in self._now.values():
            memory.array[...] = 0

    def _held(self, input: str) -> Memory:
        if input not in self._now:
            raise Error("it is not bound", where=f"input {input!r}")
        return self._now[input]


def _zeros(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Memory:
    made = aligned(dtype, shape)
    made.array[...] = np.zeros((), dtype)
    return made


def _named(values: Mapping[str, Value], name: str, what: str) -> Value:
    if name not in values:
        raise Error(f"no such {what}", where=repr(name), hint=f"{what}s: {', '.join(values)}")
    return values[name]


def _demand_fit(value: Value, source: Value) -> None:
    if (value.dtype, value.shape) != (source.dtype, source.shape):
        what = f"{source} does not fit {value}"
        hint = "a cache must have the same type in and out: export one of a fixed greatest length"
        raise Error(what, where=f"input {value.name!r}", hint=hint)
