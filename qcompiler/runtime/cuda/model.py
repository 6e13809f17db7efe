"""Artifact for a GPU -> CudaModel: arrays or tensors in, the same out, from any number of threads
at once.

All steps of a run are one CUDA graph, recorded when a context is made: each run copies the inputs,
launches the graph, and copies the outputs.
"""

from __future__ import annotations

import ctypes
import queue
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.artifact import program
from qcompiler.artifact.abi import GUARD
from qcompiler.artifact.artifact import Artifact, ArtifactFile, Variant, reading
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.cuda import driver, energy
from qcompiler.runtime.cuda.context import Context, Held
from qcompiler.runtime.cuda.tensors import like, on_gpu
from qcompiler.runtime.front import Front
from qcompiler.runtime.model import (
    Interface,
    arrays_checked,
    arrays_in_order,
    input_specs,
)


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
    texts = {program.later(n): n for n in named}
    found = gpu.fitting([*named, *texts])  # whether the newest has PTX, its code says
    if found is None:
        raise unfitting(gpu, list(named), where)
    number = named[texts.get(found, found)]
    return CudaModel(source.only(number), device=device, library=library)


def place_of(artifact: str | Path | Artifact, asked: str) -> str:
    """Where an artifact runs: where it is asked for, else on the CPU, or on the first GPU if it is
    for GPUs alone.
    """
    if asked or not isinstance(artifact, (str, Path, Artifact)):
        return asked or "cpu"
    if isinstance(artifact, Artifact):
        return "cuda" if all(map(_for_gpu, artifact.manifest.variants)) else "cpu"
    with reading(artifact) as file:
        return "cuda" if all(map(_for_gpu, file.manifest.variants)) else "cpu"


def _for_gpu(variant: Variant) -> bool:
    return program.for_gpu(variant.triple)


def unfitting(gpu: driver.Gpu, architectures: Sequence[str], where: str) -> Error:
    """The Error for a GPU that runs none of some architectures' code."""
    major, minor = gpu.capability
    return Error(
        f"this GPU is sm_{major}{minor}, and the artifact is for {', '.join(architectures)}",
        where=where,
        hint=f"compile it with --target sm_{major}{minor}",
    )


class CudaModel(Interface):
    """A model on a GPU: `model(x)` or `model.run({"name": array})`; safe to call from several
    threads at once. Arrays must have exactly the dtype and shape of the model's inputs.

    Tensors in the GPU's memory (of torch, cupy, or whatever has `__dlpack__`) are taken as they
    lie, if elements follow each other; the outputs are then tensors of the same library, with
    memory of their own, and nobody waits: see runtime/cuda/tensors.py. A call whose input is being
    recorded for a CUDA graph is recorded with it; the model must outlive that graph.

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
        self.architecture = self._architecture(gpu)
        """Whose code runs: "compute_80" is what the driver compiled, because the GPU is later."""
        modules = driver.Modules(gpu, self.program.modules[self.architecture])
        names = [(c.module, c.function) for c in self.program.launches]
        known = {name: modules.function(*name) for name in dict.fromkeys(names)}
        weights = driver.Memory(gpu, binary.weights.nbytes + GUARD)
        with gpu.current() as call:
            copied = np.ascontiguousarray(binary.weights)
            at, size = ctypes.c_void_p(copied.ctypes.data), ctypes.c_size_t(copied.nbytes)
            call("cuMemcpyHtoD_v2", ctypes.c_uint64(weights.address), at, size)
        self.threads = 1
        self._specs = input_specs(self.manifest.inputs)
        self.front = Front(self.manifest)
        launches = [(c, known[name]) for c, name in zip(self.program.launches, names)]
        room, steps = self.variant.workspace_bytes, len(self.variant.steps)
        held = Held(gpu, self.manifest, launches, modules, weights, room, steps)
        self._held: Held | None = held

    def __call__(self, *given: Any) -> Any:
        """Inputs in order -> the output, or a tuple of them."""
        if self.front:
            made = self.run(self.front.named(given))
            return made.popitem()[1] if len(made) == 1 else tuple(made.values())
        return self._of_arrays(*given)

    def _of_arrays(self, *given: Any) -> Any:
        results = self._call(given) if any(map(on_gpu, given)) else self._called(given)
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """{input name: array} -> {output name: array}."""
        return self.front.run(inputs, self._run) if self.front else self._run(inputs)

    def _run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        names = [v.name for v in self.inputs]
        if isinstance(inputs, Mapping) and set(inputs) == set(names):
            results = self._of_arrays(*(inputs[n] for n in names))
            made = results if isinstance(results, tuple) else (results,)
        else:
            made = tuple(self._called(arrays_in_order(self._specs, inputs)))
        return dict(zip([v.name for v in self.outputs], made))

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

    def caller(self, *, threads: int = 0, spin_us: int = 0) -> Caller:
        """The model for one thread that calls it again and again, with a stream and memory that
        nobody else uses; a GPU needs neither threads nor spinning.
        """
        return Caller(Context(self._open()))

    def energy_counter(self) -> Callable[[], int] | None:
        """What tells the millijoules that its GPU has taken, for all programs; None where nothing
        does.
        """
        return energy.counter(self._open().gpu)

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
            own = [n for n in known if n.startswith("sm_")]
            raise unfitting(gpu, own, self.manifest.name)
        return found

    def _open(self) -> Held:
        if self._held is None:
            raise Error("the model is closed", where=self.manifest.name, hint="load it again")
        return self._held

    def _called(self, given: Sequence[Any]) -> list[Array]:
        """Arrays of the CPU -> arrays of the CPU."""
        arrays = arrays_checked(self._specs, given)
        with self._context() as context:
            return context.run(arrays)

    def _call(self, given: Sequence[Any]) -> list[Any]:
        """Inputs of which some lie on the GPU -> outputs there, of the first one's library."""
        if len(given) != len(self._specs):
            arrays_checked(self._specs, given)
        taken = [
            one if on_gpu(one) else arrays_checked([spec], [one])[0]
            for spec, one in zip(self._specs, given)
        ]
        with self._context() as context:
            made = context.run_there(taken)
        first = next(filter(on_gpu, given))
        return [like(first, tensor) for tensor in made]

    @contextmanager
    def _context(self) -> Iterator[Context]:
        """What a run needs for itself, idle or new."""
        held = self._open()
        try:
            context = held.contexts.get_nowait()
        except queue.Empty:
            context = Context(held)
        try:
            yield context
        finally:
            if context.recorded:
                held.recorded.append(context)
            else:
                held.contexts.put(context)


class Caller:
    """A model on a GPU for one thread."""

    def __init__(self, context: Context) -> None:
        self._context: Context | None = context

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Inputs just as the model takes them -> new outputs."""
        assert self._context is not None, "it has ended"
        return self._context.run(arrays)

    def end(self) -> None:
        """Free its memory; it cannot be called again."""
        self._context = None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
