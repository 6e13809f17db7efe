"""The inputs of a command: those it is given, or made-up ones."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from qcompiler.artifact.artifact import Value
from qcompiler.dtypes import Array, numpy_dtype
from qcompiler.errors import Error
from qcompiler.runtime.model import Interface


def inputs_of(a: Namespace, model: Interface, count: int = 1) -> list[dict[str, Array]]:
    """The samples a command is given, or `count` made-up ones."""
    if a.inputs:
        from itertools import islice

        from qcompiler.data.samples import samples

        types = {v.name: (v.dtype, v.dims) for v in model.inputs}
        found = list(islice(samples(str(a.inputs), types), count))
        if not found:
            raise Error("no samples", where=str(a.inputs))
        return found
    rng = np.random.default_rng(a.seed)
    return [{v.name: _fill(v, a.fill_mode, rng) for v in model.inputs} for _ in range(count)]


def _fill(value: Value, mode: str, rng: np.random.Generator) -> Array:
    dtype = numpy_dtype(value.dtype)
    if mode != "random":
        return np.full(value.shape, 1 if mode == "ones" else 0, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 100 if dtype.itemsize > 1 else 2, value.shape).astype(dtype)
    return rng.random(value.shape).astype(dtype)
