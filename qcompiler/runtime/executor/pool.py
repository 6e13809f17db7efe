"""A limit of running threads that the executors of a process share.

A stream waits until it may run, so that there are never more runnable threads than the affinity,
the control group's quota and `threads` allow.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

from qcompiler.hardware import cpu

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """Lets at most `threads` threads run (0: as many as this process may use cores), first come
    first served. A single request for more is granted while nothing else runs.
    """

    def __init__(self, threads: int = 0) -> None:
        self.threads = max(0, threads) or cpu.cores()
        self._start()
        _pools.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    def enter(self, threads: int) -> None:
        """Wait until `threads` threads may run."""
        with self._lock:
            if not self._waiting and self._fits(threads):
                self._running += threads
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append((threads, gate))
        gate.acquire()  # `leave` opens it, and has counted these threads

    def leave(self, threads: int) -> None:
        """Let others run instead."""
        with self._lock:
            self._running -= threads
            while self._waiting and self._fits(self._waiting[0][0]):
                wanted, gate = self._waiting.popleft()
                self._running += wanted
                gate.release()

    def _fits(self, threads: int) -> bool:
        return not self._running or self._running + threads <= self.threads


_default: list[Pool] = []


def default_pool() -> Pool:
    """The pool of the process, made at its first use."""
    if not _default:
        _default.append(Pool())
    return _default[0]


def _forget() -> None:
    """In the child of a fork: nobody runs, and it may be allowed other cores."""
    _default.clear()
    for pool in list(_pools):
        pool._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
