"""A stream's model in an actor of a Ray cluster: arrays -> arrays, on whichever node has room.

Machine code and weights are in the object store once, from which every node maps one copy. An actor
that dies, with its node or alone, or hangs, is made again elsewhere, and its run is tried once
more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from qcompiler.artifact.artifact import Artifact, Binary
from qcompiler.artifact.manifest import read
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.executor.errors import WorkerLost
from qcompiler.runtime.executor.shared import description_of
from qcompiler.runtime.executor.tally import Tally
from qcompiler.runtime.library import aligned
from qcompiler.runtime.model import load


def ray() -> Any:
    """Ray, connected to the cluster that RAY_ADDRESS names, or to one of this machine."""
    try:
        import ray as found
    except ImportError as e:
        raise Error("engine='ray' needs ray", hint="pip install ray") from e
    if not found.is_initialized():
        found.init(log_to_driver=False, include_dashboard=False)
    return found


def cluster_cores() -> int:
    """Processors of all nodes."""
    return max(1, int(ray().cluster_resources().get("CPU", 1)))


_STARTS = 3
"""How many times an actor is started at most, if it is lost before it has loaded the model."""


class StoredModel:
    """A model in the object store."""

    def __init__(self, artifact: Artifact) -> None:
        (binary,) = artifact.binaries
        self.description = ray().put({**description_of(artifact), "code": binary.code})
        self.weights = ray().put(binary.weights)


class Actor:
    """An actor, and the next one when that dies, or has not answered within `timeout_seconds` (0:
    there is no limit). One thread uses it.
    """

    def __init__(
        self, model: StoredModel, tally: Tally, *, threads: int, timeout_seconds: float = 0.0
    ) -> None:
        self._model, self._tally, self._threads = model, tally, threads
        self._timeout_seconds = timeout_seconds
        self._ray = ray()
        errors = self._ray.exceptions
        self._lost = (errors.RayActorError, errors.GetTimeoutError)
        self._actor: Any = None
        self._ready()

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Inputs just as the model takes them -> new outputs. Raises WorkerLost where a second
        actor died of it, too.
        """
        try:
            found = self._run(arrays)
        except self._lost:
            self.end()
            self._tally.add("retried")
            try:
                self._tally.add("restarted")
                self._ready(reserved=False)
                found = self._run(arrays)
            except self._lost as e:
                self.end()
                raise WorkerLost(f"its actor ended, and so did the next: {self._how(e)}") from e
        made = [aligned(array.dtype, array.shape).array for array in found]
        for array, place in zip(found, made):
            np.copyto(place, array)
        return made

    def end(self) -> None:
        """Give the actor's place in the cluster back."""
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None

    def _ready(self, *, reserved: bool = True) -> None:
        """Have an actor that has loaded the model, on cores that are `reserved` for it. After the
        loss of a node there may be none left, and the others share theirs; and until a cluster
        notices the loss, it places new actors on that node.
        """
        for left in reversed(range(_STARTS)):
            try:
                self._start(reserved=reserved)
                return
            except self._lost:
                self.end()
                if not left:
                    raise

    def _start(self, *, reserved: bool) -> None:
        make = _remote().options(num_cpus=self._threads if reserved else 0)
        self._actor = make.remote(self._model.description, self._model.weights, self._threads)
        try:
            self._ray.get(self._actor.ready.remote())
        except self._ray.exceptions.RayTaskError as e:
            raise e.as_instanceof_cause() from None

    def _run(self, arrays: Sequence[Array]) -> Sequence[Array]:
        if self._actor is None:
            self._ready(reserved=False)
        answer = self._actor.run.remote(*arrays)
        try:
            found: Sequence[Array] = self._ray.get(answer, timeout=self._timeout_seconds or None)
        except self._ray.exceptions.RayTaskError as e:
            raise e.as_instanceof_cause() from None
        return found

    def _how(self, error: Exception) -> str:
        if isinstance(error, self._ray.exceptions.GetTimeoutError):
            return f"it did not answer within {self._timeout_seconds:g} s"
        return "it died"


class _Worker:
    """What an actor does."""

    def __init__(self, description: dict[str, Any], weights: Array, threads: int) -> None:
        binary = Binary(description["code"], weights)
        binary.__dict__["digest"] = description["digest"]
        artifact = Artifact(
            read(description["manifest"].encode(), "a model in the store"), (binary,)
        )
        self._caller = load(artifact, threads=threads).caller(threads=threads)

    def ready(self) -> bool:
        """Whether the model is loaded."""
        return True

    def run(self, *arrays: Array) -> list[Array]:
        """Inputs -> outputs."""
        return self._caller.run(arrays)


@cache
def _remote() -> Any:
    return ray().remote(_Worker)
