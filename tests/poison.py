"""Every call of the suite, made to find memory that is read before this call has written it.

A call is made with other inputs first, then twice with its own, each time with all memory that is
not the inputs' full of another byte: what both make must be the same to the bit. So neither what a
former call left, nor what lay in the memory, nor what lies behind an array can pass for a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pytest

from qcompiler.artifact.manifest import Batch
from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.runtime import arrays, library, model, open_batch, open_sizes, state

POISONS = (0xFF, 0xAA)
"""NaN or -1, and numbers that are small in float32 and far off as integers."""

CALLS = 3
"""Number of calls of each model that are repeated, so that long loops stay short."""

Key = TypeVar("Key")


def other(array: Array) -> Array:
    """Another array of the same dtype and shape; integers, which may be indices, keep to the values
    along their first axis.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
        return np.roll(array, 1, axis=0) if array.ndim else array
    return array.reshape(-1)[::-1].reshape(array.shape).copy()


def twice(call: Callable[[Mapping[Key, Array], int], Array], values: Mapping[Key, Array]) -> Array:
    """call(arrays, poison) -> what it makes of these, whatever was there before."""
    call({k: other(v) for k, v in values.items()}, POISONS[1])
    first, second = (call(values, poison) for poison in POISONS)
    same([first], [second])
    return second


def same(first: list[Array], second: list[Array]) -> None:
    """Two results of equal calls, to the bit, but any NaN is a NaN."""
    for a, b in zip(first, second, strict=True):
        one, other = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
        differ = one != other
        if differ.any() and not np.array_equal(a, b, equal_nan=a.dtype.kind not in "biu"):
            raise AssertionError(f"{differ.sum()} bytes depend on what was in the memory before")


def install(patch: pytest.MonkeyPatch) -> None:
    """Every model of the process is called so from now on."""
    poisons = cycle(POISONS)
    aligned, make = library.aligned, arrays.Context.make
    run, call = library.Frame.run, model.Model._call

    def poisoned_memory(dtype: np.dtype[Any], shape: tuple[int, ...]) -> library.Memory:
        memory = aligned(dtype, shape)
        raw = memory.array.base
        assert isinstance(raw, np.ndarray)
        raw[:] = next(poisons)
        return memory

    def poisoned_outputs(
        context: arrays.Context, own: Mapping[int, library.Memory] = MappingProxyType({})
    ) -> list[Array]:
        given = set(context.frame.table[: len(context._staged)])
        made, poison = make(context, own), next(poisons)
        kept = [i for i, memory in own.items() if memory.address in given]  # in place of an input
        for i, array in enumerate(made):
            if i not in kept:
                array.reshape(-1).view(np.uint8)[:] = poison
        return made

    def poisoned_run(frame: library.Frame, code: Any, threads: int, first: int, last: int) -> None:
        if first == 0:
            frame.workspace.array[:] = next(poisons)
        run(frame, code, threads, first, last)

    def several_calls(self: model.Model, held: Any, given: list[Array]) -> list[Array]:
        calls = self.__dict__.setdefault("_poisoned_calls", [])
        if len(calls) >= CALLS:
            return call(self, held, given)
        calls.append(None)
        with suppress(Error):  # other numbers may be axes or sizes that do not exist
            call(self, held, [other(a) for a in given])
        first, second = call(self, held, given), call(self, held, given)
        same(first, second)
        return second

    in_batches = open_batch.in_batches

    def poisoned_batches(
        frame: library.Frame,
        launch: Callable[[int, int], None],
        batches: Sequence[Batch],
        inputs: Sequence[library.Memory],
        outputs: Sequence[library.Memory],
        *how: int,
        again: bool = True,
    ) -> None:
        poison, given = next(poisons), {memory.address for memory in inputs}
        frame.workspace.array[:] = poison
        for memory in outputs:
            if memory.address not in given:  # else in place of an input
                memory.array.reshape(-1).view(np.uint8)[:] = poison
        in_batches(frame, launch, batches, inputs, outputs, *how, again=again)

    for user in (model, state):
        patch.setattr(user, "in_batches", poisoned_batches)
    for place in (library, arrays, open_sizes):
        patch.setattr(place, "aligned", poisoned_memory)
    patch.setattr(arrays.Context, "make", poisoned_outputs)
    patch.setattr(library.Frame, "run", poisoned_run)
    patch.setattr(model.Model, "_call", several_calls)
