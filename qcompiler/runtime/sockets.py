"""Sockets: listening at an address, and receiving a known number of bytes."""

from __future__ import annotations

import socket
import time
from math import inf

from qcompiler.errors import Error


def listening(address: tuple[str, int], backlog: int) -> socket.socket:
    """A TCP socket that listens at (host, port). Raises Error where that cannot be had."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=backlog)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # of accepted ones
        return made
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or e
        raise Error(f"cannot listen there ({reason})", where=f"{host}:{port}") from e


def receive_all(connection: socket.socket, size: int, end: float = inf) -> bytearray:
    """Receive `size` bytes before the time `end` (time.monotonic). Raises OSError where the other
    side closes the connection before, or is late.
    """
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        left = end - time.monotonic()
        connection.settimeout(None if end == inf else max(1e-3, left))
        count = connection.recv_into(rest)
        if not count:
            raise ConnectionResetError("the connection was closed in the middle")
        rest = rest[count:]
        if rest and time.monotonic() >= end:  # byte after byte, just in time
            raise socket.timeout("it is too slow")  # another class on Python 3.9
    return data
