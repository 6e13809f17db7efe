"""Devices that an RPC tracker of TVM hands out, by one that speaks its protocol, and by TVM's own
where tornado is installed."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from remote_proxy import TOKEN

from qcompiler.cli import main
from qcompiler.errors import Error
from qcompiler.runtime.remote import connect, tracker
from qcompiler.runtime.remote.device import Server
from qcompiler.runtime.remote.tracker import Registered, request

MAGIC = struct.pack("<i", 0x2F271)


class Tracker:
    """As TVM's: resources by key, each handed to one client; those of a lost connection vanish."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.changed = threading.Condition()
        self.free: list[tuple[socket.socket, str, list[object]]] = []
        self.puts = 0
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        for ended in (self._listener, *self._connections):
            with suppress(OSError):
                ended.shutdown(socket.SHUT_RDWR)
            ended.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError, struct.error):
            file = connection.makefile("rb")
            assert file.read(4) == MAGIC
            connection.sendall(MAGIC)
            while True:
                (size,) = struct.unpack("<i", file.read(4))
                answer = json.dumps(self._answer(connection, json.loads(file.read(size)))).encode()
                connection.sendall(struct.pack("<i", len(answer)) + answer)
        with self.changed:
            self.free = [f for f in self.free if f[0] is not connection]

    def _answer(self, connection: socket.socket, message: list[object]) -> object:
        with self.changed:
            if message[0] == 3:
                port, matchkey = message[2]
                host = message[3] or "127.0.0.1"
                self.free.append((connection, str(message[1]), [host, port, matchkey]))
                self.puts += 1
                self.changed.notify_all()
            if message[0] == 4:
                mine = [f for f in self.free if f[1] == message[1]]
                while not mine:
                    self.changed.wait()
                    if gone(connection):
                        raise OSError("it waits no more")
                    mine = [f for f in self.free if f[1] == message[1]]
                self.free.remove(mine[0])
                self.changed.notify_all()
                return [0, mine[0][2]]
            if message[0] == 7:
                return [f[2][2] for f in self.free if f[0] is connection]
        return 0

    def until(self, free: int, puts: int = 0) -> None:
        """Wait until so many devices are free, after so many offers."""
        with self.changed:
            while len(self.free) != free or self.puts < puts:
                assert self.changed.wait(60)


def gone(connection: socket.socket) -> bool:
    """Has the other side closed it? Nothing is read."""
    with suppress(BlockingIOError):
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return False


@pytest.fixture
def fleet() -> Iterator[Tracker]:
    made = Tracker()
    yield made
    made.close()


def offered(address: str, device: Server) -> Registered:
    port = int(device.address.rpartition(":")[2])
    return Registered(address, "rpi5", port, lambda: device.busy, host="127.0.0.1", pause=0.02)


def test_a_tracker_hands_a_device_to_one_client_at_a_time(
    fleet: Tracker, device: Server, artifact: Path, data: dict[str, np.ndarray]
) -> None:
    with offered(fleet.address, device):
        for turn in (1, 2):
            address = request(fleet.address, "rpi5", 60)
            assert address == device.address
            with connect(address, TOKEN) as found:
                assert found.load(artifact).run(data)["y"].shape == (2, 4)
                with pytest.raises(Error, match=r"no 'rpi5' was free within 0\.3 s"):
                    request(fleet.address, "rpi5", 0.3)
            fleet.until(1, turn + 1)


def test_a_device_that_was_given_to_nobody_who_came_is_offered_again(
    fleet: Tracker, device: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "_UNUSED_SECONDS", 0.2)
    with offered(fleet.address, device):
        assert request(fleet.address, "rpi5", 60) == device.address
        fleet.until(1, 2)


def test_a_tracker_that_was_lost_is_told_again(
    device: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "_AGAIN_SECONDS", 0.05)
    first = Tracker()
    with offered(first.address, device):
        first.until(1)
        first.close()
        second = Tracker(first.port)
        second.until(1)
        assert request(second.address, "rpi5", 60) == device.address
    second.close()


def test_what_is_no_tracker_is_an_error(device: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        free = f"127.0.0.1:{nobody.getsockname()[1]}"
    for asks in (lambda a: request(a, "rpi5", 5), lambda a: offered(a, device)):
        with pytest.raises(Error, match="tracker"):
            asks(free)
        with pytest.raises(Error, match="tracker"):
            asks(talking(b"HTTP/1.1 400 Bad Request\r\n\r\n"))


@pytest.mark.parametrize(
    "answer", [b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\4\0\0\0null", b"\0\0\1\0" + b"[" * 65536]
)
def test_an_answer_that_is_none_is_an_error(answer: bytes) -> None:
    with pytest.raises(Error, match="the tracker gave no device"):
        request(talking(MAGIC + answer), "rpi5", 5)


def talking(answer: bytes) -> str:
    """The address of something that says the same to everybody, and leaves."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            connection.sendall(answer)
            connection.recv(4096)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_run_asks_a_tracker(
    fleet: Tracker,
    device: Server,
    artifact: Path,
    data: dict[str, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QCOMPILER_TOKEN", TOKEN)
    np.savez(tmp_path / "in.npz", **data)
    words = [
        "bench",
        str(artifact),
        "--tracker",
        fleet.address,
        "--inputs",
        str(tmp_path / "in.npz"),
    ]
    with offered(fleet.address, device):
        assert main([*words, "--key", "rpi5", "--iterations", "2"]) == 0
        assert device.address in capsys.readouterr().out
        assert main([*words, "--key", "rpi5", "--hint", "latency"]) == 1
        assert "--remote" in capsys.readouterr().err
        assert main(words) == 1
        assert "--tracker and --key go together" in capsys.readouterr().err
        assert main([*words, "--key", "rpi5", "--remote", device.address]) == 1
        assert "leave one out" in capsys.readouterr().err


def test_tvms_own_tracker_hands_devices_out(
    device: Server, artifact: Path, data: dict[str, np.ndarray]
) -> None:
    pytest.importorskip("tornado")
    module = pytest.importorskip("tvm.rpc.tracker")
    made = module.Tracker(host="127.0.0.1", port=9190, port_end=9999, silent=True)
    try:
        address = f"127.0.0.1:{made.port}"
        with offered(address, device):
            for _ in range(2):
                with connect(request(address, "rpi5", 60), TOKEN) as found:
                    assert found.load(artifact).run(data)["y"].shape == (2, 4)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and device.busy:
                time.sleep(0.02)
    finally:
        made.terminate()
