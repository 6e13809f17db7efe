"""Messages <-> bytes on a socket, authenticated by the token. One that is wrong or late is a Lost.

    device -> "qcdevice", version, 32 random bytes
    client -> "qcclient", version, 32 random bytes, proof
    device -> "welcome " or why not; frames from then on, both ways
    frame: length of text, length of body (4 bytes each), text (JSON), body, code

The proof is the HMAC-SHA256 of all preceding bytes under the token, which itself is never sent;
the code is that of a frame. Each direction has a key of its own, derived from the token and both
random parts, and frames are counted: none can be left out, changed, replayed or reflected. They are
not encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Union

from qcompiler.errors import Error
from qcompiler.runtime import sockets

VERSION = 2
DEVICE, CLIENT = b"qcdevice", b"qcclient"
WELCOME, WRONG_TOKEN, FULL = b"welcome ", b"token?  ", b"full    "
MOST_TEXT, PART = 1 << 20, 1 << 18
"""The most bytes of a frame's text and of its body; longer data takes several frames."""
GREETING_SECONDS = 10.0
FRAME_SECONDS = 30.0
"""For the rest of a frame once it has begun: at least 9 kB/s."""

_SALT = 32
_LENGTHS = struct.Struct(">II")
_HELLO = struct.Struct(f">8sH{_SALT}s")
_CODE = hashlib.sha256().digest_size

Message = Mapping[str, object]
Data = Union[bytes, bytearray, memoryview]


class Lost(Error):
    """The connection can no longer be used or trusted."""


class Channel:
    """Frames over a connected socket; one thread uses it at a time. `sends`, `receives`: the keys
    of both directions.
    """

    def __init__(self, connection: socket.socket, sends: bytes, receives: bytes) -> None:
        self.socket = connection
        self._sends, self._receives = sends, receives
        self._sent = self._received = 0

    def send(self, message: Message, body: Data = b"") -> None:
        """Send a message and at most PART bytes with it."""
        text = json.dumps(message).encode()
        if len(text) > MOST_TEXT or len(body) > PART:
            raise Error(f"a message of {len(text)} and {len(body)} bytes is too long to be sent")
        head = _LENGTHS.pack(len(text), len(body)) + text
        code = _code(self._sends, self._sent, head, body)
        self._sent += 1
        send_all(self.socket, b"".join((head, body, code)), FRAME_SECONDS)

    def receive(self, seconds: float = FRAME_SECONDS) -> tuple[dict[str, object], bytearray]:
        """The next message and its bytes; it must begin within `seconds`."""
        if not readable(self.socket, seconds):
            raise Lost(f"nothing was heard for {seconds:g} s")
        if gone(self.socket):
            raise Lost("the other side has left")
        end = time.monotonic() + FRAME_SECONDS
        lengths = receive_all(self.socket, _LENGTHS.size, end)
        text_bytes, body_bytes = _LENGTHS.unpack(lengths)
        if text_bytes > MOST_TEXT or body_bytes > PART:
            raise Lost("it sent a message that is too long")
        text = receive_all(self.socket, text_bytes, end)
        body = receive_all(self.socket, body_bytes, end)
        code = receive_all(self.socket, _CODE, end)
        wanted = _code(self._receives, self._received, lengths + text, body)
        if not hmac.compare_digest(code, wanted):
            raise Lost("it sent a message that was changed on the way")
        self._received += 1
        return _object(text), body

    def send_bytes(self, data: Data) -> None:
        """Send any number of bytes, which the other side must expect."""
        rest = memoryview(data).cast("B")
        while rest:
            self.send({}, rest[:PART])
            rest = rest[PART:]

    def receive_bytes(self, size: int, take: Callable[[Data], object]) -> None:
        """Receive `size` bytes, each part passed to `take` as it comes."""
        while size:
            _, part = self.receive()
            if len(part) != min(PART, size):
                raise Lost("it sent other bytes than it had said")
            take(part)
            size -= len(part)


def greet(connection: socket.socket, token: bytes) -> Channel:
    """The client's side of a new connection -> a channel. Raises Error for a wrong token or a full
    device, Lost where the other side is no device.
    """
    end = time.monotonic() + GREETING_SECONDS
    hello = bytes(receive_all(connection, _HELLO.size, end))
    name, version, _ = _HELLO.unpack(hello)
    if name != DEVICE:
        raise Lost("this is no device of qcompiler", hint="`qcompiler serve-device` makes one")
    _demand_version(version)
    ours = _HELLO.pack(CLIENT, VERSION, os.urandom(_SALT))
    send_all(connection, ours + _hmac(token, b"proof", hello, ours), GREETING_SECONDS)
    answer = bytes(receive_all(connection, len(WELCOME), end))
    if answer == WRONG_TOKEN:
        raise Error("the device has another token", hint="--token-file, or QCOMPILER_TOKEN")
    if answer == FULL:
        raise Error("the device has as many connections as it takes", hint="try again later")
    if answer != WELCOME:
        raise Lost("the device's greeting makes no sense")
    return Channel(connection, *_keys(token, hello, ours))


def admit(connection: socket.socket, token: bytes, room: Callable[[], bool]) -> Channel:
    """The device's side of a new connection -> a channel. Raises Lost for a client without the
    token, or where `room()` says there is no room.
    """
    end = time.monotonic() + GREETING_SECONDS
    ours = _HELLO.pack(DEVICE, VERSION, os.urandom(_SALT))
    send_all(connection, ours, GREETING_SECONDS)
    hello = bytes(receive_all(connection, _HELLO.size, end))
    name, version, _ = _HELLO.unpack(hello)
    if name != CLIENT:
        raise Lost("it speaks something else")
    proof = bytes(receive_all(connection, _CODE, end))
    _demand_version(version)
    if not hmac.compare_digest(proof, _hmac(token, b"proof", ours, hello)):
        send_all(connection, WRONG_TOKEN, GREETING_SECONDS)
        raise Lost("it has another token")
    if not room():
        send_all(connection, FULL, GREETING_SECONDS)
        raise Lost("there is no room for it")
    send_all(connection, WELCOME, GREETING_SECONDS)
    theirs, mine = _keys(token, ours, hello)
    return Channel(connection, mine, theirs)


def pair(connection: socket.socket) -> Channel:
    """One end of a socket pair within this machine -> a channel."""
    return Channel(connection, b"pair", b"pair")


def readable(connection: socket.socket, seconds: float) -> bool:
    """Whether there is something to read, or the end, within `seconds`."""
    try:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(max(0, seconds) * 1e3))
    except (OSError, ValueError) as e:
        raise Lost("the connection is closed") from e


def gone(connection: socket.socket) -> bool:
    """Whether the other side has left; nothing may be expected of it now."""
    try:
        return readable(connection, 0) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def send_all(connection: socket.socket, data: Data, seconds: float) -> None:
    """Send bytes within `seconds`."""
    try:
        connection.settimeout(seconds)
        connection.sendall(data)
    except OSError as e:
        raise Lost(_reason(e)) from e


def receive_all(connection: socket.socket, size: int, end: float) -> bytearray:
    """Receive `size` bytes before the time `end` (time.monotonic)."""
    try:
        return sockets.receive_all(connection, size, end)
    except OSError as e:
        raise Lost(_reason(e)) from e


def _reason(error: OSError) -> str:
    if isinstance(error, socket.timeout):
        return "it does not answer in time"
    return f"the connection broke ({error.strerror or error})"


def _object(text: bytearray) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Lost("it sent a message that makes no sense") from e
    if not isinstance(found, dict):
        raise Lost("it sent a message that makes no sense")
    return found


def _keys(token: bytes, device: bytes, client: bytes) -> tuple[bytes, bytes]:
    """The keys of what the client sends, and of what the device sends."""
    return _hmac(token, CLIENT, device, client), _hmac(token, DEVICE, device, client)


def _hmac(key: bytes, *parts: Data) -> bytes:
    made = hmac.new(key, digestmod="sha256")
    for part in parts:
        made.update(part)
    return made.digest()


def _code(key: bytes, number: int, head: Data, body: Data) -> bytes:
    return _hmac(key, struct.pack(">Q", number), head, body)


def _demand_version(version: int) -> None:
    if version != VERSION:
        raise Lost(
            f"the other side speaks version {version} of the protocol, this one {VERSION}",
            hint="install the same version of qcompiler on both",
        )
