"""Nodes of a Ray cluster -> places to measure: on each an actor that runs artifacts as this machine
does, in a process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from qcompiler.autotune.places import Gone, Here, Place, Ran, Runs
from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.runtime.executor.ray_engine import ray

_SLACK_SECONDS = 60.0
"""What a run may take longer than its limit: the way there and back, and the end of what hangs."""


def nodes(threads: int) -> Sequence[Place]:
    """A place on every node that has at least `threads` cores. Raises Error where there is none."""
    found = [
        Node(node["NodeID"], node["NodeManagerAddress"], threads)
        for node in ray().nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= threads
    ]
    if not found:
        raise Error(f"no node of the cluster has {threads} cores", where="--engine ray")
    return found


class Node:
    """A place on a node. Raises Error where no actor can be had there."""

    def __init__(self, node: str, address: str, threads: int, *, reserved: bool = True) -> None:
        """`reserved`: nothing else of the cluster gets the actor's cores."""
        self.name = f"{address} ({node[:8]})"
        self._node, self._address, self._threads = node, address, threads
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": threads if reserved else 0, "scheduling_strategy": there}
        self._actor: Any = _remote().options(**options).remote(threads)
        try:
            self.host: str = ray().get(self._actor.host.remote(), timeout=_SLACK_SECONDS)
        except (ray().exceptions.RayError, ray().exceptions.GetTimeoutError) as e:
            raise Error(f"no actor starts there: {e}", where=self.name) from e

    def run(self, artifact: Path, inputs: Mapping[str, Array], runs: Runs) -> Ran:
        """See `Place`."""
        answer = self._actor.run.remote(artifact.name, artifact.read_bytes(), dict(inputs), runs)
        try:
            found: Ran | Error = ray().get(answer, timeout=runs.limit + _SLACK_SECONDS)
        except (ray().exceptions.RayError, ray().exceptions.GetTimeoutError) as e:
            raise Gone(f"its node or actor is lost ({type(e).__name__})") from e
        if isinstance(found, Error):
            raise found
        return found

    def again(self) -> Node:
        """See `Place`."""
        try:
            return Node(self._node, self._address, self._threads, reserved=False)
        except Error as e:
            raise Gone(str(e)) from e

    def close(self) -> None:
        """See `Place`."""
        ray().kill(self._actor)


class _Worker:
    """What an actor does."""

    def __init__(self, threads: int) -> None:
        self._here = Here(threads)
        self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")

    def host(self) -> str:
        """The fingerprint of its hardware."""
        return self._here.host

    def run(self, name: str, data: bytes, inputs: Mapping[str, Array], runs: Runs) -> Ran | Error:
        """Run an artifact -> what `Here.run` gives, or raises."""
        path = Path(self._folder.name) / name
        path.write_bytes(data)
        try:
            return self._here.run(path, inputs, runs)
        except Error as e:
            return Error(e.what, where=e.where, hint=e.hint)


@cache
def _remote() -> Any:
    return ray().remote(_Worker)
