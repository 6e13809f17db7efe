"""Tensors in a GPU's memory: those of other libraries, by DLPack, and those that models return.

    y = model(x)               # x: torch, cupy, or whatever has __dlpack__, on the model's GPU

Neither side waits: x's library lets the model's stream wait for what makes x, and a model's output
lets the stream of whoever takes it wait for the model.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np

from qcompiler.artifact.artifact import Value
from qcompiler.dtypes import numpy_dtype
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.cuda import driver
from qcompiler.runtime.cuda.capsules import CUDA, MANAGED, Borrowed, capsule_of, code_of

_LEGACY = 1
"""The default stream, by the number that both DLPack and the driver give it."""
_UNORDERED = -1
"""DLPack's number for: the consumer ensures the order."""


def on_gpu(given: object) -> bool:
    """Whether an input lies in a GPU's memory, as it says itself."""
    if type(given) is np.ndarray or not hasattr(given, "__dlpack_device__"):
        return False
    kind, _ = given.__dlpack_device__()
    return kind in (CUDA, MANAGED)


def borrowed(given: Any, value: Value, gpu: driver.Gpu, stream: driver.Stream) -> Borrowed:
    """An input -> its memory, which the work of a stream may read from now on. Raises Error where
    it is none that the model takes.
    """
    where = f"input {value.name!r}"
    _, number = given.__dlpack_device__()
    if number != gpu.number:
        what = f"the tensor lies on cuda:{number}, the model on cuda:{gpu.number}"
        raise Error(what, where=where, hint="copy it there, or load the model there")
    found = Borrowed(given, stream.handle.value or 0, where)
    if found.code != code_of(value.dtype):
        raise Error(f"{found.dtype} given, {value.dtype} wanted", where=where)
    if found.shape != value.shape:
        what = f"shape {list(found.shape)} given, {list(value.dims)} wanted"
        raise Error(what, where=where, hint="compile for another shape with --input-shape")
    if not found.contiguous:
        raise Error("its elements do not follow each other", where=where, hint="x.contiguous()")
    return found


def like(given: object, made: DeviceTensor) -> Any:
    """A model's output as a tensor of the library that an input came from; as it is, if that takes
    none.
    """
    take = _taker(given)
    return made if take is None else take(made)


def _taker(given: object) -> Callable[[DeviceTensor], Any] | None:
    if isinstance(given, DeviceTensor):
        return None
    if hasattr(given, "__array_namespace__"):
        return getattr(given.__array_namespace__(), "from_dlpack", None)
    return getattr(sys.modules.get(type(given).__module__.partition(".")[0]), "from_dlpack", None)


class DeviceTensor:
    """An output in a GPU's memory. Whatever takes DLPack takes it (`torch.from_dlpack(y)`); its
    memory is freed with the last reference of either side.
    """

    def __init__(self, memory: Lasting, value: Value) -> None:
        self.dtype, self.shape = value.dtype, value.shape
        self._memory = memory

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._memory.gpu.number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("it is given where it lies, and not as a copy")
        if stream == 0:
            raise BufferError("stream 0 may be either default stream: give 1 or 2")
        self._memory.lend(_LEGACY if stream is None else stream)
        versioned = max_version is not None and max_version[0] >= 1
        device, memory = self.__dlpack_device__(), self._memory
        return capsule_of(memory, memory.address, self.dtype, self.shape, device, versioned)

    def numpy(self) -> Array:
        """A copy for the CPU, when the model has ended."""
        made: Array = np.empty(self.shape, numpy_dtype(self.dtype))
        self._memory.read(made)
        return made

    def __repr__(self) -> str:
        return f"DeviceTensor({self.dtype}{list(self.shape)}, cuda:{self._memory.gpu.number})"


class Lasting:
    """Memory of an output, with the moment from which on it is written.

    Freeing it waits for what reads it: in order, without the CPU, where that was only ever the
    default stream, else for the whole GPU, since a stream of others may be gone by then.
    """

    def __init__(self, gpu: driver.Gpu, address: int, ready: driver.Event, keep: object) -> None:
        self.gpu, self.address, self._ready, self._keep = gpu, address, ready, keep
        self._readers: set[int] = set()

    def lend(self, stream: int) -> None:
        """Let a stream wait until it is written."""
        self._readers.add(stream)
        if stream != _UNORDERED:
            with self.gpu.current() as call:
                self._ready.delay(call, ctypes.c_void_p(stream))

    def read(self, into: Array) -> None:
        """Copy it to the CPU."""
        with self.gpu.current() as call:
            call("cuEventSynchronize", self._ready.handle)
            to, size = ctypes.c_void_p(into.ctypes.data), ctypes.c_size_t(into.nbytes)
            call("cuMemcpyDtoH_v2", to, ctypes.c_uint64(self.address), size)

    def __del__(self) -> None:
        if self._keep is not None:
            return  # another owns the memory
        in_order = self.gpu.pools and self._readers <= {_LEGACY}
        try:
            with self.gpu.current() as call, driver.relaxed(call):
                if in_order:
                    self._ready.delay(call, ctypes.c_void_p(_LEGACY))
                    _freed(call, self.gpu, self.address)
                else:
                    _free_later(call, self.gpu, self.address)
        except Error:  # somebody records the default stream
            _unfreed.append((self.gpu, self.address))


_unfreed: list[tuple[driver.Gpu, int]] = []
"""Memory to be freed when all work of its GPU has ended, of any thread."""


def _free_later(call: driver.Driver, gpu: driver.Gpu, *addresses: int) -> None:
    """Free memory, and what is left from before, after all work of the GPU. While somebody records
    work of it, which may not be waited for, all is left for another time.
    """
    _unfreed.extend((gpu, address) for address in addresses)
    if not _unfreed or not driver.recording.acquire(blocking=False):
        return
    try:
        left = [pair for pair in _unfreed if pair[0].number == gpu.number]
        with suppress(Error):
            call("cuCtxSynchronize")
            for pair in left:
                _freed(call, *pair)
                _unfreed.remove(pair)
    finally:
        driver.recording.release()


def _freed(call: driver.Driver, gpu: driver.Gpu, address: int) -> None:
    """Free memory of an output, in the order of the default stream."""
    at = ctypes.c_uint64(address)
    if gpu.pools:
        call("cuMemFreeAsync", at, ctypes.c_void_p(_LEGACY))
    else:
        call("cuMemFree_v2", at)


def all_allocated(
    gpu: driver.Gpu, call: driver.Driver, values: Sequence[Value], stream: driver.Stream
) -> list[int]:
    """The addresses of new memory for outputs, for the work of a stream from now on."""
    _free_later(call, gpu)
    made: list[int] = []
    try:
        for value in values:
            made.append(_allocated(gpu, call, value, stream))
    except Error:
        _free_later(call, gpu, *made)
        raise
    return made


def _allocated(gpu: driver.Gpu, call: driver.Driver, value: Value, stream: driver.Stream) -> int:
    made = ctypes.c_uint64()
    size = ctypes.c_size_t(max(1, prod(value.shape) * numpy_dtype(value.dtype).itemsize))
    if gpu.pools:
        call("cuMemAllocAsync", ctypes.byref(made), size, stream.handle)
    else:
        call("cuMemAlloc_v2", ctypes.byref(made), size)
    return int(made.value)
