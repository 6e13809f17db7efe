"""Streams on a machine of several NUMA nodes -> each on one of them, beside the weights it reads.

A thread that is bound to a node is the first to touch its workspace, its team's memory and its copy
of the weights, so the system puts all of these into the node's own memory; threads that it starts
stay on the node, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from qcompiler.artifact.artifact import Binary
from qcompiler.hardware import cpu
from qcompiler.runtime.library import aligned
from qcompiler.runtime.model import Model

Made = TypeVar("Made")
_turn = count()
"""The streams of all executors are distributed over the nodes in order."""


class Nodes:
    """The nodes that one executor's streams may use, and its model on each."""

    def __init__(self, threads: int) -> None:
        """`threads`: of each stream; those that need more than a node has are left where they are,
        and so is every stream of a machine of one node.
        """
        found: Sequence[frozenset[int]] = cpu.nodes()
        fit = len(found) > 1 and all(len(node) >= threads for node in found)
        self._nodes = list(found) if fit else []
        self._models: dict[int, Model] = {}
        self._lock = threading.Lock()

    def bound(self, make: Callable[..., Made], **keywords: Any) -> Made:
        """What is made by the calling thread, which stays on one node from now on, as do threads
        and processes that it starts.
        """
        self._settle()
        return make(**keywords)

    def settled(self, make: Callable[[Model], Made], model: Model) -> Made:
        """The same, of the model with weights on that node."""
        node = self._settle()
        if node is None:
            return make(model)
        with self._lock:
            if node not in self._models:
                self._models[node] = _copied(model)
            found = self._models[node]
        return make(found)

    def _settle(self) -> int | None:
        if not self._nodes:
            return None
        node = next(_turn) % len(self._nodes)
        os.sched_setaffinity(0, self._nodes[node])
        return node

    def close(self) -> None:
        """Forget the copies; callers keep what they use."""
        with self._lock:
            self._models.clear()


def _copied(model: Model) -> Model:
    """The same model, with a copy of its weights."""
    artifact = model.artifact
    (binary,) = artifact.binaries
    memory = aligned(binary.weights.dtype, binary.weights.shape)
    memory.array[...] = binary.weights
    made = Binary(binary.code, memory.array, binary.blocks)
    made.__dict__["digest"] = binary.digest  # of the same bytes
    return type(model)(replace(artifact, binaries=(made,)), threads=model.threads)
