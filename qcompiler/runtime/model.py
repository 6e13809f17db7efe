"""Artifact -> Model: arrays in, arrays out, from any number of threads at once."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler import cpu
from qcompiler.artifact import ALIGN, Artifact, Bytes, Manifest, Value, open_artifact
from qcompiler.errors import Error
from qcompiler.runtime.library import Tensor, load_code, tensor, use_threads

Array = NDArray[Any]
_GUARD_BYTES = 64


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
    DLPack tensor) whose data is 64-byte aligned is used where it lies; any other is copied first.
    Every call returns new arrays.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 0) -> None:
        self.manifest: Manifest = artifact.manifest
        self.threads = threads or artifact.manifest.threads
        if self.threads < 1:
            raise Error(f"{threads} threads", hint="use at least 1")
        missing = sorted(set(self.manifest.cpu_flags) - cpu.features())
        if missing:
            raise Error(
                f"this CPU lacks {', '.join(missing)}, which the artifact needs",
                where=self.manifest.name,
                hint="compile it here, or for an older instruction set: `qcompiler targets`",
            )
        self._module, self._entry = load_code(artifact.code, "main")
        self._weights = tensor(
            _aligned(artifact.weights) if artifact.weights.size else aligned_empty(1)
        )
        self._workspaces: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self._made = [(_dtype(v.dtype), v.shape, prod(v.shape)) for v in self.manifest.outputs]

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
        results = self._call([_checked(v, a) for v, a in zip(self.inputs, arrays, strict=True)])
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """{input name: array} -> {output name: array}."""
        arrays = self._named(inputs)
        return dict(zip((v.name for v in self.outputs), self._call(arrays), strict=True))

    def profile(self, inputs: Mapping[str, Any], *, repeat: int = 20) -> list[float]:
        """{input name: array} -> median seconds of every step (`model.manifest.steps` names them),
        each timed alone.

        Every round runs all steps in order, so each finds its input where the one before left it.
        """
        arrays = self._named(inputs)
        outputs = [_output(*made) for made in self._made]
        workspace = self._workspace()
        count = len(self.manifest.steps)
        times = np.zeros((repeat, count))
        use_threads(self.threads)
        for round_ in range(repeat):
            for step in range(count):
                start = time.perf_counter()
                self._invoke(arrays, outputs, workspace, step, step + 1)
                times[round_, step] = time.perf_counter() - start
        self._workspaces.put(workspace)
        return [float(t) for t in np.median(times, axis=0)]

    def _named(self, inputs: Mapping[str, Any]) -> list[Array]:
        unknown = sorted(set(inputs) - {v.name for v in self.inputs})
        missing = [v.name for v in self.inputs if v.name not in inputs]
        if unknown or missing:
            what = (
                f"unknown input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing"
            )
            raise Error(what, hint=f"the model's inputs are {_listing(self.inputs)}")
        return [_checked(v, inputs[v.name]) for v in self.inputs]

    def _call(self, arrays: Sequence[Array]) -> list[Array]:
        outputs = [_output(*made) for made in self._made]
        workspace = self._workspace()
        use_threads(self.threads)
        try:
            self._invoke(arrays, outputs, workspace, 0, len(self.manifest.steps))
        finally:
            self._workspaces.put(workspace)
        return outputs

    def _invoke(
        self,
        arrays: Sequence[Array],
        outputs: Sequence[Array],
        workspace: Tensor,
        first: int,
        last: int,
    ) -> None:
        flat = [_flat(a) for a in (*arrays, *outputs)]
        self._entry(*flat, self._weights, workspace, first, last)

    def _workspace(self) -> Tensor:
        """A workspace nobody else uses now; a thread more makes one more."""
        try:
            return self._workspaces.get_nowait()
        except queue.Empty:
            return tensor(aligned_empty(max(self.manifest.workspace_bytes, 1)))


def aligned_empty(size: int) -> Bytes:
    """Uninitialised bytes whose address is a multiple of 64, with room to read a vector past the
    end.
    """
    raw = np.empty(size + ALIGN + _GUARD_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + size]


def _output(dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> Array:
    return aligned_empty(size * dtype.itemsize).view(dtype).reshape(shape)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def _checked(value: Value, given: Any) -> Array:
    """An input as given -> an aligned contiguous array of the right dtype and shape, or a clear
    error.
    """
    array = given
    if not isinstance(array, np.ndarray):
        array = np.from_dlpack(given) if hasattr(given, "__dlpack__") else np.asarray(given)
    if array.dtype != _dtype(value.dtype):
        raise Error(
            f"{array.dtype} given, {value.dtype} wanted",
            where=f"input {value.name!r}",
            hint=f"array.astype({value.dtype!r})",
        )
    if array.shape != value.shape:
        raise Error(
            f"shape {list(array.shape)} given, {list(value.shape)} wanted",
            where=f"input {value.name!r}",
            hint="compile for another shape with --input-shape",
        )
    return _aligned(array)


def _aligned(array: Array) -> Array:
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGN == 0:
        return array
    copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _flat(array: Array) -> Bytes:
    return array.reshape(-1).view(np.uint8) if array.size else np.empty(1, np.uint8)


def _listing(values: Sequence[Value]) -> str:
    return "; ".join(map(str, values))
