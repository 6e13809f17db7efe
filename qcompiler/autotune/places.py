"""Where trials run: here, in a process of its own, or on a device that serves others."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from qcompiler.artifact.artifact import open_artifact
from qcompiler.errors import Error
from qcompiler.hardware import cpu
from qcompiler.ir import Array
from qcompiler.runtime.remote import Device, connect, facts
from qcompiler.runtime.remote.wire import Lost
from qcompiler.runtime.remote.worker import Worker

_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Ran:
    """The outputs of an artifact, in order; the median seconds of its steps, and those of whole
    runs, where they were asked for.
    """

    outputs: list[Array]
    steps: list[float]
    times: list[float]


@dataclass(frozen=True)
class Runs:
    """What to do with an artifact: `rounds` of its steps one by one, `iterations` of it as a whole,
    both within `limit` seconds.
    """

    limit: float
    rounds: int = 0
    iterations: int = 0


class Place(Protocol):
    """Runs artifacts. One thread uses it at a time."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def host(self) -> str:
        """What is equal for the same hardware."""

    def run(self, artifact: Path, inputs: Mapping[str, Array], runs: Runs) -> Ran:
        """Run an artifact. Raises Gone where the place is lost, Error where the artifact crashes or
        takes too long.
        """

    def again(self) -> Place:
        """Another process at the same place: two artifacts stay loaded."""

    def close(self) -> None:
        """End what runs there."""


class Gone(Exception):
    """A place cannot be used any more."""


class Here:
    """This machine: a child process runs artifacts, on processors that stay the same."""

    name = "here"

    def __init__(self, threads: int) -> None:
        self.host = fingerprint(platform.machine(), cpu.cores(), cpu.features())
        self._threads = threads
        self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")
        self._worker = Worker(self._folder.name)

    def run(self, artifact: Path, inputs: Mapping[str, Array], runs: Runs) -> Ran:
        """See `Place`."""
        manifest = open_artifact(artifact).manifest
        data = b"".join(inputs[v.name].tobytes() for v in manifest.inputs)
        request = {
            "artifact": str(artifact),
            "shapes": [inputs[v.name].shape for v in manifest.inputs],
            "threads": 0,
            "variant": "",
            "iterations": runs.iterations,
            "seconds": 0.0,
            "warmup": 1 if runs.iterations else 0,
            "steps": runs.rounds,
        }
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, _processors(self._threads))  # the child takes it over
        try:
            answer, made = self._worker.ask(
                request, data, seconds=runs.limit, most_bytes=_MOST_BYTES, meanwhile=lambda: None
            )
        finally:
            os.sched_setaffinity(0, before)
        if (error := facts.raised(answer)) is not None:
            raise error
        times, steps = facts.count(answer, "times"), facts.count(answer, "steps")
        cut = len(made) - 8 * (times + steps)
        seconds = np.frombuffer(made[cut:], "<f8").tolist()
        outputs = facts.arrays(manifest.outputs, made[:cut], answer)
        return Ran(list(outputs.values()), seconds[times:], seconds[:times])

    def again(self) -> Here:
        """See `Place`."""
        return Here(self._threads)

    def close(self) -> None:
        """See `Place`."""
        self._worker.end()
        self._folder.cleanup()


def _processors(count: int) -> set[int]:
    """The last ones of those that this process may use: the first ones serve interrupts."""
    return set(sorted(os.sched_getaffinity(0))[-count:])


class There:
    """A device where `qcompiler serve-device` runs."""

    def __init__(self, address: str, token: bytes, wait: float) -> None:
        self.name = address
        self._token, self._wait = token, wait
        self._device: Device = connect(address, token)
        known = self._device.facts
        features = known.get("features")
        self.host = fingerprint(
            str(known.get("machine")),
            known.get("processors"),
            frozenset(map(str, features)) if isinstance(features, list) else frozenset(),
        )

    def run(self, artifact: Path, inputs: Mapping[str, Array], runs: Runs) -> Ran:
        """See `Place`."""
        try:
            model = self._device.load(artifact, wait=self._wait, limit=runs.limit)
            found = model.measure(
                dict(inputs),
                iterations=runs.iterations,
                warmup=1 if runs.iterations else 0,
                steps=runs.rounds,
            )
        except (Lost, OSError) as e:
            raise Gone(str(e)) from e
        return Ran(list(found.outputs.values()), found.steps, found.times)

    def again(self) -> There:
        """See `Place`."""
        try:
            return There(self.name, self._token, self._wait)
        except Error as e:
            raise Gone(str(e)) from e

    def close(self) -> None:
        """See `Place`."""
        self._device.close()


def fingerprint(machine: str, processors: object, features: frozenset[str]) -> str:
    """What is known of some hardware -> a word that differs where that does."""
    digest = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:12]
    return f"{machine}-{processors}-{digest}"
