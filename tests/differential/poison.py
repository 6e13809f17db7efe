"""Memory that a run finds is never zero, nor what an earlier run left: before each run the
workspace, the outputs and what lies past the ends of arrays are filled with a byte.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from qcompiler.runtime import Model, arrays, library

BYTES = (0xFF, 0xAA, 0x7F)
"""NaN and -1; a small negative number; NaN or a large number."""


class _Numpy:
    """numpy, whose new memory is filled with a byte."""

    def __init__(self, byte: int) -> None:
        self.byte = byte

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = float) -> Any:
        made = np.empty(shape, dtype)
        made.reshape(-1).view(np.uint8)[:] = self.byte
        return made


@contextmanager
def poisoned(byte: int) -> Iterator[None]:
    """The runtime's new arrays are full of a byte."""
    modules = (library, arrays)
    try:
        for module in modules:
            module.np = _Numpy(byte)  # type: ignore[attr-defined]
        yield
    finally:
        for module in modules:
            module.np = np  # type: ignore[attr-defined]


def stir(model: Model, byte: int) -> None:
    """What the last run left in a model's workspaces is gone."""
    waiting, contexts = model._open().contexts, []
    try:
        while True:
            contexts.append(waiting.get_nowait())
    except queue.Empty:
        pass
    for context in contexts:
        context.frame.workspace.array[:] = byte
        context._block.array[context._at :] = byte
        waiting.put(context)
