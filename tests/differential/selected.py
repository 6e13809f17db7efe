"""Steps whose data decide how many values they select; what they come to has a fixed size again."""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Array

from .builder import Builder, Value


def written_back(b: Builder) -> None:
    """Rows that are chosen by their values, changed, and written where they were."""
    x = b.pick(lambda v: 1 <= v.rank <= 3 and 1 < v.shape[0] <= 64)
    chosen, kept = _chosen(b, x)
    places = b.unsized("NonZero", chosen)
    rows = b.unsized("Transpose", places, perm=[1, 0])
    picked = b.unsized("GatherND", x.name, rows)
    half = b.constant(np.float32(0.5)).name
    y = b.unsized("Mul", picked, half)
    made = x.array.copy()
    made[kept] = x.array[kept] * np.float32(0.5)
    b.sized("ScatterND", (x.name, rows, y), made)


def summed_up(b: Builder) -> None:
    """Sums and extremes of rows that are chosen by their values."""
    x = b.pick(lambda v: 1 <= v.rank <= 3 and 1 < v.shape[0] <= 64)
    chosen, kept = _chosen(b, x)
    picked = b.unsized("Compress", x.name, chosen, axis=0)
    op, of = b.choose((("ReduceSum", np.sum), ("ReduceMax", np.max), ("ReduceMin", np.min)))
    if b.chance(0.3):
        again = b.unsized("Concat", picked, x.name, picked, axis=0)
        whole = np.concatenate([x.array[kept], x.array, x.array[kept]])
    else:
        first = b.unsized("Slice", x.name, b.ints(0).name, b.ints(1).name)
        again = b.unsized("Concat", picked, first, axis=0)  # so that it is never empty
        whole = np.concatenate([x.array[kept], x.array[:1]])
    made = np.asarray(of(whole * np.float32(1), axis=0, keepdims=True), np.float32)
    b.sized(op, (again, b.ints(0).name), made, keepdims=1)


def _chosen(b: Builder, x: Value) -> tuple[str, Array]:
    """A row of booleans, an input of the model, so that rounding decides nothing: its name, and
    what it is on the first feed.
    """
    given = b.input((x.shape[0],), "bool")
    return given.name, given.array
