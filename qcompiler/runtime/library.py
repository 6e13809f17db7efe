"""Machine code -> callables, and the threads that run it. Needs nothing but the C library."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact import ALIGN
from qcompiler.errors import Error
from qcompiler.runtime.mapping import mapped, unmapped

_CREW_BYTES, _WORKER_BYTES = 128, 64  # as in emit/crew.py
_GUARD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Memory:
    """An array, and where its first element lies (asking numpy for that takes a microsecond)."""

    array: NDArray[Any]
    address: int


def address(array: NDArray[Any]) -> int:
    """Where an array's first element lies."""
    return int(array.__array_interface__["data"][0])  # half the time of array.ctypes.data


def aligned(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Memory:
    """An uninitialised array whose address is a multiple of 64, with room to read a vector past the
    end.
    """
    raw = np.empty(prod(shape) * dtype.itemsize + ALIGN + _GUARD_BYTES, np.uint8)
    at = address(raw)
    skip = -at % ALIGN
    return Memory(np.ndarray(shape, dtype, raw, skip), at + skip)


def aligned_copy(array: NDArray[Any]) -> Memory:
    """An array -> itself if it is contiguous and its address is a multiple of 64, else a copy."""
    at = address(array)
    if at % ALIGN == 0 and array.flags.c_contiguous:
        return Memory(array, at)
    copy = aligned(array.dtype, array.shape)
    copy.array[...] = array
    return copy


class Code:
    """A shared library's bytes -> its functions.

    It is unloaded when nobody holds it any more. Models hold it, every call that runs does, and the
    workers that wait in it; so it is never unloaded under a thread that executes it.
    """

    def __init__(self, code: bytes) -> None:
        self._library = mapped(code)
        weakref.finalize(self, unmapped, self._library).atexit = False  # workers may still be in it
        pointer, number = ctypes.c_void_p, ctypes.c_int
        try:
            self.run = self._library.qcompiler_run
            self.launch = self._library.qcompiler_launch
            self.work = self._library.qcompiler_work
        except AttributeError as e:
            raise Error(f"the machine code lacks what is called in it ({e})") from e
        self.run.argtypes = (pointer, number, number)
        self.launch.argtypes = (pointer, pointer, pointer, number)
        self.work.argtypes = (pointer, number)
        self.run_address = ctypes.cast(self.run, pointer)

    @property
    def signature(self) -> int:
        """What a whole model's code says that it takes for granted (see artifact.signature)."""
        found = ctypes.c_int32()
        try:
            self._library.qcompiler_signature(ctypes.byref(found))
        except AttributeError as e:
            raise Error(f"the machine code lacks what is called in it ({e})") from e
        return found.value


_loading = threading.Lock()
_loaded: weakref.WeakValueDictionary[bytes, Code] = weakref.WeakValueDictionary()
"""Code in use, by its SHA-256."""


def shared_code(code: bytes) -> Code:
    """A shared library's bytes -> its functions; equal bytes are mapped once."""
    digest = hashlib.sha256(code).digest()
    with _loading:
        found = _loaded.get(digest)
        if found is None:
            found = _loaded[digest] = Code(code)
        return found


class Frame:
    """What one run needs: a workspace, and the table that machine code reads (emit/native.py):
    addresses of inputs, outputs, weights, workspace and crew, then the first and the last step.
    """

    def __init__(self, arrays: int, weights: Memory, workspace_bytes: int) -> None:
        self.workspace = aligned(np.dtype(np.uint8), (workspace_bytes,))
        self.table = (ctypes.c_int64 * (arrays + 5))()
        self.table[arrays : arrays + 2] = [weights.address, self.workspace.address]
        self.crew_at = arrays + 2
        self._pointer = ctypes.c_void_p(ctypes.addressof(self.table))

    def fill(self, arrays: Iterable[Memory]) -> None:
        """Run on these: all inputs, then all outputs."""
        for i, memory in enumerate(arrays):
            self.table[i] = memory.address

    def run(self, code: Code, threads: int, first: int, last: int) -> None:
        """Run steps with as many threads as are wanted and can be had."""
        table, at = self.table, self.crew_at
        table[at + 1], table[at + 2] = first, last
        if threads == 1:
            code.run(self._pointer, 0, 1)
            return
        crew = _free_crew(threads, code)
        try:
            table[at] = crew.memory.address
            code.launch(table[at], code.run_address, self._pointer, crew.tasks)
        finally:
            crew.free()


class Crew:
    """The calling thread and tasks - 1 workers, that run one function together (emit/crew.py).

    Workers wait in machine code, without Python's lock: spinning for about a millisecond, then
    asleep. A crew serves one run at a time and any artifact; it lives as long as the process, and
    so does the code that its workers wait in. When a launch returns, they have left what it ran.
    """

    def __init__(self, tasks: int, code: Code) -> None:
        self.wanted = tasks
        self.memory = aligned(np.dtype(np.uint8), (_CREW_BYTES + tasks * _WORKER_BYTES,))
        self.memory.array[:] = 0
        self.tasks = 1
        for task in range(1, tasks):
            worker = threading.Thread(
                target=self._work, args=(code, task), name=f"qcompiler-{task}", daemon=True
            )
            try:
                worker.start()
            except RuntimeError:  # no thread to be had: fewer do all the work
                break
            self.tasks += 1

    def _work(self, code: Code, task: int) -> None:
        code.work(self.memory.address, task)

    def free(self) -> None:
        """Let others use it."""
        with _lock:
            _crews.setdefault(self.wanted, []).append(self)


_lock = threading.Lock()
_crews: dict[int, list[Crew]] = {}
"""Those that nobody uses, by the tasks they were wanted for; the warmest last."""


def _free_crew(tasks: int, code: Code) -> Crew:
    with _lock:
        free = _crews.get(tasks)
        if free:
            return free.pop()
    return Crew(tasks, code)


def _forget_crews() -> None:
    """In the child of a fork: its parent's workers are not there."""
    global _lock, _loading
    _lock, _loading = threading.Lock(), threading.Lock()
    _crews.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_crews)
