"""NVIDIA's driver, by ctypes: no toolkit and no library but libcuda, which comes with the driver.

Every call that fails raises Error with the driver's own name of what is wrong.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from qcompiler.artifact.program import number_of
from qcompiler.errors import Error

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_THREAD_LOCAL, _RELAXED = 1, 2  # CU_STREAM_CAPTURE_MODE_*
_POOLS = 115  # CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
_UNTIMED = 2  # CU_EVENT_DISABLE_TIMING
_NOT_READY = 600
_HINTS = {
    2: "use a smaller batch, or a GPU with more memory",  # CUDA_ERROR_OUT_OF_MEMORY
    222: "install a newer driver, or compile for this GPU",  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION
}
_held: dict[str, Driver] = {}
_lock = threading.Lock()
recording = threading.Lock()
"""Held while a graph of ours is recorded: waiting for all work of the GPU would spoil it."""


def driver(path: str = LIBRARY) -> Driver:
    """The driver, loaded once. Raises Error where there is none, or where a process that has loaded
    it has forked.
    """
    with _lock:
        if path not in _held:
            _held[path] = Driver(path)
        _held[path].check_process()
        return _held[path]


class Driver:
    """The loaded library; `version` as 1000 * major + 10 * minor."""

    def __init__(self, path: str) -> None:
        try:
            self.library = ctypes.CDLL(path)
        except OSError as e:
            raise Error(
                "there is no driver for NVIDIA's GPUs",
                where=path,
                hint="install NVIDIA's driver, or compile for this machine's CPU",
            ) from e
        self.process = os.getpid()
        self("cuInit", 0)
        found = ctypes.c_int()
        self("cuDriverGetVersion", ctypes.byref(found))
        self.version = found.value

    def __call__(self, name: str, *given: Any) -> None:
        """Call a function of the driver."""
        self.check(name, int(getattr(self.library, name)(*given)))

    def check_process(self) -> None:
        """Raise Error in a process that was forked from the one that has loaded the driver, which
        works there only.
        """
        if os.getpid() != self.process:
            raise Error(
                "this process was forked from one that uses the GPU",
                hint='start processes by multiprocessing.get_context("spawn"), or load models in'
                " the new one only",
            )

    def check(self, name: str, status: int) -> None:
        """Raise Error if a function of the driver did not succeed."""
        if status == 0:
            return
        word = ctypes.c_char_p()
        self.library.cuGetErrorName(status, ctypes.byref(word))
        what = (word.value or b"an unknown error").decode()
        raise Error(f"the GPU's driver: {name}: {what} ({status})", hint=_HINTS.get(status, ""))

    def handle(self, name: str, *given: Any) -> ctypes.c_void_p:
        """Call a function that makes something, where its first operand says -> what it made."""
        made = ctypes.c_void_p()
        self(name, ctypes.byref(made), *given)
        return made


@contextmanager
def relaxed(call: Driver) -> Iterator[None]:
    """Calls inside may allocate and free also while somebody else's work is being recorded."""
    mode = ctypes.c_int(_RELAXED)
    call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))


class Gpu:
    """One GPU, with its primary context, which other libraries in the process share."""

    def __init__(self, driver: Driver, number: int) -> None:
        count = ctypes.c_int()
        driver("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= number < count.value:
            raise Error(f"there is no GPU {number}: {count.value} were found", where="device")
        self.call, self.number = driver, number
        device = ctypes.c_int()
        driver("cuDeviceGet", ctypes.byref(device), number)
        self.device = device.value
        major, minor = (self._attribute(which) for which in (_MAJOR, _MINOR))
        self.capability = (major, minor)
        self.pools = bool(self._attribute(_POOLS))
        """Whether memory can be had and freed in the order of a stream."""
        self.context = driver.handle("cuDevicePrimaryCtxRetain", self.device)

    def _attribute(self, which: int) -> int:
        found = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(found), which, self.device)
        return found.value

    @contextmanager
    def current(self) -> Iterator[Driver]:
        """Calls inside are about this GPU; afterwards those of this thread are about what they were
        about before.
        """
        self.call.check_process()
        self.call("cuCtxPushCurrent_v2", self.context)
        try:
            yield self.call
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def free(self, name: str, what: Any) -> None:
        """Free something by a function of the driver. What cannot be freed is left: a GPU that is
        lost holds nothing any more, nor does a process that was forked.
        """
        with suppress(Error), self.current() as call, relaxed(call):
            call(name, what)

    def fitting(self, architectures: Sequence[str]) -> str | None:
        """The best of some architectures whose code runs here: of the same major number,
        and no higher minor one; the same for the chips of boards (8.7). Or one whose PTX the driver
        can compile: "compute_80", where this GPU is later.
        """
        major, minor = self.capability
        known = {n: divmod(number_of(n), 10) for n in architectures if n.startswith("sm_")}
        if self.capability == (8, 7):
            same = next((n for n, found in known.items() if found == (8, 7)), None)
            return same or self._compiled_here(architectures)
        fit = {
            n: m for n, (j, m) in known.items() if j == major and m <= minor and (j, m) != (8, 7)
        }
        return max(fit, key=lambda n: fit[n], default=self._compiled_here(architectures))

    def _compiled_here(self, architectures: Sequence[str]) -> str | None:
        major, minor = self.capability
        texts = [n for n in architectures if n.startswith("compute_")]
        older = [n for n in texts if divmod(number_of(n), 10) <= (major, minor)]
        return max(older, key=number_of, default=None)


class Memory:
    """Memory of a GPU, freed with the last reference."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu, self.size = gpu, size
        self._address = ctypes.c_uint64()
        with gpu.current() as call, relaxed(call):
            call("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(max(size, 1)))
        self.address = int(self._address.value)

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            self.gpu.free("cuMemFree_v2", ctypes.c_uint64(self.address))


class HostMemory:
    """Memory of the CPU that a GPU reads and writes while the CPU does something else."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu, self.address = gpu, 0
        made = ctypes.c_void_p()
        with gpu.current() as call, relaxed(call):
            call("cuMemHostAlloc", ctypes.byref(made), ctypes.c_size_t(max(size, 1)), 0)
        self.address = int(made.value or 0)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))

    def __del__(self) -> None:
        if self.address:
            self.gpu.free("cuMemFreeHost", ctypes.c_void_p(self.address))


class Stream:
    """An order of work on a GPU."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        with gpu.current() as call:
            self.handle = call.handle("cuStreamCreate", _NON_BLOCKING)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.gpu.free("cuStreamDestroy_v2", self.handle)

    def launch(
        self,
        call: Driver,
        function: ctypes.c_void_p,
        blocks: Sequence[int],
        threads: int,
        given: Sequence[int],
    ) -> None:
        """Start a function of addresses and numbers on blocks of threads."""
        values = (ctypes.c_int64 * len(given))(*given)
        at, size = ctypes.addressof(values), ctypes.sizeof(ctypes.c_int64)
        each = [ctypes.c_void_p(at + i * size) for i in range(len(values))]
        pointers = (ctypes.c_void_p * (len(values) + 1))(*each)  # the last is null
        sizes = map(ctypes.c_uint, (*blocks, threads, 1, 1, 0))
        call("cuLaunchKernel", function, *sizes, self.handle, pointers, None)

    def recorded_by_others(self, call: Driver) -> bool:
        """Whether it waits for a stream whose work somebody records, so that its own is, too."""
        state = ctypes.c_int()
        call("cuStreamIsCapturing", self.handle, ctypes.byref(state))
        return state.value != 0

    def begin(self, call: Driver) -> None:
        """Record what follows instead of doing it."""
        call("cuStreamBeginCapture_v2", self.handle, _THREAD_LOCAL)

    def end(self, call: Driver) -> Graph:
        """What was recorded, ready to be launched at once."""
        recorded = ctypes.c_void_p()
        call("cuStreamEndCapture", self.handle, ctypes.byref(recorded))
        try:
            return Graph(self.gpu, call.handle("cuGraphInstantiateWithFlags", recorded, _flags()))
        finally:
            call("cuGraphDestroy", recorded)


class Event:
    """A moment in a stream; `timed`: whose time can be asked."""

    def __init__(self, gpu: Gpu, *, timed: bool = True) -> None:
        self.gpu = gpu
        with gpu.current() as call:
            self.handle = call.handle("cuEventCreate", 0 if timed else _UNTIMED)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.gpu.free("cuEventDestroy_v2", self.handle)

    def record(self, call: Driver, stream: ctypes.c_void_p) -> None:
        """The moment when all before it in a stream is done."""
        call("cuEventRecord", self.handle, stream)

    def delay(self, call: Driver, stream: ctypes.c_void_p) -> None:
        """What a stream is given from now on waits for this moment."""
        call("cuStreamWaitEvent", stream, self.handle, 0)

    def has_come(self, call: Driver) -> bool:
        """Whether all before it is done."""
        status = int(call.library.cuEventQuery(self.handle))
        if status != _NOT_READY:
            call.check("cuEventQuery", status)
        return status != _NOT_READY

    def since(self, call: Driver, earlier: Event) -> float:
        """Seconds from another moment; both have come."""
        found = ctypes.c_float()
        call("cuEventElapsedTime", ctypes.byref(found), earlier.handle, self.handle)
        return found.value / 1e3


def _flags() -> ctypes.c_uint64:
    return ctypes.c_uint64(0)


class Graph:
    """Recorded work."""

    def __init__(self, gpu: Gpu, handle: ctypes.c_void_p) -> None:
        self.gpu, self.handle = gpu, handle

    def __del__(self) -> None:
        self.gpu.free("cuGraphExecDestroy", self.handle)


class Modules:
    """Loaded machine code, unloaded with the last reference."""

    def __init__(self, gpu: Gpu, codes: Sequence[bytes]) -> None:
        self.gpu, self._codes = gpu, [ctypes.create_string_buffer(c, len(c)) for c in codes]
        self._loaded: list[ctypes.c_void_p] = []
        with gpu.current() as call:
            for code in self._codes:
                self._loaded.append(call.handle("cuModuleLoadData", code))

    def function(self, module: int, name: str) -> ctypes.c_void_p:
        """A function of a module."""
        with self.gpu.current() as call:
            return call.handle("cuModuleGetFunction", self._loaded[module], name.encode())

    def __del__(self) -> None:
        for module in self._loaded:
            self.gpu.free("cuModuleUnload", module)
