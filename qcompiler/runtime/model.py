"""Artifact -> Model: arrays in, arrays out, from any number of threads at once."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.artifact.abi import MOST_UNITS
from qcompiler.artifact.artifact import (
    Artifact,
    ArtifactFile,
    Manifest,
    Origin,
    Value,
    Variant,
    reading,
)
from qcompiler.dtypes import numpy_dtype
from qcompiler.errors import Error
from qcompiler.hardware import cpu
from qcompiler.runtime.arrays import Array, Context
from qcompiler.runtime.caller import Caller
from qcompiler.runtime.choosing import fitting
from qcompiler.runtime.feeds import array_of, named_arrays
from qcompiler.runtime.front import Front
from qcompiler.runtime.library import (
    SPIN_US,
    Code,
    Crew,
    Memory,
    Refused,
    Team,
    aligned,
    aligned_copy,
    shared_code,
)
from qcompiler.runtime.open_batch import fits, in_batches
from qcompiler.runtime.open_sizes import HIDDEN, Sizes, first

if TYPE_CHECKING:
    from qcompiler.runtime.state import Bound


def load(artifact: str | Path | Artifact, *, threads: int = 0, variant: str = "") -> Model:
    """Path or artifact -> a model ready to run, of the best variant that this machine can run.

    `threads`: how many each call may use (0: as compiled, but no more than this process has cores).
    `variant`: the instruction set of the variant to run instead. Raises Error when the file is
    incomplete, was changed, or needs CPU features that this machine lacks.
    """
    if not isinstance(artifact, (str, Path, Artifact)):
        raise Error(f"{type(artifact).__name__} given, the path of an artifact wanted")
    if isinstance(artifact, Artifact):
        return _best(artifact, threads, variant)
    with reading(artifact) as file:
        return _best(file, threads, variant)


def _best(source: Artifact | ArtifactFile, threads: int, variant: str) -> Model:
    """The most preferred variant that the CPU supports and the system permits."""
    refused: Refused | None = None
    for number in fitting(source.manifest, variant):
        try:
            made = OpenModel if source.manifest.symbols else Model
            return made(source.only(number), threads=threads, variant=variant)
        except Refused as e:
            refused = refused or e
    assert refused is not None
    raise refused


@dataclass(frozen=True)
class _Held:
    """What a model holds until it is closed, and every call until it has ended."""

    artifact: Artifact
    code: Code
    weights: Memory
    contexts: queue.SimpleQueue[Context] = field(default_factory=queue.SimpleQueue)


class Interface:
    """What a model takes and returns, by its manifest."""

    manifest: Manifest

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Names, dtypes and shapes of the inputs, in order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Names, dtypes and shapes of the outputs, in order."""
        return self.manifest.outputs


class Model(Interface):
    """A compiled model. `model(x)` or `model.run({"name": array})`; safe to call from several
    threads at once.

    Arrays must have exactly the dtype and shape of the model's inputs. A C-contiguous array (or
    tensor of another library) whose data is 64-byte aligned is used without a copy, unless it is
    small; any other is copied first. Every call returns new arrays.

    `close()`, the end of a `with` block, or the end of the last reference frees what it holds:
    running calls finish normally, later ones raise Error. It may be copied, and pickled for other
    processes: see docs/artifact.md.

    `variant` is the one that runs here (its `isa`, threads and steps); `manifest` is what all
    variants of the artifact share.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 0, variant: str = "") -> None:
        """`artifact`: of one variant, which this CPU supports; `variant`: its name, if one was
        asked for.
        """
        self.manifest = artifact.manifest
        (self.variant,), (binary,) = artifact.manifest.variants, artifact.binaries
        self.threads = _usable_threads(threads, self.variant)
        self._asked = threads, variant
        code = shared_code(binary.code)
        if code.signature != artifact.signatures[0]:
            raise Error(
                "the manifest is not the one of this machine code",
                where=self.manifest.name,
                hint="the file was changed; compile the model again",
            )
        weights = aligned_copy(binary.weights)
        self._input_specs = input_specs(self.manifest.inputs)
        self._output_kinds = [(_dtype(v), v.shape) for v in self.manifest.outputs]
        hidden = len(self.manifest.sizes)
        code.demand_permission(len(self._input_specs) + hidden + len(self._output_kinds))
        self._names = [v.name for v in self.manifest.outputs]
        self._steps = len(self.variant.steps)
        self._extents = [(self._names.index(n), at) for n, at in self.variant.extents]
        self.front = Front(self.manifest)
        held = replace(artifact, binaries=(replace(binary, weights=weights.array),))
        self._held: _Held | None = _Held(held, code, weights)

    def close(self) -> None:
        """Free weights, workspaces and machine code as soon as running calls have ended; further
        calls raise Error. Closing twice does nothing.
        """
        self._held = None

    def __enter__(self) -> Model:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __copy__(self) -> Model:
        threads, variant = self._asked
        return type(self)(self._open().artifact, threads=threads, variant=variant)

    def __deepcopy__(self, memo: object) -> Model:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        """By its file, if it came from one that is unchanged; else by its bytes."""
        artifact = self._open().artifact
        origin = artifact.origin
        if origin is not None and origin.unchanged:
            return _opened_again, (origin, *self._asked)
        return _made_again, (replace(artifact, origin=None), *self._asked)

    def __call__(self, *arrays: Any) -> Array | tuple[Array, ...]:
        """Inputs in order -> the output, or a tuple of them."""
        if self.front:
            made = self.run(self.front.named(arrays))
            return made.popitem()[1] if len(made) == 1 else tuple(made.values())
        results = self._call(self._open(), arrays_checked(self._input_specs, arrays))
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """{input name: array} -> {output name: array}."""
        return self.front.run(inputs, self._run) if self.front else self._run(inputs)

    def _run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """`run` of arrays."""
        results = self._call(self._open(), arrays_in_order(self._input_specs, inputs))
        return dict(zip(self._names, results))

    def profile(self, inputs: Mapping[str, Any], *, repeat: int = 20) -> list[float]:
        """{input name: array} -> median seconds of every step (`model.variant.steps` names them),
        each timed alone, in `repeat` rounds of all steps. Where sizes are open, those of all its
        turns in a run of these inputs.
        """
        if repeat < 1:
            raise Error(f"{repeat} rounds", hint="use at least 1")
        arrays = arrays_in_order(self._input_specs, inputs)
        with closing(self.caller()) as alone:
            return alone.seconds(arrays, repeat)

    @property
    def artifact(self) -> Artifact:
        """What it runs: of one variant, its weights as they lie in memory."""
        return self._open().artifact

    def useful(self, threads: int) -> int:
        """Of so many threads those that a call could use."""
        return _usable_threads(threads, self.variant)

    def caller(
        self, *, threads: int = 0, spin_us: int = SPIN_US, crew: Crew | None = None
    ) -> Caller:
        """The model for one thread that calls it again and again, with a workspace that nobody else
        uses, and a crew: a team of `threads` (0: the model's own number), unless it is given.
        """
        held, threads = self._open(), self.useful(threads) if threads else self.threads
        context = self._new_context(held)
        team = crew or Team(min(threads, MOST_UNITS), held.code, spin_us)
        return Caller(partial(self._outputs, held), held.code, context, self.variant, team)

    def bind(self, input: str, output: str) -> Bound:
        """Runs in which an input reads what an output of the run before was, as caches of decoders
        do, in memory that stays: `model.bind("past", "present").run({"ids": ids})`. `bind` of the
        result binds further pairs. Raises Error if their types differ.
        """
        from qcompiler.runtime.state import Bound, OpenBound, Runs  # which imports this file

        self.front.demand_none("`bind`")
        held, threads = self._open(), self.threads

        def new() -> Context:
            made = self._new_context(held)
            made.demand_whole()
            return made

        def launch(context: Context, first: int, last: int) -> None:
            context.frame.run(held.code, threads, first, last)

        kind = OpenBound if self.manifest.symbols else Bound
        return kind(Runs(launch, new, self, self.variant), {input: output})

    def _call(self, held: _Held, arrays: Sequence[Array]) -> list[Array]:
        context = self._context(held)
        try:
            return self._outputs(held, context, arrays)
        finally:
            held.contexts.put(context)

    def _outputs(self, held: _Held, context: Context, arrays: Sequence[Array]) -> list[Array]:
        kept = context.take(arrays)
        outputs = context.make()
        context.frame.run(held.code, self.threads, 0, self._steps)
        outputs = context.cut(outputs)
        del kept
        return outputs

    def _open(self) -> _Held:
        """What a call holds until it ends."""
        held = self._held
        if held is None:
            raise Error("the model is closed", where=self.manifest.name, hint="load it again")
        return held

    def _context(self, held: _Held) -> Context:
        """An idle context, or a new one."""
        try:
            return held.contexts.get_nowait()
        except queue.Empty:
            return self._new_context(held)

    def _new_context(self, held: _Held) -> Context:
        taken, size = [v[2:] for v in self._input_specs], self.variant.workspace_bytes
        taken += [HIDDEN] * len(self.manifest.sizes)
        try:
            checks = self.variant.checks
            kinds = self._output_kinds
            return Context(taken, kinds, held.weights, size, checks, self._extents)
        except MemoryError as e:
            what = f"no memory for its workspace of {size} bytes"
            raise Error(what, where=self.manifest.name) from e


class OpenModel(Model):
    """A model with open sizes: it takes arrays of any sizes in the ranges of its symbols, and
    returns outputs of those that follow. The workspace is the same for all.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 0, variant: str = "") -> None:
        super().__init__(artifact, threads=threads, variant=variant)
        self._sizes = Sizes(self.manifest, self.variant)

    def _outputs(self, held: _Held, context: Context, arrays: Sequence[Array]) -> list[Array]:
        sizes, hidden = self._sizes, len(self.manifest.sizes)
        run = sizes.run(tuple([a.shape for a in arrays]))
        inputs = [*map(aligned_copy, sizes.padded(arrays, run.rooms))]
        made = [aligned(kind[0], shape) for shape, kind in zip(run.made, self._output_kinds)]
        sizes.enter(context, run.hidden)
        launch = partial(context.frame.run, held.code, self.threads)
        how = run.fitted.batches, inputs, made, run.fitted.count, hidden
        in_batches(context.frame, launch, *how)
        return context.cut([first(o.array, shape) for o, shape in zip(made, run.own)])


InputSpec = tuple[Value, str, "np.dtype[Any]", tuple[int, ...]]
"""An input, and its name, dtype and shape."""


def input_specs(values: Sequence[Value]) -> list[InputSpec]:
    """A model's inputs -> what `arrays_in_order` needs of them."""
    return [(v, v.name, _dtype(v), v.shape) for v in values]


def arrays_in_order(taken: Sequence[InputSpec], inputs: Mapping[str, Any]) -> list[Array]:
    """{input name: array} -> the arrays in order. Raises Error for any that the model does not
    take as it is.
    """
    given = by_name(taken, inputs)
    return [_checked(v, dtype, shape, a) for (v, _, dtype, shape), a in zip(taken, given)]


def by_name(taken: Sequence[InputSpec], inputs: Mapping[str, Any]) -> list[Any]:
    """{input name: anything} -> these in order. Raises Error unless there is one for each input."""
    if type(inputs) is not dict:
        named_arrays(inputs, "inputs", "arrays in the inputs' order: model(x, y)")
    if len(inputs) != len(taken) or any(v[1] not in inputs for v in taken):
        missing = [name for _, name, _, _ in taken if name not in inputs]
        unknown = sorted(map(repr, set(inputs) - {name for _, name, _, _ in taken}))
        what = f"unknown input {unknown[0]}" if unknown else f"input {missing[0]!r} is missing"
        raise Error(what, hint=f"the model's inputs are {_listing([v for v, _, _, _ in taken])}")
    return [inputs[name] for _, name, _, _ in taken]


def arrays_checked(taken: Sequence[InputSpec], arrays: Sequence[Any]) -> list[Array]:
    """Arrays in order -> the same. Raises Error for any that the model does not take as it is."""
    if len(arrays) != len(taken):
        inputs = [v for v, _, _, _ in taken]
        raise Error(f"{len(arrays)} arrays for {len(inputs)} inputs: {_listing(inputs)}")
    return [_checked(v, dtype, shape, a) for (v, _, dtype, shape), a in zip(taken, arrays)]


def _opened_again(origin: Origin, threads: int, variant: str) -> Model:
    """Unpickle a model by its file."""
    with reading(origin.path) as file:
        if file.origin.digest != origin.digest:
            raise Error(
                "the file holds another artifact than when the model was pickled",
                where=origin.path,
            )
        return _best(file, threads, variant)


def _made_again(artifact: Artifact, threads: int, variant: str) -> Model:
    """Unpickle a model by its bytes."""
    return _best(artifact, threads, variant)


def _usable_threads(asked: int, variant: Variant) -> int:
    """How many threads a call uses."""
    if not isinstance(asked, (int, np.integer)) or isinstance(asked, bool) or asked < 0:
        raise Error(
            f"{asked!r} threads",
            hint="use at least 1; 0 means as many as compiled for, where this process may use them",
        )
    return min(int(asked) or cpu.cores(), variant.threads)


def _dtype(value: Value) -> np.dtype[Any]:
    try:
        return numpy_dtype(value.dtype)
    except TypeError as e:
        raise Error("numpy has no such dtype", where=f"{value}") from e
    except Error as e:
        raise Error(e.what, where=f"{value}", hint=e.hint) from e


def _checked(value: Value, dtype: np.dtype[Any], shape: tuple[int, ...], given: Any) -> Array:
    """An input as given -> an array of the right dtype and shape. Raises Error."""
    array = array_of_dtype(value, dtype, given)
    if array.shape != shape and not fits(value.open, array.shape):
        raise Error(
            f"shape {list(array.shape)} given, {list(value.dims)} wanted",
            where=f"input {value.name!r}",
            hint="compile for another shape with --input-shape",
        )
    return array


def array_of_dtype(value: Value, dtype: np.dtype[Any], given: Any) -> Array:
    """An input as given -> an array of the right dtype. Raises Error."""
    array = given if type(given) is np.ndarray else array_of(given, f"input {value.name!r}")
    if array.dtype != dtype:
        raise Error(
            f"{array.dtype} given, {value.dtype} wanted",
            where=f"input {value.name!r}",
            hint=f"array.astype({value.dtype!r})",
        )
    return array


def _listing(values: Sequence[Value]) -> str:
    return "; ".join(map(str, values))
