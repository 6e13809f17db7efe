"""A device's address and token -> models that run there, with the methods of those that run here.

with connect("rpi5.local:8347", token) as device:
    model = device.load("model.qc")            # sent, unless the device has it
    outputs = model.run({"x": x})
    seconds = model.measure({"x": x}, seconds=1.0).times
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompiler.artifact.artifact import Artifact, Manifest, Variant, open_artifact
from qcompiler.dtypes import Array
from qcompiler.errors import Error
from qcompiler.files import opened
from qcompiler.runtime.front import Front
from qcompiler.runtime.model import Interface, arrays_in_order, input_specs
from qcompiler.runtime.remote import facts, wire
from qcompiler.runtime.remote.facts import arrays
from qcompiler.runtime.remote.wire import Lost
from qcompiler.runtime.timing import Measured

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 20.0
"""A device that runs something, or lets it wait, says so every second."""
WAIT_SECONDS, LIMIT_SECONDS = 60.0, 600.0
PORT = 8347


def connect(address: str, token: bytes | str) -> Device:
    """ "host", "host:port" or "[::1]:port", and the shared token -> the device.

    Raises Error where nothing answers in time, or the token differs.
    """
    host, port = split(address)
    secret = token.encode() if isinstance(token, str) else token
    try:
        connection = socket.create_connection((host, port), CONNECT_SECONDS)
    except (OSError, OverflowError, UnicodeError) as e:
        reason = getattr(e, "strerror", None) or e
        hint = "is `qcompiler serve-device` running there, and does it listen to others?"
        raise Error(f"cannot be reached ({reason})", where=address, hint=hint) from e
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel = wire.greet(connection, secret)
        known, _ = channel.receive()
        return Device(address, channel, known)
    except BaseException as e:
        connection.close()
        if isinstance(e, Error):
            raise type(e)(e.what, where=address, hint=e.hint) from e
        raise


def split(address: str, usual: int = PORT) -> tuple[str, int]:
    """ "host:port" -> both, the usual port where there is none."""
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(usual)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or not 0 < int(port[:9]) < 1 << 16:
        raise Error("this is no host:port", where=address, hint="rpi5.local:8347")
    return host, int(port)


@dataclass(frozen=True)
class Answer(Measured):
    """The result of one request: outputs, and how long things took on the device."""

    outputs: dict[str, Array]
    steps: list[float]
    """Median seconds of every step, each timed alone; empty unless asked for."""


class Device:
    """A connection to a device. Requests of all threads go one after the other; several devices, or
    several connections to one, work at the same time.
    """

    def __init__(self, address: str, channel: wire.Channel, known: Mapping[str, object]) -> None:
        self.address = address
        self.facts = known
        """What the device reports: name, machine, processors, features, version."""
        self._channel = channel
        self._lock = threading.Lock()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the device keeps the artifacts."""
        self._channel.socket.close()

    def load(
        self,
        artifact: str | Path | Artifact,
        *,
        threads: int = 0,
        variant: str = "",
        wait: float = WAIT_SECONDS,
        limit: float = LIMIT_SECONDS,
    ) -> RemoteModel:
        """An artifact -> a model that runs there; it is sent unless the device has it already.

        threads: how many a run may use (0: as compiled, no more than the device has).
        variant: the one to run ("": the best for the device).
        wait, limit: seconds that a run may wait for others on the device, and may take.
        """
        source = artifact if isinstance(artifact, Artifact) else Path(artifact)
        whole = source if isinstance(source, Artifact) else open_artifact(source)
        asked = (threads, variant, wait, limit)
        digest = self._upload(source)
        if whole is not source and whole.origin and not whole.origin.unchanged:
            raise _replaced(source)
        return RemoteModel(self, source, digest, whole.manifest, asked)

    def _upload(self, source: Artifact | Path) -> str:
        """Send an artifact, unless it is there -> its file's SHA-256."""
        if isinstance(source, Artifact):
            with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
                return self._upload(source.save(Path(folder) / "model.qc"))
        with opened(source) as file:
            found, size = hashlib.sha256(), 0
            while part := file.read(wire.PART):
                found.update(part)
                size += len(part)
            file.seek(0)
            with self._talk() as channel:
                channel.send({"do": "upload", "digest": found.hexdigest(), "size": size})
                if self._answer(channel).get("have"):
                    return found.hexdigest()
                while size:
                    count = min(wire.PART, size)
                    part = file.read(count)
                    # Of a file that was cut, the device is to say that it did not arrive.
                    channel.send({}, part + bytes(count - len(part)))
                    size -= count
                self._answer(channel)
        return found.hexdigest()

    def _run(
        self, request: Mapping[str, object], data: bytes, seconds: float
    ) -> tuple[dict[str, object], bytearray]:
        """A run's request and its inputs -> the answer and its bytes."""
        with self._talk() as channel:
            channel.send({"do": "run", **request})
            self._answer(channel)
            channel.send_bytes(data)
            answer = self._answer(channel, seconds)
            made = bytearray()
            if not answer.get("missing"):
                channel.receive_bytes(facts.count(answer, "bytes"), made.extend)
            return answer, made

    @contextmanager
    def _talk(self) -> Iterator[wire.Channel]:
        """The channel, for one request; an exception within it closes the connection."""
        with self._lock:
            try:
                yield self._channel
            except Lost as e:
                self.close()
                raise Lost(f"the device is lost: {e.what}", where=self.address, hint=e.hint) from e
            except Error:  # its answer
                raise
            except BaseException:
                self.close()
                raise

    def _answer(self, channel: wire.Channel, seconds: float = 0.0) -> dict[str, object]:
        """The answer to a request; a device that reports itself alive may take `seconds`."""
        end = time.monotonic() + seconds + SILENCE_SECONDS
        while True:
            answer, _ = channel.receive(SILENCE_SECONDS)
            if "alive" not in answer:
                break
            if time.monotonic() > end:
                raise Lost(f"no answer after {seconds:g} s")
        if (error := facts.raised(answer)) is not None:
            where = f"{self.address}: {error.where}" if error.where else self.address
            raise Error(error.what, where=where, hint=error.hint)
        return answer


def _replaced(source: Artifact | Path) -> Error:
    where = "" if isinstance(source, Artifact) else str(source)
    return Error("the file was replaced while it was in use", where=where, hint="load it again")


class RemoteModel(Interface):
    """A model on a device, with the methods of `qcompiler.runtime.Model`; the end of a `with` block
    closes the connection.
    """

    def __init__(
        self,
        device: Device,
        source: Artifact | Path,
        digest: str,
        manifest: Manifest,
        asked: tuple[int, str, float, float],
    ) -> None:
        self.device, self.manifest = device, manifest
        self._source, self._digest = source, digest
        self._threads, self._variant, self._wait, self._limit = asked
        self._input_specs, self.front = input_specs(manifest.inputs), Front(manifest)

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.device.close()

    @property
    def variant(self) -> Variant:
        """What runs there: before the first run the variant asked for, or the most preferred; then
        what the device chose.
        """
        variants = self.manifest.variants
        return next((v for v in variants if v.isa == self._variant), variants[-1])

    @property
    def threads(self) -> int:
        """How many threads a run may use, as far as is known here."""
        known = self.device.facts.get("processors")
        most = known if isinstance(known, int) and known > 0 else 1
        return self._threads or min(self.variant.threads, most)

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """{input name: array} -> {output name: array}."""

        def run(arrays: Mapping[str, object]) -> dict[str, Array]:
            return self.measure(arrays).outputs

        return self.front.run(inputs, run) if self.front else run(inputs)

    def profile(self, inputs: Mapping[str, object], *, repeat: int = 20) -> list[float]:
        """{input name: array} -> median seconds of every step on the device, each timed alone."""
        return self.measure(inputs, steps=repeat).steps

    def measure(
        self,
        inputs: Mapping[str, object],
        *,
        iterations: int = 0,
        seconds: float = 0.0,
        warmup: int = 5,
        steps: int = 0,
    ) -> Answer:
        """Run once on the device; then, if `iterations` or `seconds` is not 0, `warmup` times
        untimed and that many times, or seconds, timed; then every step alone, `steps` times.
        """
        given = arrays_in_order(self._input_specs, inputs)
        data = b"".join(a.tobytes() for a in given)
        request = {
            "artifact": self._digest,
            "bytes": len(data),
            "shapes": [a.shape for a in given],
            "threads": self._threads,
            "variant": self._variant,
            "iterations": iterations,
            "seconds": seconds,
            "warmup": warmup,
            "steps": steps,
            "wait": self._wait,
            "limit": self._limit,
        }
        answer, made = self.device._run(request, data, self._wait + self._limit)
        if answer.get("missing"):  # the device needed the room
            if self.device._upload(self._source) != self._digest:
                raise _replaced(self._source)
            answer, made = self.device._run(request, data, self._wait + self._limit)
        return self._measured(answer, made)

    def _measured(self, answer: Mapping[str, object], made: bytearray) -> Answer:
        times, steps = facts.count(answer, "times"), facts.count(answer, "steps")
        cut = len(made) - 8 * (times + steps)
        if cut < 0:
            raise Lost("it sent fewer times than it had said", where=self.device.address)
        seconds = np.frombuffer(made[cut:], "<f8").tolist()
        self._variant = facts.text(answer, "variant")
        return Answer(
            outputs=arrays(self.manifest.outputs, made[:cut], answer),
            times=seconds[:times],
            steps=seconds[times:],
            first_seconds=facts.seconds(answer, "first_seconds"),
            load_seconds=facts.seconds(answer, "load_seconds"),
            threads=facts.count(answer, "threads"),
        )
