"""Machine code -> callables, and the threads that run it. Needs only the C library."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.abi import (
    ALIGN,
    GUARD,
    MOST_UNITS,
    REFUSED,
    SPINS_PER_US,
    TEAM,
    Table,
    team_bytes,
)
from qcompiler.errors import Error
from qcompiler.hardware import cpu
from qcompiler.runtime.mapping import mapped, unmapped


@dataclass(frozen=True)
class Memory:
    """An array and the address of its first element (asking numpy for it takes a microsecond)."""

    __slots__ = ("address", "array")

    array: NDArray[Any]
    address: int


def address(array: NDArray[Any]) -> int:
    """The address of an array's first element."""
    return int(array.__array_interface__["data"][0])  # half the time of array.ctypes.data


def aligned(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Memory:
    """An uninitialised array whose address is a multiple of 64, and past whose end a vector may be
    read.
    """
    raw = np.empty(prod(shape) * dtype.itemsize + ALIGN + GUARD, np.uint8)
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

    It is unloaded with its last reference. Models, running calls and the workers that wait in it
    hold one each, so it is never unloaded under a thread that executes it.
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
        self.run.argtypes = (pointer,)
        self.launch.argtypes = (pointer, pointer, number)
        self.work.argtypes = (pointer, number)

    def demand_permission(self, arrays: int) -> None:
        """Raise Error unless the system lets this process use the registers that the code needs; a
        run of no steps asks for them. `arrays`: number of inputs and outputs.
        """
        words = Table(arrays)
        table = (ctypes.c_int64 * words.words)()
        self.run(ctypes.addressof(table))
        if table[words.permission] == REFUSED:
            raise _refused()

    @property
    def signature(self) -> int:
        """What a whole model's code expects of its manifest (`Manifest.signature`)."""
        found = ctypes.c_int32()
        try:
            self._library.qcompiler_signature(ctypes.byref(found))
        except AttributeError as e:
            raise Error(f"the machine code lacks what is called in it ({e})") from e
        return found.value


_loading = threading.RLock()
_loaded: weakref.WeakValueDictionary[bytes, Code] = weakref.WeakValueDictionary()
"""Code in use, by its SHA-256."""


def shared_code(code: bytes) -> Code:
    """A shared library's bytes -> its functions; the same bytes are mapped once."""
    digest = hashlib.sha256(code).digest()
    with _loading:
        found = _loaded.get(digest)
        if found is None:
            found = _loaded[digest] = Code(code)
        return found


class Frame:
    """What one run needs: a workspace and the table that machine code reads."""

    def __init__(self, arrays: int, weights: Memory, workspace_bytes: int) -> None:
        self.workspace = aligned(np.dtype(np.uint8), (workspace_bytes,))
        self.words = Table(arrays)
        self.table = (ctypes.c_int64 * self.words.words)()
        self.table[self.words.weights] = weights.address
        self.table[self.words.workspace] = self.workspace.address
        self._pointer = ctypes.c_void_p(ctypes.addressof(self.table))
        self.crew: Crew | None = None
        """The threads that run it; None: a team that no other call is using."""

    def fill(self, arrays: Iterable[Memory]) -> None:
        """Enter all inputs, then all outputs, into the table."""
        for i, memory in enumerate(arrays):
            self.table[i] = memory.address

    def run(self, code: Code, threads: int, first: int, last: int) -> None:
        """Run steps `first` to `last` - 1: by its crew, or with up to `threads` threads."""
        if self.crew is not None:
            self.crew.run(self, code, first, last)
            return
        hold = Hold()
        team = _free_team(min(threads, MOST_UNITS), code, hold)
        try:
            self.launch(code, team, first, last)
        finally:
            if team is not None:
                team.free()

    def launch(self, code: Code, team: Team | None, first: int, last: int) -> None:
        """Run these steps by a team that nobody else uses, or None, alone."""
        table, words = self.table, self.words
        table[words.first], table[words.last] = first, last
        if team is None or team.threads == 1:
            code.run(self._pointer)
        else:
            code.launch(team.memory.address, self._pointer, team.threads)
        if table[words.permission] == REFUSED:
            table[words.permission] = 0
            raise _refused()


class Crew(Protocol):
    """Runs the steps of frames for one caller at a time."""

    def run(self, frame: Frame, code: Code, first: int, last: int) -> None:
        """Run steps `first` to `last` - 1."""

    def end(self) -> None:
        """Give back what it holds; it runs no more."""


SPIN_US = 300
"""Default microseconds that workers look for work before they fall asleep."""
_ENDING_SECONDS = 5.0


class Refused(Error):
    """The system does not let this process use registers that code needs."""


def _refused() -> Refused:
    """The Error of a table whose last word is REFUSED (emit/entries.py)."""
    return Refused(
        "the system refuses this process registers that the code needs",
        hint="a newer kernel may have them, or a sandbox that lets the system call for them pass;"
        " or compile for another instruction set: `qcompiler targets`",
    )


class Team:
    """A thread team: the calling thread and workers that run sections together (emit/team.py).

    Workers wait in machine code, without Python's lock: spinning for a moment, then asleep. A team
    serves one run at a time, of any artifact. It lives until it is ended, and so does the code its
    workers wait in; the teams that models share are never ended. Workers touch a launch's memory
    only after claiming a unit of it, and a launch returns when all claimed units are finished.
    """

    def __init__(self, threads: int, code: Code, spin_us: int = SPIN_US) -> None:
        self.wanted = threads
        self._held: weakref.ref[Hold] | None = None
        self.memory = aligned(np.dtype(np.uint8), (team_bytes(threads),))
        self.memory.array[:] = 0
        self._word("SPINS")[0] = spin_us * SPINS_PER_US
        self.threads = 1
        self._workers: list[threading.Thread] = []
        for number in range(1, threads):
            worker = threading.Thread(
                target=self._work, args=(code, number), name=f"qcompiler-{number}", daemon=True
            )
            try:
                worker.start()
            except RuntimeError:  # no more threads: fewer do all the work
                break
            self._workers.append(worker)
            self.threads += 1

    def run(self, frame: Frame, code: Code, first: int, last: int) -> None:
        """Run steps `first` to `last` - 1."""
        frame.launch(code, self, first, last)

    def end(self) -> None:
        """Let the workers return, and wait until they have. Nothing may run, or be run later."""
        self._word("END")[0] = 1
        post = ctypes.CDLL(None).sem_post
        for number in range(1, self.threads):
            place = TEAM["PLACES"] + number * TEAM["PLACE_BYTES"] + TEAM["SEMAPHORE"]
            post(ctypes.c_void_p(self.memory.address + place))
        for worker in self._workers:
            worker.join(_ENDING_SECONDS)

    def _word(self, name: str) -> NDArray[np.int32]:
        at = TEAM[name]
        return self.memory.array[at : at + 4].view(np.int32)

    def _work(self, code: Code, number: int) -> None:
        code.work(self.memory.address, number)

    @property
    def busy(self) -> bool:
        """Does a run hold it? Another thread may free it meanwhile."""
        held = self._held
        return held is not None and held() is not None

    def take(self, hold: Hold) -> None:
        """Be busy until it is freed, or the run is gone that made `hold`."""
        self._held = weakref.ref(hold)

    def free(self) -> None:
        """Return the team, for other calls."""
        self._held = None


class Hold:
    """What a run holds its team by. An exception may come at any time, as of Ctrl-C: a run that it
    ends before it has freed its team leaves nothing behind that holds it.
    """

    __slots__ = ("__weakref__",)


_lock = threading.RLock()
"""Reentrant: the handler of a signal may run a model while the code that it interrupts has it."""
_teams: list[Team] = []
"""The teams that all calls share. The first that is idle is taken, so it is warm."""


def _free_team(threads: int, code: Code, hold: Hold) -> Team | None:
    """A team that was idle. None for one thread, and where busy teams leave too few cores: running
    alone is faster then.
    """
    if threads <= 1:
        return None
    with _lock:
        running = sum([t.wanted for t in _teams if t.busy])
        if running and running + threads > _cores():
            return None
        idle = [t for t in _teams if t.wanted == threads and not t.busy]
        team = idle[0] if idle else Team(threads, code)
        if not idle:
            _teams.append(team)
        team.take(hold)
        return team


@cache
def _cores() -> int:
    return cpu.cores()


def _forget_teams() -> None:
    """Forget all teams in the child of a fork, which does not have its parent's workers."""
    global _lock, _loading
    _lock, _loading = threading.RLock(), threading.RLock()
    _teams.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_teams)
