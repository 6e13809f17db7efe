"""Artifact -> Model: arrays in, arrays out, from any number of threads at once."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler import cpu
from qcompiler.artifact import Artifact, Manifest, Value, open_artifact
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array, Seat
from qcompiler.runtime.library import Code, aligned_copy


def load(artifact: str | Path | Artifact, *, threads: int = 0) -> Model:
    """Path or artifact -> a model ready to run.

    `threads`: how many each call may use (0: as compiled). Raises Error when the file is not whole,
    was changed, or needs CPU features that this machine lacks.
    """
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    return Model(opened, threads=threads)


class Model:
    """A compiled model. `model(x)` or `model.run({"name": array})`; safe to call from several
    threads at once.

    Arrays must have exactly the dtype and shape of the model's inputs. A C-contiguous array (or
    DLPack tensor) whose data is 64-byte aligned is used where it lies; any other, and a small one,
    is copied first. Every call returns new arrays.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 0) -> None:
        self.manifest: Manifest = artifact.manifest
        if threads < 0:
            raise Error(f"{threads} threads", hint="use at least 1")
        useful = max((s.tasks for s in self.manifest.steps), default=1)
        self.threads = min(threads or self.manifest.threads, useful)
        missing = sorted(set(self.manifest.cpu_flags) - cpu.features())
        if missing and cpu.withheld().issuperset(missing):
            raise Error(
                f"the kernel refuses this process {', '.join(missing)}, which the artifact needs",
                where=self.manifest.name,
                hint="they need Linux 5.16 or newer, and a sandbox that lets arch_prctl pass",
            )
        if missing:
            raise Error(
                f"this CPU lacks {', '.join(missing)}, which the artifact needs",
                where=self.manifest.name,
                hint="compile it here, or for an older instruction set: `qcompiler targets`",
            )
        self._code = Code(artifact.code)
        if self._code.signature != artifact.signature:
            raise Error(
                "the manifest is not the one of this machine code",
                where=self.manifest.name,
                hint="the file was changed; compile the model again",
            )
        self._weights = aligned_copy(artifact.weights)
        self._seats: queue.SimpleQueue[Seat] = queue.SimpleQueue()
        self._taken = [(v, v.name, _dtype(v.dtype), v.shape) for v in self.manifest.inputs]
        self._made = [(_dtype(v.dtype), v.shape) for v in self.manifest.outputs]
        self._names = [v.name for v in self.manifest.outputs]
        self._steps = len(self.manifest.steps)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Names, dtypes and shapes of the inputs, in order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Names, dtypes and shapes of the outputs, in order."""
        return self.manifest.outputs

    def __call__(self, *arrays: Any) -> Array | tuple[Array, ...]:
        """Inputs in order -> the output, or a tuple of them."""
        if len(arrays) != len(self.inputs):
            raise Error(
                f"{len(arrays)} arrays for {len(self.inputs)} inputs: {_listing(self.inputs)}"
            )
        pairs = zip(self._taken, arrays, strict=True)
        results = self._call([_checked(v, dtype, shape, a) for (v, _, dtype, shape), a in pairs])
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """{input name: array} -> {output name: array}."""
        return dict(zip(self._names, self._call(self._named(inputs)), strict=True))

    def profile(self, inputs: Mapping[str, Any], *, repeat: int = 20) -> list[float]:
        """{input name: array} -> median seconds of every step (`model.manifest.steps` names them),
        each timed alone.

        Every round runs all steps in order, so each finds its input where the one before left it.
        """
        arrays = self._named(inputs)
        seat, count = self._seat(), self._steps
        kept = (seat.take(arrays), seat.make())
        times = np.zeros((repeat, count))
        for round_ in range(repeat):
            for step in range(count):
                start = time.perf_counter()
                seat.frame.run(self._code, self.threads, step, step + 1)
                times[round_, step] = time.perf_counter() - start
        del kept
        self._seats.put(seat)
        return [float(t) for t in np.median(times, axis=0)]

    def _named(self, inputs: Mapping[str, Any]) -> list[Array]:
        if len(inputs) != len(self._taken) or any(v[1] not in inputs for v in self._taken):
            missing = [v.name for v in self.inputs if v.name not in inputs]
            unknown = sorted(set(inputs) - {v.name for v in self.inputs})
            what = (
                f"unknown input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing"
            )
            raise Error(what, hint=f"the model's inputs are {_listing(self.inputs)}")
        return [
            _checked(value, dtype, shape, inputs[name]) for value, name, dtype, shape in self._taken
        ]

    def _call(self, arrays: Sequence[Array]) -> list[Array]:
        seat = self._seat()
        try:
            kept = seat.take(arrays)
            outputs = seat.make()
            seat.frame.run(self._code, self.threads, 0, self._steps)
            del kept
        finally:
            self._seats.put(seat)
        return outputs

    def _seat(self) -> Seat:
        """A seat nobody else uses now; a thread more makes one more."""
        try:
            return self._seats.get_nowait()
        except queue.Empty:
            taken = [v[2:] for v in self._taken]
            return Seat(taken, self._made, self._weights, self.manifest.workspace_bytes)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def _checked(value: Value, dtype: np.dtype[Any], shape: tuple[int, ...], given: Any) -> Array:
    """An input as given -> an array of the right dtype and shape, or a clear error."""
    if isinstance(given, np.ndarray):
        array: Array = given
    else:
        array = np.from_dlpack(given) if hasattr(given, "__dlpack__") else np.asarray(given)
    if array.dtype != dtype:
        raise Error(
            f"{array.dtype} given, {value.dtype} wanted",
            where=f"input {value.name!r}",
            hint=f"array.astype({value.dtype!r})",
        )
    if array.shape != shape:
        raise Error(
            f"shape {list(array.shape)} given, {list(value.shape)} wanted",
            where=f"input {value.name!r}",
            hint="compile for another shape with --input-shape",
        )
    return array


def _listing(values: Sequence[Value]) -> str:
    return "; ".join(map(str, values))
