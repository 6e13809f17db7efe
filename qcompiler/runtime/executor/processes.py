"""A stream's model in a process of its own: arrays -> arrays, whatever native code does to it."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from qcompiler.artifact.artifact import Manifest
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.children import crash, ended
from qcompiler.runtime.executor.errors import WorkerLost
from qcompiler.runtime.executor.shared import Arena, SharedModel, filled, kinds_of
from qcompiler.runtime.executor.tally import Tally
from qcompiler.runtime.library import aligned
from qcompiler.runtime.open_batch import sizes_of
from qcompiler.runtime.sockets import receive_all

GO, DONE, FAILED = b"g", b"d", b"f"
LENGTH = struct.Struct("<I")
_STARTING_SECONDS, _ENDING_SECONDS = 60.0, 5.0
_START = (
    "import sys; from qcompiler.runtime.executor.worker import main; main(*map(int, sys.argv[1:]))"
)
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class _Died(Exception):
    """The worker died, or was ended because it hung; how, is the message."""


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    connection: socket.socket


class Process:
    """A worker process, and the next one when that dies, or has not answered within
    `timeout_seconds` (0: there is no limit): the run that it died of is tried once more. One thread
    uses it, and it ends with that thread.
    """

    def __init__(
        self,
        model: SharedModel,
        manifest: Manifest,
        tally: Tally,
        *,
        threads: int,
        spin_us: int,
        timeout_seconds: float = 0.0,
    ) -> None:
        self._model, self._tally = model, tally
        self._timeout_seconds = timeout_seconds
        self._manifest, self._sizes = manifest, struct.Struct(f"<{len(manifest.symbols)}q")
        self._arena = Arena()
        self._arrays = self._arena.arrays(kinds_of(manifest, {}))
        self._description = json.dumps(
            {**model.description, "threads": threads, "spin_us": spin_us}
        ).encode()
        self._child: _Child | None = None
        try:
            self._start()
        except BaseException as e:
            self._arena.close()
            if isinstance(e, _Died):
                raise Error(f"a worker process died when it started: {e}") from e
            raise

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Inputs just as the model takes them -> new outputs. Raises WorkerLost where a second
        worker died of it, too.
        """
        sizes = sizes_of(self._manifest, [a.shape for a in arrays])
        if sizes:
            self._arrays = self._arena.arrays(kinds_of(self._manifest, sizes))
        words = GO + self._sizes.pack(*sizes.values())
        try:
            self._run(arrays, words)
        except _Died:
            self._tally.add("retried")
            try:
                self._run(arrays, words)
            except _Died as e:
                raise WorkerLost(f"its worker process ended, and so did the next: {e}") from None
        outputs = self._arrays[len(arrays) :]
        made = [aligned(place.dtype, place.shape).array for place in outputs]
        filled(outputs, made)
        return made

    def end(self) -> None:
        """End the worker."""
        self._end(_ENDING_SECONDS)
        self._arena.close()

    def _run(self, arrays: Sequence[Array], words: bytes) -> None:
        if self._child is None:
            self._tally.add("restarted")
            self._start()
        filled(arrays, self._arrays)
        self._ask(words, self._timeout_seconds)

    def _ask(self, words: bytes, seconds: float) -> None:
        """Send this, and wait until it is done. Raises Error if the worker answers with one, _Died
        if that is its end, or it does not answer in time.
        """
        assert self._child is not None
        connection = self._child.connection
        end = time.monotonic() + (seconds or inf)
        try:
            connection.settimeout(seconds or None)
            connection.sendall(words)
            if receive_all(connection, 1, end) == DONE:
                return
            (size,) = LENGTH.unpack(receive_all(connection, LENGTH.size, end))
            answer = json.loads(receive_all(connection, size, end))
        except socket.timeout:  # another class on Python 3.9
            self._end(0.0)
            raise _Died(f"it did not answer within {seconds:g} s") from None
        except OSError:
            raise _Died(_how(self._end(_ENDING_SECONDS))) from None
        raise Error(answer["what"], where=answer["where"], hint=answer["hint"])

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        _sockets.add(ours)
        handles = (theirs.fileno(), self._arena.file, self._model.file)
        place = os.pathsep.join(p for p in sys.path if p)  # where this process found qcompiler
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-c", _START, *map(str, (*handles, os.getpid()))],
                    pass_fds=handles,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": place},
                )
        except OSError as e:
            ours.close()
            raise Error(f"no worker process can be started ({e.strerror or e})") from e
        self._child = _Child(process, ours)
        try:
            self._ask(LENGTH.pack(len(self._description)) + self._description, _STARTING_SECONDS)
        except Error:
            self._end(0.0)
            raise

    def _end(self, patience: float) -> int | None:
        """End the worker -> its exit status, where it ended by itself within `patience` seconds."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.connection.close()
        return ended(child.process, patience)


def _how(code: int | None) -> str:
    """An exit status -> what happened."""
    if code is None:
        return "it did not end by itself"
    return f"exit status {code}" if code >= 0 else crash(code)


def _forget() -> None:
    """In the child of a fork: the workers are its parent's, which alone may hold their ends."""
    for connection in list(_sockets):
        connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
