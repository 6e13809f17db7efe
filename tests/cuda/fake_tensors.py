"""A library of tensors on the fake driver's GPU, with a current stream, as torch and cupy are.

Its capsules are made by numpy, which knows nothing of ours: the fake GPU's memory is the CPU's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from qcompiler.runtime.cuda import driver as drivers
from qcompiler.runtime.cuda.capsules import Borrowed

current: list[drivers.Stream] = []
"""The stream that this library's work is given to, last."""


class Tensor:
    """An array that will be on the GPU when the current stream comes to it."""

    def __init__(self, gpu: drivers.Gpu, array: np.ndarray, version: int = 1) -> None:
        self.gpu, self.array, self.version = gpu, np.ascontiguousarray(array), version
        self.memory, self.number, self.order = drivers.Memory(gpu, array.nbytes), 0, "C"
        self.write(array)

    def write(self, array: np.ndarray) -> None:
        """Let the current stream fill it anew."""
        self.array = np.ascontiguousarray(array)
        size = ctypes.c_size_t(self.array.nbytes)
        at, to = ctypes.c_void_p(self.array.ctypes.data), ctypes.c_uint64(self.memory.address)
        with self.gpu.current() as call:
            call("cuMemcpyHtoDAsync_v2", to, at, size, current[-1].handle)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, *, stream: int | None = None, **more: Any) -> Any:
        if self.version < 1 and more:
            raise TypeError("unexpected keyword argument 'max_version'")
        with self.gpu.current() as call:
            moment = drivers.Event(self.gpu, timed=False)
            moment.record(call, current[-1].handle)
            moment.delay(call, ctypes.c_void_p(stream))
        raw = (ctypes.c_uint8 * self.array.nbytes).from_address(self.memory.address)
        raw.owner = self  # type: ignore[attr-defined]
        seen = (
            np.ctypeslib.as_array(raw)
            .view(self.array.dtype)
            .reshape(self.array.shape, order=self.order)
        )
        return seen.__dlpack__(**more)


class Taken:
    """A tensor of another library, as this one takes it."""

    def __init__(self, gpu: drivers.Gpu, given: Any) -> None:
        self.gpu = gpu
        self.own = Borrowed(given, current[-1].handle.value or 0, "a tensor")

    def numpy(self, dtype: str = "float32") -> np.ndarray:
        """What it holds, when the current stream comes to it."""
        made = np.empty(self.own.shape, dtype)
        size, source = ctypes.c_size_t(made.nbytes), ctypes.c_uint64(self.own.address)
        with self.gpu.current() as call:
            to = ctypes.c_void_p(made.ctypes.data)
            call("cuMemcpyDtoHAsync_v2", to, source, size, current[-1].handle)
            call("cuStreamSynchronize", current[-1].handle)
        return made


def from_dlpack(given: Any) -> Taken:
    """What others give -> a tensor of this library."""
    return Taken(current[-1].gpu, given)
