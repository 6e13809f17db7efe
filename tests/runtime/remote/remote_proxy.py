"""Between a client and a device: bytes as they come, seen, changed, held back or cut off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

TOKEN = "a token of enough characters"

Bend = Callable[[bytes], "bytes | None"]
"""Bytes that come -> those that go on; None: no more, cut both ways."""


class Proxy:
    """Listens at `address`; what the client sends goes through `to_device`, answers through
    `to_client`.
    """

    def __init__(self, device: str, *, to_device: Bend = bytes, to_client: Bend = bytes) -> None:
        host, port = device.rsplit(":", 1)
        self._device = (host, int(port))
        self._bends = to_device, to_client
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.seen = bytearray()
        """All that went through, both ways."""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                device = socket.create_connection(self._device)
                for ends in ((client, device, self._bends[0]), (device, client, self._bends[1])):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, bend: Bend) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.seen += data
                bent = bend(data)
                if bent is None:
                    break
                to.sendall(bent)
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()
