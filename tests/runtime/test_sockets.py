"""Sockets that servers listen at."""

from __future__ import annotations

import socket

from qcompiler.runtime.sockets import listening


def test_connections_that_are_accepted_send_small_packets_at_once() -> None:
    """Else every answer waits for the client's delayed acknowledgement, 40 ms on Linux."""
    with (
        listening(("127.0.0.1", 0), backlog=1) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
