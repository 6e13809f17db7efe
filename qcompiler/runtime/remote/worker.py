"""A connection's child process: a request -> the answer, or an Error that says how it ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from qcompiler.errors import Error
from qcompiler.runtime.children import crash, ended
from qcompiler.runtime.remote import facts
from qcompiler.runtime.remote.wire import Channel, Lost, Message, pair, readable

_LOOK_SECONDS = 1.0
"""How often `meanwhile` is called."""
_STARTING_SECONDS = 60.0
_DYING_SECONDS = 10.0
"""A process that crashes frees its memory first."""
_START = (
    "import sys; from qcompiler.runtime.remote.child import main; main(*map(int, sys.argv[1:]))"
)


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    channel: Channel


class Worker:
    """Starts a child for the first request, and a new one when the last has ended. One thread uses
    it: a child ends with the thread that started it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._child: _Child | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def ask(
        self,
        request: Message,
        data: bytes | bytearray,
        *,
        seconds: float,
        most_bytes: int,
        meanwhile: Callable[[], None],
    ) -> tuple[dict[str, object], bytearray]:
        """A request and its arrays -> the answer and its arrays. `meanwhile` is called every
        second.

        Raises Error where the child ends instead, or has not answered after `seconds`.
        """
        try:
            channel = self._channel(meanwhile)
            channel.send({**request, "bytes": len(data)})
            channel.send_bytes(data)
            answer = _await(channel, seconds, meanwhile)
            return answer, _received(channel, answer, most_bytes)
        except Lost as e:
            raise Error(_how(self.end(_DYING_SECONDS))) from e
        except BaseException:
            self.end()
            raise

    def _channel(self, meanwhile: Callable[[], None]) -> Channel:
        """To the child, which is started where there is none."""
        if self._child is None:
            self._child = self._started()
            _await(self._child.channel, _STARTING_SECONDS, meanwhile)
        return self._child.channel

    def _started(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = self._process(theirs.fileno())
            except OSError as e:
                ours.close()
                raise Error(f"the device cannot start a process ({e.strerror or e})") from e
        return _Child(process, pair(ours))

    def _process(self, handle: int) -> subprocess.Popen[bytes]:
        place = os.pathsep.join(p for p in sys.path if p)  # where this process found qcompiler
        return subprocess.Popen(
            [sys.executable, "-c", _START, str(handle), str(os.getpid())],
            pass_fds=(handle,),
            stdin=subprocess.DEVNULL,
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": place},
        )

    def end(self, patience: float = 0.5) -> int | None:
        """End the child -> its exit status, if it ends by itself within `patience` seconds."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.channel.socket.close()
        return ended(child.process, patience)


def _received(channel: Channel, answer: Message, most_bytes: int) -> bytearray:
    """The arrays that come with an answer."""
    made = bytearray()
    if "error" not in answer:
        size = facts.count(answer, "bytes")
        if size > most_bytes:
            raise Error(f"{size} bytes of outputs; the device sends no more than {most_bytes}")
        channel.receive_bytes(size, made.extend)
    return made


def _await(channel: Channel, seconds: float, meanwhile: Callable[[], None]) -> dict[str, object]:
    """The child's next message, within `seconds`."""
    end = time.monotonic() + seconds
    while not readable(channel.socket, min(_LOOK_SECONDS, max(0.0, end - time.monotonic()))):
        if time.monotonic() >= end:
            raise Error(f"it took more than {seconds:g} s, and was ended")
        meanwhile()
    return channel.receive()[0]


def _how(code: int | None) -> str:
    """An exit status -> what happened."""
    if code is None:
        return "the process that ran it did not answer"
    if code >= 0:
        return f"the process that ran it ended with status {code}"
    return f"it crashed on the device: {crash(code)}"
