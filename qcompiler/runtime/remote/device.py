"""The device's side: it serves connections on a port, one run at a time.

Native code runs in a child process of each connection (worker.py), never in this one.
"""

from __future__ import annotations

import logging
import platform
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import Error
from qcompiler.hardware import cpu
from qcompiler.runtime.remote import facts, wire
from qcompiler.runtime.remote.store import Store
from qcompiler.runtime.remote.wire import Channel, Lost
from qcompiler.runtime.remote.worker import Worker
from qcompiler.runtime.sockets import listening
from qcompiler.version import __version__

log = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
"""A connection without a request for this long is closed."""
_ALIVE_SECONDS = 1.0
_COUNTS = ("threads", "iterations", "warmup", "steps")
_ENDING_SECONDS = 5.0
_UNAUTHENTICATED = 64
"""Further connections, of clients that have not yet proved that they know the token."""


@dataclass(frozen=True)
class Limits:
    """The most that a device accepts."""

    artifact_bytes: int = 2 << 30
    store_bytes: int = 8 << 30
    data_bytes: int = 256 << 20
    """Of a run: its inputs, and its outputs with times."""
    run_seconds: float = 600.0
    connections: int = 16


class Server:
    """A listening socket that serves clients that know the token."""

    def __init__(
        self, address: tuple[str, int], token: bytes, folder: Path, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.store = Store(folder, self.limits.store_bytes)
        self._token = token
        self._run_lock = threading.Lock()
        """Held by the connection whose artifact runs."""
        self._room = threading.BoundedSemaphore(self.limits.connections)
        self._live: dict[threading.Thread, socket.socket] = {}
        self._admitted: set[str] = set()
        """Clients that have proved that they know the token."""
        self._closed = False
        self._pending = threading.BoundedSemaphore(self.limits.connections + _UNAUTHENTICATED)
        self._listener = listening(address, backlog=64)

    @property
    def address(self) -> str:
        """Where it listens: host:port."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def serve(self) -> None:
        """Serve until another thread, or an exception, closes it."""
        while not self._closed:
            try:
                connection, peer = self._listener.accept()
            except OSError as e:  # too many open files, or the client has left already
                if self._closed:
                    return
                log.warning("a connection was not accepted: %s", e.strerror or e)
                time.sleep(0.1)
                continue
            if not self._pending.acquire(blocking=False):
                connection.close()
                continue
            name = f"{peer[0]}:{peer[1]}"
            served = threading.Thread(
                target=self._serve, args=(connection, name), name=name, daemon=True
            )
            self._live[served] = connection
            try:
                served.start()
            except RuntimeError as e:  # there are too many in the system
                log.warning("%s: not served: %s", name, e)
                del self._live[served]
                connection.close()
                self._pending.release()

    def close(self) -> None:
        """Stop listening, and end all connections and their runs."""
        self._closed = True
        for ended in (self._listener, *list(self._live.values())):
            with suppress(OSError):
                ended.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        end = time.monotonic() + _ENDING_SECONDS
        for served in list(self._live):
            served.join(max(0.0, end - time.monotonic()))

    def _serve(self, connection: socket.socket, name: str) -> None:
        """One connection, from its greeting to its end."""
        with connection:
            try:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                channel = wire.admit(connection, self._token, self._enter)
                log.info("%s: connected", name)
                self._admitted.add(name)
                try:
                    _Session(self, channel).serve()
                finally:
                    self._admitted.discard(name)
                    self._room.release()
            except (Error, Gone, OSError) as e:
                log.info("%s: %s", name, e)
            except Exception:
                log.exception("%s: a mistake of the server's", name)
            finally:
                self._live.pop(threading.current_thread(), None)
                self._pending.release()

    def _enter(self) -> bool:
        return self._room.acquire(blocking=False)

    @property
    def busy(self) -> bool:
        """Is a client connected that has proved that it knows the token?"""
        return bool(self._admitted)

    def acquire_run_lock(self, seconds: float, meanwhile: Callable[[], None]) -> None:
        """Wait up to `seconds` until nothing else runs here. Raises Error after that."""
        end = time.monotonic() + seconds
        while not self._run_lock.acquire(
            timeout=max(0.0, min(_ALIVE_SECONDS, end - time.monotonic()))
        ):
            if time.monotonic() >= end:
                raise Error(
                    f"the device is busy with another's run, since {seconds:g} s or longer",
                    hint="try again later, or wait longer",
                )
            meanwhile()

    def release_run_lock(self) -> None:
        """Let other connections run."""
        self._run_lock.release()


class _Session:
    """The requests of one connection, one after the other."""

    def __init__(self, server: Server, channel: Channel) -> None:
        self.server, self.channel = server, channel

    def serve(self) -> None:
        """Serve until the client leaves, breaks the protocol, or is silent for too long."""
        self.channel.send(_this_machine())
        with Worker(str(self.server.store.folder)) as worker:
            while True:
                request, _ = self.channel.receive(IDLE_SECONDS)
                try:
                    if request.get("do") == "upload":
                        self._upload(request)
                    elif request.get("do") == "run":
                        self._run(request, worker)
                    else:
                        raise Error("the device knows no such request")
                except Lost:
                    raise
                except Error as e:
                    self.channel.send(facts.error_message(e))

    def _upload(self, request: dict[str, object]) -> None:
        digest, size = facts.digest(request, "digest"), facts.count(request, "size")
        store, most = self.server.store, self.server.limits.artifact_bytes
        if store.find(digest) is not None:
            self.channel.send({"have": True})
            return
        if size > most:
            raise Error(f"the artifact has {size} bytes; the device takes no more than {most}")
        self.channel.send({"have": False})
        store.add(digest, lambda take: self.channel.receive_bytes(size, take))
        self.channel.send({"have": True})

    def _run(self, request: dict[str, object], worker: Worker) -> None:
        limits, size = self.server.limits, facts.count(request, "bytes")
        digest, wait = facts.digest(request, "artifact"), facts.seconds(request, "wait")
        limit = min(limits.run_seconds, facts.seconds(request, "limit"))
        asked: dict[str, object] = {k: facts.count(request, k) for k in _COUNTS}
        asked["shapes"] = facts.shapes(request)
        asked["seconds"] = facts.seconds(request, "seconds")
        asked["variant"] = facts.text(request, "variant")
        if size > limits.data_bytes:
            what = f"{size} bytes of inputs; the device takes no more than {limits.data_bytes}"
            raise Error(what)
        self.channel.send({"go": True})
        data = bytearray()
        self.channel.receive_bytes(size, data.extend)
        self.server.acquire_run_lock(wait, lambda: self._alive("waiting"))
        try:
            # While it waited, others may have needed the room.
            path = self.server.store.find(digest)
            if path is None:
                self.channel.send({"missing": True})
                return
            answer, made = worker.ask(
                {"artifact": str(path), **asked},
                data,
                seconds=limit,
                most_bytes=limits.data_bytes,
                meanwhile=lambda: self._alive("running"),
            )
        finally:
            self.server.release_run_lock()
        self.channel.send(answer)
        self.channel.send_bytes(made)

    def _alive(self, what: str) -> None:
        """Send the client a sign of life. Raises Gone if it has left."""
        if wire.gone(self.channel.socket):
            raise Gone("left in the middle of its run")
        try:
            self.channel.send({"alive": what})
        except Lost as e:
            raise Gone(str(e)) from e


class Gone(Exception):
    """The client has left while its artifact runs. Not a Lost, which is the child's end."""


def _this_machine() -> dict[str, object]:
    """What a client may want to know about the device."""
    return {
        "name": platform.node(),
        "machine": platform.machine(),
        "processors": cpu.cores(),
        "features": sorted(cpu.features()),
        "version": __version__,
    }
