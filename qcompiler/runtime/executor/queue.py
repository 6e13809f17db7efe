"""Requests that wait: those of the highest priority first, then in the order they came."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as Signal
from heapq import heapify, heappop, heappush
from itertools import count

from qcompiler.runtime.executor.errors import Closed, Full
from qcompiler.runtime.executor.requests import Request

_SLACK = 64
"""This many withdrawn requests may lie among those that wait."""

Entry = tuple[int, int, Request]


class RequestQueue:
    """A bounded queue; `most` may wait (0: any number). Any threads use it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._filled, self._room = threading.Condition(self._lock), threading.Condition(self._lock)
        self._heap: list[Entry] = []
        self._waiters: deque[Signal[None]] = deque()
        self._order = count()
        self._waiting = 0
        self._closed = False

    def __len__(self) -> int:
        return self._waiting

    def put(self, request: Request, *, wait: bool) -> None:
        """Add one; where there is no room, wait for it or raise Full. Raises Closed when closed."""
        with self._lock:
            while not self._has_room():
                if not wait:
                    raise Full(
                        f"{self.most} requests wait already", hint="try again later, or wait longer"
                    )
                self._room.wait()
            self._add(request)

    def offer(self, request: Request) -> Signal[None] | None:
        """Add one, if there is room; else what is done when there may be."""
        with self._lock:
            if self._has_room():
                self._add(request)
                return None
            signal: Signal[None] = Signal()
            self._waiters.append(signal)
            return signal

    def take(self) -> Request | None:
        """The first, as soon as there is one; None: none will come any more."""
        with self._lock:
            while True:
                found = self._pop(lambda _: True)
                if found is not None or self._closed:
                    break
                self._filled.wait()
            self._room.notify()
        self._invite()
        return found

    def take_fitting(self, rows: int, until: float) -> Request | None:
        """The first if it has at most `rows` rows; waits until `until` (time.monotonic) for
        one to come. None: there is none, or it does not fit.
        """
        with self._lock:
            while not self._live() and not self._closed:
                seconds = until - time.monotonic()
                if seconds <= 0 or not self._filled.wait(seconds):
                    break
            found = self._pop(lambda request: request.rows <= rows)
            self._room.notify()
        self._invite()
        return found

    def withdraw(self, request: Request) -> bool:
        """Take a cancelled request out of the queue -> whether it was there; the stream that has
        taken it finds out by itself.
        """
        with self._lock:
            if not request.waiting:
                return False
            request.waiting = False
            self._waiting -= 1
            if len(self._heap) > 2 * self._waiting + _SLACK:
                self._heap = [entry for entry in self._heap if entry[2].waiting]
                heapify(self._heap)
            self._room.notify()
        self._invite()
        return True

    def close(self) -> None:
        """Take no more; those that wait are still given out."""
        with self._lock:
            self._closed = True
            self._filled.notify_all()
            self._room.notify_all()
            waiters, self._waiters = self._waiters, deque()
        for signal in waiters:
            _notified(signal)

    def clear(self) -> list[Request]:
        """All that wait, in order, which do so no more."""
        with self._lock:
            left = [entry[2] for entry in sorted(self._heap, key=_place) if entry[2].waiting]
            for request in left:
                request.waiting = False
            self._heap, self._waiting = [], 0
            return left

    def _has_room(self) -> bool:
        if self._closed:
            raise Closed("the executor is closed")
        return not self.most or self._waiting < self.most

    def _add(self, request: Request) -> None:
        request.waiting = True
        self._waiting += 1
        heappush(self._heap, (-request.priority, next(self._order), request))
        self._filled.notify()

    def _live(self) -> bool:
        """Whether anybody waits; the withdrawn who stand first leave."""
        while self._heap and not self._heap[0][2].waiting:
            heappop(self._heap)
        return bool(self._heap)

    def _pop(self, wanted: Callable[[Request], bool]) -> Request | None:
        if not self._live() or not wanted(self._heap[0][2]):
            return None
        found = heappop(self._heap)[2]
        found.waiting = False
        self._waiting -= 1
        return found

    def _invite(self) -> None:
        """Notify the first that waits for room, and has not given up, that there may be some. Not
        under the lock: who is notified may come back at once.
        """
        while self._waiters:
            with self._lock:
                if not self._waiters or (self.most and self._waiting >= self.most):
                    return
                signal = self._waiters.popleft()
            if _notified(signal):
                return


def _place(entry: Entry) -> tuple[int, int]:
    return entry[:2]


def _notified(signal: Signal[None]) -> bool:
    alive = signal.set_running_or_notify_cancel()
    if alive:
        signal.set_result(None)
    return alive
