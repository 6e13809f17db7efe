"""What one run of a model on a GPU needs for itself, and the run: inputs -> outputs.

Arrays of the CPU go by way of pinned memory, and the run ends before it returns. Tensors of the GPU
are copied there, and it returns at once: their owners' work and ours are ordered on the GPU.
"""

from __future__ import annotations

import ctypes
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from qcompiler.artifact import program
from qcompiler.artifact.abi import ALIGN, GUARD
from qcompiler.artifact.artifact import Manifest
from qcompiler.dtypes import numpy_dtype
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.cuda import driver
from qcompiler.runtime.cuda.capsules import Borrowed
from qcompiler.runtime.cuda.tensors import DeviceTensor, Lasting, all_allocated, borrowed

_ALIGN = 256
"""Memory of a GPU is handed out in multiples of this; arrays inside it begin so, too."""


@dataclass(frozen=True)
class Held:
    """What a model holds until it is closed, and every call until it has ended."""

    gpu: driver.Gpu
    manifest: Manifest
    launches: Sequence[tuple[program.Launch, ctypes.c_void_p]]
    """With the function of each."""
    modules: driver.Modules
    weights: driver.Memory
    workspace_bytes: int
    steps: int
    contexts: queue.SimpleQueue[Context] = field(default_factory=queue.SimpleQueue)
    recorded: list[Context] = field(default_factory=list)
    """Contexts whose runs somebody has recorded, and may repeat at any time."""


class Context:
    """A stream, memory of inputs, outputs and the workspace, and the recorded steps."""

    def __init__(self, held: Held) -> None:
        self.held, self.gpu, self.recorded = held, held.gpu, False
        sides = (held.manifest.inputs, held.manifest.outputs)
        self.kinds = [[(numpy_dtype(v.dtype), v.shape) for v in side] for side in sides]
        sizes = [[prod(shape) * dtype.itemsize for dtype, shape in side] for side in self.kinds]
        places, total = _laid_out([*sizes[0], *sizes[1], held.workspace_bytes])
        self.memory = driver.Memory(self.gpu, total)
        starts = [self.memory.address + p for p in places]
        count = len(sizes[0])
        self.inputs, self.outputs, self.workspace = starts[:count], starts[count:-1], starts[-1]
        self.sizes = sizes
        self.pinned = driver.HostMemory(self.gpu, places[-1])
        self.at_host = [self.pinned.bytes[p:] for p in places]
        (variant,) = held.manifest.variants
        names = [v.name for v in held.manifest.outputs]
        self.extents = [(names.index(name), offset) for name, offset in variant.extents]
        ranks = [(offset, 8 * len(self.kinds[1][at][1])) for at, offset in self.extents]
        self.told = [*((c.offset, c.bytes) for c in variant.checks), *ranks]
        """Offsets and bytes in the workspace of what a run says of itself."""
        self.pinned_told = driver.HostMemory(self.gpu, sum(size for _, size in self.told))
        self.stream = driver.Stream(self.gpu)
        self.handle = self.stream.handle
        self.pending: list[tuple[driver.Event, list[Borrowed]]] = []
        """What runs that may not have ended read, and their ends."""
        with self.gpu.current() as call, driver.relaxed(call), driver.recording:
            self.stream.begin(call)
            self._launch_all(call)
            self.graph = self.stream.end(call)

    def __del__(self) -> None:
        if getattr(self, "pending", ()) and not self.recorded:
            with suppress(Error), self.gpu.current() as call, driver.relaxed(call):
                self._settle(call, wait=True)

    @contextmanager
    def _running(self) -> Iterator[driver.Driver]:
        """Calls inside give the stream work. Where one fails, what was given before has ended when
        the error goes on: nobody's memory is read any more.
        """
        with self.gpu.current() as call, driver.relaxed(call):
            try:
                yield call
            except BaseException:
                with suppress(Error):
                    call("cuStreamSynchronize", self.handle)
                raise

    def _launch_all(self, call: driver.Driver) -> None:
        for launch, function in self.held.launches:
            self._launch(call, launch, function)

    def _launch(
        self, call: driver.Driver, launch: program.Launch, function: ctypes.c_void_p
    ) -> None:
        addresses = [self._address(space, offset) for space, offset in launch.operands]
        values = (*addresses, *launch.numbers)
        self.stream.launch(call, function, launch.blocks, launch.threads, values)

    def _address(self, space: str, offset: int) -> int:
        if space == "weights":
            return self.held.weights.address + offset
        if space == "workspace":
            return self.workspace + offset
        return (self.inputs if space == "input" else self.outputs)[offset]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Inputs -> new outputs."""
        count = len(self.inputs)
        with self._running() as call:
            self._settle(call, wait=True)
            for i, array in enumerate(arrays):
                self._send(call, i, array)
            call("cuGraphLaunch", self.graph.handle, self.handle)
            for i, address in enumerate(self.outputs):
                to, size = ctypes.c_void_p(_at(self.at_host[count + i])), self.sizes[1][i]
                call("cuMemcpyDtoHAsync_v2", to, _u64(address), _size(size), self.handle)
            at = _at(self.pinned_told.bytes)
            for offset, size in self.told:
                source = _u64(self.workspace + offset)
                call("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(at), source, _size(size), self.handle)
                at += size
            call("cuStreamSynchronize", self.handle)
        return self._cut(self._made())

    def _made(self) -> list[Array]:
        """Copies of the outputs that have come."""
        count = len(self.inputs)
        made: list[Array] = []
        for i, (dtype, shape) in enumerate(self.kinds[1]):
            raw = self.at_host[count + i][: self.sizes[1][i]]
            made.append(raw.view(dtype).reshape(shape).copy())
        return made

    def _cut(self, outputs: list[Array]) -> list[Array]:
        """Outputs to the sizes that data decided. Raises Error if a check of the run failed."""
        (variant,) = self.held.manifest.variants
        ends = np.cumsum([size for _, size in self.told])
        told = np.split(self.pinned_told.bytes, ends[:-1]) if self.told else []
        for check, seen in zip(variant.checks, told):
            if not seen.all():
                hint = "compile the model for the shapes that these values give"
                raise Error(check.what, hint=hint)
        for (at, _), raw in zip(self.extents, told[len(variant.checks) :]):
            sizes = raw.copy().view(np.int64)
            outputs[at] = outputs[at][tuple(slice(int(n)) for n in sizes)]
        return outputs

    def run_there(self, given: Sequence[Any]) -> list[DeviceTensor]:
        """Inputs, some of which lie on the GPU -> new outputs there, which may not be written yet.

        Where somebody records the work that makes an input, that of this run is recorded with it:
        launch by launch, and its memory is nobody else's from then on.
        """
        values, stream = self.held.manifest.inputs, self.stream
        if self.told:
            what = "each run of this model is checked, or decides the sizes of its outputs"
            raise Error(what, where=self.held.manifest.name, hint="give arrays of the CPU")
        here = any(isinstance(one, np.ndarray) for one in given)
        with self._running() as call:
            self._settle(call, wait=here)
            try:
                lent = [
                    None if isinstance(one, np.ndarray) else borrowed(one, value, self.gpu, stream)
                    for value, one in zip(values, given)
                ]
            finally:
                self.recorded = stream.recorded_by_others(call)
            for i, (one, found) in enumerate(zip(given, lent)):
                if found is None:
                    self._send(call, i, one)
                else:
                    self._copy(call, self.inputs[i], found.address, self.sizes[0][i])
            if self.recorded:
                self._launch_all(call)
            else:
                call("cuGraphLaunch", self.graph.handle, self.handle)
            return self._lasting(call, [found for found in lent if found is not None])

    def _lasting(self, call: driver.Driver, lent: list[Borrowed]) -> list[DeviceTensor]:
        """The outputs in memory of their own, except where their run may be repeated."""
        outputs = self.held.manifest.outputs
        keep: Context | None = self if self.recorded else None
        addresses = self.outputs
        if keep is None:
            addresses = all_allocated(self.gpu, call, outputs, self.stream)
            for to, source, size in zip(addresses, self.outputs, self.sizes[1]):
                self._copy(call, to, source, size)
        ready = driver.Event(self.gpu, timed=False)
        ready.record(call, self.handle)
        self.pending.append((ready, lent))
        return [
            DeviceTensor(Lasting(self.gpu, address, ready, keep), value)
            for address, value in zip(addresses, outputs)
        ]

    def _settle(self, call: driver.Driver, *, wait: bool) -> None:
        """Give back what runs that have ended borrowed; `wait` until all have."""
        while self.pending:
            ended, _ = self.pending[0]
            if wait:
                call("cuEventSynchronize", ended.handle)
            elif not ended.has_come(call):
                return
            del self.pending[0]

    def timed(self, arrays: Sequence[Array]) -> list[float]:
        """Inputs -> seconds of each step."""
        marks = [driver.Event(self.gpu) for _ in range(self.held.steps + 1)]
        with self._running() as call:
            self._settle(call, wait=True)
            for i, array in enumerate(arrays):
                self._send(call, i, array)
            done = 0
            for launch, function in self.held.launches:
                while done <= launch.step:
                    marks[done].record(call, self.handle)
                    done += 1
                self._launch(call, launch, function)
            for mark in marks[done:]:
                mark.record(call, self.handle)
            call("cuStreamSynchronize", self.handle)
            return [b.since(call, a) for a, b in zip(marks, marks[1:])]

    def _send(self, call: driver.Driver, i: int, array: Array) -> None:
        """Copy an input to pinned memory, and have it copied from there."""
        dtype, shape = self.kinds[0][i]
        room = self.at_host[i]
        np.copyto(room[: self.sizes[0][i]].view(dtype).reshape(shape), array)
        to, size = _u64(self.inputs[i]), _size(self.sizes[0][i])
        call("cuMemcpyHtoDAsync_v2", to, ctypes.c_void_p(_at(room)), size, self.handle)

    def _copy(self, call: driver.Driver, to: int, source: int, size: int) -> None:
        call("cuMemcpyDtoDAsync_v2", _u64(to), _u64(source), _size(size), self.handle)


def _laid_out(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Sizes -> the offset of each, and the size of all; bytes behind each may be read."""
    places, at = [], 0
    for size in sizes:
        places.append(at)
        at += -(-(size + max(ALIGN, GUARD)) // _ALIGN) * _ALIGN
    return places, at


def _u64(value: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)


def _size(value: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(value)


def _at(array: Array) -> int:
    return int(array.ctypes.data)
