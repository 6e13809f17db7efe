"""TVM's RPC tracker, which fleets of devices have: a name of a kind of device <-> addresses.

    request("tracker:9190", "rpi5", wait=60)                -> "10.0.0.7:8347"
    with Registered("tracker:9190", "rpi5", 8347, busy): ...   this device is one of them meanwhile

Of TVM's protocol this uses the tracker's part only: it hands each device to one client at a time.
What clients then say to a device, and prove, is that of wire.py. A message is its length, 32 bits,
and JSON.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from qcompiler.errors import Error
from qcompiler.files import parsed
from qcompiler.runtime.remote.client import split
from qcompiler.runtime.sockets import receive_all

log = logging.getLogger(__name__)

PORT = 9190
_MAGIC = 0x2F271
_SUCCESS, _PUT, _REQUEST, _UPDATE_INFO, _PENDING = 0, 3, 4, 5, 7
_SECONDS = 10.0
"""For a connection, and for an answer that waits for nobody."""
_MOST_BYTES = 1 << 20
_UNUSED_SECONDS = 6.0
"""A client that was given a device has this long to connect, as with TVM's own server."""
_AGAIN_SECONDS = 5.0
_LOST = (OSError, ValueError, UnicodeError, RecursionError)
"""What is raised where a tracker is gone, or says what is no message."""


def request(address: str, key: str, wait: float) -> str:
    """Where a tracker is, and the name of a kind of device -> "host:port" of one that is free.

    Raises Error where the tracker cannot be reached, and where no device is free within `wait`
    seconds.
    """
    try:
        with _Connection(address) as tracker:
            tracker.send([_REQUEST, key, "qcompiler", 0])
            return _place(tracker.receive(wait))
    except socket.timeout as e:
        what = f"no {key!r} was free within {wait:g} s"
        hint = f"--wait longer; `serve-device --tracker {address} --key {key}` offers one"
        raise Error(what, where=address, hint=hint) from e
    except _LOST as e:
        raise Error(f"the tracker gave no device ({e})", where=address) from e


def _place(answer: object) -> str:
    """An answer -> the "host:port" in it. Raises ValueError where there is none."""
    if isinstance(answer, list) and len(answer) == 2 and answer[0] == _SUCCESS:
        place = answer[1]
        if isinstance(place, list) and len(place) == 3:
            host, port, _ = place
            if isinstance(host, str) and isinstance(port, int):
                return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    raise ValueError("it says no host and port")


class _Connection:
    """A connection to a tracker. Raises OSError or ValueError where it breaks."""

    def __init__(self, address: str) -> None:
        self._socket = socket.create_connection(split(address, PORT), _SECONDS)
        try:
            self._socket.sendall(struct.pack("<i", _MAGIC))
            if bytes(self._bytes(4, _SECONDS)) != struct.pack("<i", _MAGIC):
                raise ValueError("this is no tracker")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it: the tracker forgets the devices of this connection."""
        self._socket.close()

    def send(self, message: object) -> None:
        """Send a message."""
        text = json.dumps(message).encode()
        self._socket.settimeout(_SECONDS)
        self._socket.sendall(struct.pack("<i", len(text)) + text)

    def receive(self, seconds: float = _SECONDS) -> object:
        """The next message."""
        (size,) = struct.unpack("<i", self._bytes(4, seconds))
        if not 0 < size <= _MOST_BYTES:
            raise ValueError(f"a message of {size} bytes")
        return parsed(self._bytes(size, _SECONDS))

    def ask(self, message: object) -> object:
        """A message -> the answer."""
        self.send(message)
        return self.receive()

    def _bytes(self, size: int, seconds: float) -> bytearray:
        return receive_all(self._socket, size, time.monotonic() + seconds)


class Registered:
    """A device that a tracker hands out, under a name, while a `with` block runs.

    `port`: where it listens; `busy()`: whether a client is connected, during which it is not
    offered. A tracker that is gone is looked for again every few seconds.
    """

    def __init__(
        self,
        address: str,
        key: str,
        port: int,
        busy: Callable[[], bool],
        *,
        host: str | None = None,
        pause: float = 1.0,
    ) -> None:
        """`host`: the device's own address, if clients see another than the tracker; `pause`:
        seconds between questions. Raises Error where the tracker cannot be reached.
        """
        self._address, self._key, self._port, self._host = address, key, port, host
        self._busy, self._pause = busy, pause
        self._ended = threading.Event()
        try:
            self._tracker: _Connection | None = self._connected()
        except _LOST as e:
            raise Error(f"the tracker cannot be reached ({e})", where=address) from e
        self._thread = threading.Thread(target=self._offer, name="tracker", daemon=True)

    def __enter__(self) -> Registered:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._tracker is not None:
            with suppress(OSError):
                self._tracker._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_SECONDS)

    def _connected(self) -> _Connection:
        tracker = _Connection(self._address)
        info = {"key": f"server:{self._key}", "addr": [self._host, self._port]}
        if tracker.ask([_UPDATE_INFO, info]) != _SUCCESS:
            tracker.close()
            raise ValueError("it refused the device")
        return tracker

    def _offer(self) -> None:
        """Be offered until the end."""
        while not self._ended.is_set():
            try:
                if self._tracker is None:
                    self._tracker = self._connected()
                with self._tracker:
                    self._through(self._tracker)
            except _LOST as e:
                self._tracker = None
                if not self._ended.is_set():
                    log.warning("the tracker at %s is lost (%s)", self._address, e)
            self._ended.wait(_AGAIN_SECONDS)

    def _through(self, tracker: _Connection) -> None:
        """One connection: the device is offered whenever nobody has it."""
        offered, since, used = "", 0.0, False
        while not self._ended.is_set():
            pending = tracker.ask([_PENDING])
            if not isinstance(pending, list):
                raise ValueError("it told no list")
            now, busy = time.monotonic(), self._busy()
            taken = offered not in pending
            if taken and busy:
                used = True
            since = now if busy or not taken else since
            if taken and not busy and (not offered or used or now - since > _UNUSED_SECONDS):
                offered, used = f"{self._key}:{secrets.token_hex(8)}", False
                message = [_PUT, self._key, [self._port, offered], self._host]
                if tracker.ask(message) != _SUCCESS:
                    raise ValueError("it refused the device")
                since = time.monotonic()
            self._ended.wait(self._pause)
