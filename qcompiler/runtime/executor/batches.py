"""Requests of a few samples each -> one run of a whole batch -> the results of each.

The model must treat every sample by itself (`Manifest.apart`), so what else is in the batch, and
what fills it up, changes no bit of anybody's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qcompiler.runtime.arrays import Array, Kind
from qcompiler.runtime.executor.requests import Request
from qcompiler.runtime.library import aligned


class Batcher:
    """Arrays of the largest batch, used again and again by one stream. The model takes `least`
    samples at the least.
    """

    def __init__(self, inputs: Sequence[Kind], least: int) -> None:
        self._least = least
        self._arrays = [aligned(np.dtype(dtype), shape).array for dtype, shape in inputs]

    def joined(self, requests: Sequence[Request]) -> list[Array]:
        """What the model takes: all samples in order, filled up with copies of the first where
        these are too few.
        """
        rows = sum(r.rows for r in requests)
        if len(requests) == 1 and rows >= self._least:
            return list(requests[0].arrays)
        made = [whole[: max(rows, self._least)] for whole in self._arrays]
        for number, whole in enumerate(made):
            at = 0
            for request in requests:
                whole[at : at + request.rows] = request.arrays[number]
                at += request.rows
            whole[at:] = whole[:1]
        return made

    def split(self, requests: Sequence[Request], outputs: Sequence[Array]) -> list[list[Array]]:
        """The outputs of a run -> those of each request, in arrays of its own."""
        if len(requests) == 1 and requests[0].rows >= self._least:
            return [list(outputs)]
        made, at = [], 0
        for request in requests:
            made.append([output[at : at + request.rows].copy() for output in outputs])
            at += request.rows
        return made


def parts(arrays: Sequence[Array], most: int) -> list[list[Array]]:
    """Arrays of many samples -> parts of at most `most`, the last one maybe smaller."""
    rows = arrays[0].shape[0]
    return [[a[at : at + most] for a in arrays] for at in range(0, rows, most)]


def together(results: Sequence[Any]) -> Any:
    """The results of parts, in order -> that of the whole: of the same kind."""
    first = results[0]
    if isinstance(first, dict):
        return {name: np.concatenate([r[name] for r in results]) for name in first}
    if isinstance(first, tuple):
        return tuple(np.concatenate(each) for each in zip(*results))
    return np.concatenate(results)
