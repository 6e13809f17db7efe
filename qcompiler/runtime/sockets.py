"""Addresses that servers listen at."""

from __future__ import annotations

import socket

from qcompiler.errors import Error


def listening(address: tuple[str, int], backlog: int) -> socket.socket:
    """A TCP socket that listens at (host, port). Raises Error where that cannot be had."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or e
        raise Error(f"cannot listen there ({reason})", where=f"{host}:{port}") from e
