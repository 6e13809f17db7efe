"""What goes over the wire: nobody without the token is listened to, nothing is believed that was
changed, and garbage, silence and messages that are too long end in one error.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from remote_proxy import TOKEN, Proxy

from qcompiler.errors import Error
from qcompiler.runtime.remote import connect, facts, wire
from qcompiler.runtime.remote.device import Server
from qcompiler.runtime.remote.wire import Channel, Lost

Pair = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Pair]:
    """Both ends of a connection."""
    one, other = socket.socketpair()
    with one, other:
        yield Channel(one, b"there", b"back"), Channel(other, b"back", b"there")


def raw(device: Server) -> socket.socket:
    """A connection on which nothing was said."""
    host, port = device.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), 10)


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes it, whatever it says before."""
    connection.settimeout(20)
    with suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return True


def answers(device: Server) -> bool:
    """Whether it serves those who know the token."""
    connect(device.address, TOKEN).close()
    return True


def test_messages_and_bytes_arrive(ends: Pair) -> None:
    one, other = ends
    data = np.random.default_rng(0).bytes(3 * wire.PART + 5)
    threading.Thread(
        target=lambda: (one.send({"a": [1, "é"]}, b"body"), one.send_bytes(data))
    ).start()
    assert other.receive() == ({"a": [1, "é"]}, b"body")
    found = bytearray()
    other.receive_bytes(len(data), found.extend)
    assert found == data
    other.send({})
    assert one.receive() == ({}, b"")


def frame(channel: Channel, message: object, number: int = 0, body: bytes = b"") -> bytearray:
    """What a channel would send."""
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    head = struct.pack(">II", len(text), len(body)) + text
    return bytearray(head + body + wire._code(channel._sends, number, head, body))


@pytest.mark.parametrize("place", [3, 9, 14, -1])
def test_a_bit_that_was_changed_is_seen(ends: Pair, place: int) -> None:
    one, other = ends
    sent = frame(one, {"do": "run"}, body=b"data")
    sent[place] ^= 1
    one.socket.sendall(sent)
    one.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(Lost, match=r"changed on the way|closed in the middle"):
        other.receive()


def test_a_message_cannot_be_sent_twice_nor_left_out_nor_sent_back(ends: Pair) -> None:
    one, other = ends
    one.socket.sendall(frame(one, {}) * 2)
    other.receive()
    with pytest.raises(Lost, match="changed on the way"):
        other.receive()
    one.socket.sendall(frame(one, {}, number=2))
    with pytest.raises(Lost, match="changed on the way"):
        other.receive()
    other.socket.sendall(frame(one, {}))
    with pytest.raises(Lost, match="changed on the way"):
        one.receive()


@pytest.mark.parametrize(
    "lengths", [(1 << 20 | 1, 0), (2, (1 << 18) + 1), (0xFFFFFFFF, 0xFFFFFFFF)]
)
def test_a_message_that_is_too_long_is_not_waited_for(ends: Pair, lengths: tuple[int, int]) -> None:
    one, other = ends
    one.socket.sendall(struct.pack(">II", *lengths))
    with pytest.raises(Lost, match="too long"):
        other.receive()
    with pytest.raises(Error, match="too long to be sent"):
        one.send({"x": "y" * (1 << 20)})


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"1", b"\xff\xff", b"[" * 100_000, b'{"a": 1e999']
)
def test_a_message_that_is_no_object_is_refused(ends: Pair, text: bytes) -> None:
    one, other = ends
    one.socket.sendall(frame(one, text))
    with pytest.raises(Lost, match="makes no sense"):
        other.receive()


def test_silence_and_slowness_end(ends: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ends
    with pytest.raises(Lost, match=r"nothing was heard for 0.05 s"):
        other.receive(0.05)
    monkeypatch.setattr(wire, "FRAME_SECONDS", 0.3)
    one.socket.sendall(frame(one, {})[:-1])
    with pytest.raises(Lost, match=r"in time|too slow"):
        other.receive()
    with pytest.raises(Lost, match=r"in time"):  # nobody receives what is sent
        one.send_bytes(bytes(1000 * wire.PART))


def test_other_bytes_than_were_said_are_refused(ends: Pair) -> None:
    one, other = ends
    one.send({}, b"12345")
    with pytest.raises(Lost, match="other bytes"):
        other.receive_bytes(4, lambda part: None)


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: device\r\n\r\n".ljust(100),
    b"\0" * 1000,
    b"\x16\x03\x01" + bytes(range(200)),
    struct.pack(">8sH32s", b"qcclient", 9, bytes(32)) + bytes(32),
    struct.pack(">8sH32s", b"qcclient", wire.VERSION, bytes(32)) + bytes(32),
    b"",
]


@pytest.mark.parametrize("said", GARBAGE)
def test_garbage_on_the_port_ends_that_connection_only(device: Server, said: bytes) -> None:
    with raw(device) as connection:
        connection.sendall(said)
        with suppress(OSError):  # it may have been closed already
            connection.shutdown(socket.SHUT_WR)
        assert ended(connection)
    assert answers(device)


def test_a_stranger_who_says_nothing_or_little_is_not_waited_for(
    device: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "GREETING_SECONDS", 3.0)
    with raw(device) as silent, raw(device) as slow:

        def drip() -> None:
            with suppress(OSError):
                for _ in range(200):
                    slow.sendall(b"q")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        assert answers(device)  # they block nobody
        assert ended(silent)
        assert ended(slow)


_COUNTS = ("threads", "iterations", "warmup", "steps")
_RUN = {
    "do": "run",
    "bytes": 0,
    "artifact": "0" * 64,
    **dict.fromkeys(_COUNTS, 0),
    **dict.fromkeys(("wait", "limit", "seconds"), 0.0),
    "variant": "",
}


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "upload"},
        {"do": "upload", "digest": "../../etc/passwd", "size": 3},
        {"do": "upload", "digest": "A" * 64, "size": 3},
        {"do": "upload", "digest": "0" * 64, "size": -3},
        {"do": "upload", "digest": "0" * 64, "size": True},
        {"do": "run", "bytes": "many"},
        {"do": "run", "bytes": 0, "artifact": 7},
        {"do": "run", "bytes": 0, "artifact": "0" * 64, "threads": 1e300},
        {**_RUN, "shapes": 3},
        {**_RUN, "shapes": [3]},
        {**_RUN, "shapes": [[-1]]},
        {**_RUN, "shapes": [["1"]]},
    ],
)
def test_nonsense_from_a_client_with_the_token_ends_that_connection_only(
    device: Server, request_: dict[str, object]
) -> None:
    there = connect(device.address, TOKEN)
    there._channel.send(request_)
    assert ended(there._channel.socket)
    assert answers(device)


def test_an_unknown_request_is_an_error(device: Server) -> None:
    with connect(device.address, TOKEN) as there:
        there._channel.send({"do": "dance"})
        with pytest.raises(Error, match="knows no such request"):
            there._answer(there._channel)


def listening(serve: Callable[[socket.socket], object]) -> str:
    """A port where something else is served."""
    listener = socket.create_server(("127.0.0.1", 0))

    def go() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                serve(connection)

    threading.Thread(target=go, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


HELLO = struct.Struct(">8sH32s")


@pytest.mark.parametrize(
    ("serve", "says"),
    [
        (lambda c: c.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n".ljust(60)), "no device"),
        (lambda c: c.sendall(b"qc"), "closed in the middle"),
        (lambda c: c.recv(1), "in time"),
        (lambda c: c.sendall(HELLO.pack(b"qcdevice", 9, bytes(32))), "version 9"),
        (
            lambda c: (
                c.sendall(HELLO.pack(b"qcdevice", wire.VERSION, bytes(32)) + b"whatever"),
                c.recv(1),
            ),
            "sense",
        ),
        (
            lambda c: (
                c.sendall(
                    HELLO.pack(b"qcdevice", wire.VERSION, bytes(32))
                    + wire.WELCOME
                    + bytes(8)
                    + bytes(32)
                ),
                c.recv(100),
            ),
            "changed on the way",
        ),
    ],
)
def test_what_is_no_device_is_an_error(
    serve: Callable[[socket.socket], object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says == "in time":
        monkeypatch.setattr(wire, "GREETING_SECONDS", 0.5)
    address = listening(serve)
    with pytest.raises(Lost, match=says) as error:
        connect(address, TOKEN)
    assert error.value.where == address


def test_one_in_the_middle_changes_nothing(device: Server, artifact: Path) -> None:
    """A byte changed on its way ends the connection, and nothing is stored."""
    heard = [0]

    def bend(data: bytes) -> bytes:
        heard[0] += len(data)
        return data if heard[0] < 3000 else data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]

    proxy = Proxy(device.address, to_device=bend)
    with connect(proxy.address, TOKEN) as there, pytest.raises(Lost):
        there.load(artifact)
    assert not [p for p in device.store.folder.iterdir() if p.suffix == ".qc"]


def test_errors_arrive_complete() -> None:
    error = Error("what", where="where", hint="hint")
    found = facts.raised(json.loads(json.dumps(facts.error_message(error))))
    assert found
    assert (found.what, found.where, found.hint) == ("what", "where", "hint")
    assert facts.raised({}) is None
