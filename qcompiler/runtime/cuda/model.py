"""Artifact for a GPU -> CudaModel: arrays in, arrays out, from any number of threads at once.

All steps of a run are one CUDA graph, recorded when a context is made: each run copies the inputs,
launches the graph, and copies the outputs.
"""

from __future__ import annotations

import ctypes
import queue
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.artifact import program
from qcompiler.artifact.abi import ALIGN, GUARD
from qcompiler.artifact.artifact import Artifact, ArtifactFile, Variant, reading
from qcompiler.dtypes import numpy_dtype
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.cuda import driver
from qcompiler.runtime.model import Interface, arrays_checked, arrays_in_order, input_specs

_ALIGN = 256
"""Memory of a GPU is handed out in multiples of this; arrays inside it begin so, too."""


_ARCHITECTURE = "nvptx"
"""How the triple of a variant for a GPU begins."""


def load(
    artifact: str | Path | Artifact,
    *,
    device: int | str = 0,
    variant: str = "",
    library: str = "",
) -> CudaModel:
    """Path or artifact -> a model that runs on a GPU, by its number or as "cuda:1": of the named
    variant, or of the best one for that GPU. `library`: the driver's, if not the system's.
    """
    number, library = number_of(device), library or driver.LIBRARY
    if isinstance(artifact, Artifact):
        return _best(artifact, number, variant, library)
    with reading(artifact) as file:
        return _best(file, number, variant, library)


def number_of(device: int | str) -> int:
    """The number of a GPU. Raises Error for another name than "cuda" and "cuda:N"."""
    if isinstance(device, int):
        return device
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise Error(f"there is no device {device!r}", hint='"cpu", "cuda", or "cuda:1"')
    return int(found[1] or 0)


def _best(source: Artifact | ArtifactFile, device: int, variant: str, library: str) -> CudaModel:
    named = {v.isa: i for i, v in enumerate(source.manifest.variants) if _for_gpu(v)}
    if variant:
        named = {n: i for n, i in named.items() if n == variant}
    where = source.manifest.name
    if not named:
        known = ", ".join(v.isa for v in source.manifest.variants)
        what = f"there is no variant {variant!r} for a GPU" if variant else "it is for no GPU"
        hint = f"it is for {known}; compile it for a GPU: `qcompiler targets`"
        raise Error(what, where=where, hint=hint)
    gpu = driver.Gpu(driver.driver(library), device)
    found = gpu.fitting(list(named))
    if found is None:
        raise unfitting(gpu, list(named), where)
    return CudaModel(source.only(named[found]), device=device, library=library)


def _for_gpu(variant: Variant) -> bool:
    return variant.triple.startswith(_ARCHITECTURE)


def unfitting(gpu: driver.Gpu, architectures: Sequence[str], where: str) -> Error:
    """The Error for a GPU that runs none of some architectures' code."""
    major, minor = gpu.capability
    return Error(
        f"this GPU is sm_{major}{minor}, and the artifact is for {', '.join(architectures)}",
        where=where,
        hint=f"compile it with --target sm_{major}{minor}",
    )


@dataclass(frozen=True)
class _Held:
    """What a model holds until it is closed, and every call until it has ended."""

    gpu: driver.Gpu
    modules: driver.Modules
    functions: Sequence[ctypes.c_void_p]
    weights: driver.Memory
    contexts: queue.SimpleQueue[_Context] = field(default_factory=queue.SimpleQueue)


class CudaModel(Interface):
    """A model on a GPU: `model(x)` or `model.run({"name": array})`; safe to call from several
    threads at once. Arrays must have exactly the dtype and shape of the model's inputs.

    Raises Error where there is no driver, no such GPU, or neither fits the artifact.
    """

    def __init__(
        self, artifact: Artifact, *, device: int = 0, library: str = driver.LIBRARY
    ) -> None:
        """`artifact`: of one variant; `device`: the number of the GPU."""
        self.manifest = artifact.manifest
        (self.variant,), (binary,) = artifact.manifest.variants, artifact.binaries
        self.program = program.read(binary.code, self.manifest.name)
        if self.program.signature != artifact.signatures[0]:
            raise Error(
                "the manifest is not the one of this machine code",
                where=self.manifest.name,
                hint="the file was changed; compile the model again",
            )
        gpu = driver.Gpu(self._new_enough(driver.driver(library)), device)
        modules = driver.Modules(gpu, self.program.modules[self._architecture(gpu)])
        names = [(c.module, c.function) for c in self.program.launches]
        known = {name: modules.function(*name) for name in dict.fromkeys(names)}
        weights = driver.Memory(gpu, binary.weights.nbytes + GUARD)
        with gpu.current() as call:
            copied = np.ascontiguousarray(binary.weights)
            call("cuMemcpyHtoD_v2", _u64(weights.address), _at(copied), _size(copied.nbytes))
        self.threads = 1
        self._specs = input_specs(self.manifest.inputs)
        self._held: _Held | None = _Held(gpu, modules, [known[n] for n in names], weights)

    def __call__(self, *arrays: Any) -> Array | tuple[Array, ...]:
        """Inputs in order -> the output, or a tuple of them."""
        results = self._call(arrays_checked(self._specs, arrays))
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """{input name: array} -> {output name: array}."""
        results = self._call(arrays_in_order(self._specs, inputs))
        return dict(zip([v.name for v in self.manifest.outputs], results))

    def profile(self, inputs: Mapping[str, Any], *, repeat: int = 20) -> list[float]:
        """{input name: array} -> median seconds of every step (`model.variant.steps` names them),
        by the GPU's clock, launched one after the other.
        """
        if repeat < 1:
            raise Error(f"{repeat} rounds", hint="use at least 1")
        arrays = arrays_in_order(self._specs, inputs)
        with self._context() as context:
            times = [context.timed(arrays) for _ in range(repeat)]
        return [float(t) for t in np.median(times, axis=0)]

    def close(self) -> None:
        """Free the GPU's memory as soon as running calls have ended; further calls raise Error."""
        self._held = None

    def __enter__(self) -> CudaModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _new_enough(self, found: driver.Driver) -> driver.Driver:
        if found.version < self.program.driver:
            have, want = (_version(v) for v in (found.version, self.program.driver))
            raise Error(
                f"the GPU's driver is for CUDA {have}, and the artifact needs {want}",
                where=self.manifest.name,
                hint="install a newer driver",
            )
        return found

    def _architecture(self, gpu: driver.Gpu) -> str:
        known = list(self.program.modules)
        found = gpu.fitting(known)
        if found is None:
            raise unfitting(gpu, known, self.manifest.name)
        return found

    def _call(self, arrays: Sequence[Array]) -> list[Array]:
        with self._context() as context:
            return context.run(arrays)

    @contextmanager
    def _context(self) -> Iterator[_Context]:
        """What a run needs for itself, idle or new."""
        held = self._held
        if held is None:
            raise Error("the model is closed", where=self.manifest.name, hint="load it again")
        try:
            context = held.contexts.get_nowait()
        except queue.Empty:
            context = _Context(self, held)
        try:
            yield context
        finally:
            held.contexts.put(context)


class _Context:
    """What one run needs for itself: a stream, memory of inputs, outputs and the workspace, and the
    recorded steps.
    """

    def __init__(self, model: CudaModel, held: _Held) -> None:
        self.held, self.gpu = held, held.gpu
        sides = (model.manifest.inputs, model.manifest.outputs)
        self.kinds = [[(numpy_dtype(v.dtype), v.shape) for v in side] for side in sides]
        sizes = [[prod(shape) * dtype.itemsize for dtype, shape in side] for side in self.kinds]
        places, total = _laid_out([*sizes[0], *sizes[1], model.variant.workspace_bytes])
        self.memory = driver.Memory(self.gpu, total)
        starts = [self.memory.address + p for p in places]
        count = len(sizes[0])
        self.inputs, self.outputs, self.workspace = starts[:count], starts[count:-1], starts[-1]
        self.stream = driver.Stream(self.gpu)
        self.launches = list(zip(model.program.launches, held.functions))
        self.steps = len(model.variant.steps)
        with self.gpu.current() as call:
            self.stream.begin(call)
            for launch, function in self.launches:
                self._launch(call, launch, function)
            self.graph = self.stream.end(call)

    def _launch(
        self, call: driver.Driver, launch: program.Launch, function: ctypes.c_void_p
    ) -> None:
        addresses = [self._address(space, offset) for space, offset in launch.operands]
        values = (*addresses, *launch.numbers)
        self.stream.launch(call, function, launch.blocks, launch.threads, values)

    @cached_property
    def handle(self) -> ctypes.c_void_p:
        """The stream's handle."""
        return self.stream.handle

    def _address(self, space: str, offset: int) -> int:
        if space == "weights":
            return self.held.weights.address + offset
        if space == "workspace":
            return self.workspace + offset
        return (self.inputs if space == "input" else self.outputs)[offset]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Inputs -> new outputs."""
        given = [np.ascontiguousarray(a) for a in arrays]
        made: list[Array] = [np.empty(shape, dtype) for dtype, shape in self.kinds[1]]
        with self.gpu.current() as call:
            self._send(call, given)
            call("cuGraphLaunch", self.graph.handle, self.handle)
            for array, address in zip(made, self.outputs):
                size = _size(array.nbytes)
                call("cuMemcpyDtoHAsync_v2", _at(array), _u64(address), size, self.handle)
            call("cuStreamSynchronize", self.handle)
        return made

    def timed(self, arrays: Sequence[Array]) -> list[float]:
        """Inputs -> seconds of each step."""
        given = [np.ascontiguousarray(a) for a in arrays]
        marks = [driver.Event(self.gpu) for _ in range(self.steps + 1)]
        with self.gpu.current() as call:
            self._send(call, given)
            done = 0
            for launch, function in self.launches:
                while done <= launch.step:
                    marks[done].record(call, self.handle)
                    done += 1
                self._launch(call, launch, function)
            for mark in marks[done:]:
                mark.record(call, self.handle)
            call("cuStreamSynchronize", self.handle)
            return [b.since(call, a) for a, b in zip(marks, marks[1:])]

    def _send(self, call: driver.Driver, arrays: Sequence[Array]) -> None:
        for array, address in zip(arrays, self.inputs):
            size = _size(array.nbytes)
            call("cuMemcpyHtoDAsync_v2", _u64(address), _at(array), size, self.handle)


def _laid_out(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Sizes -> the offset of each, and the size of all; bytes behind each may be read."""
    places, at = [], 0
    for size in sizes:
        places.append(at)
        at += -(-(size + max(ALIGN, GUARD)) // _ALIGN) * _ALIGN
    return places, at


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _u64(value: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)


def _size(value: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(value)


def _at(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
