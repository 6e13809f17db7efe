"""A case with its batch left open: what is proven of it, and its artifact at several sizes, against
what the model means at each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from qcompiler.driver import Compilation
from qcompiler.ir import Array, Graph
from qcompiler.onnx_io.reader import read
from qcompiler.options import Options
from qcompiler.runtime import load

from .checks import Outcome, compare, outcome_of
from .generate import Case
from .poison import BYTES, poisoned, stir
from .reference import Reference, references

BATCH = "batch"
Feed = Mapping[str, Array]


def check_opened(case: Case, *, passes_only: bool = False) -> Outcome:
    """Open the first dimension of all inputs. Refused where sizes are written into the model;
    where samples may meet, the batch is padded as any size is. `passes_only`: look at the proof
    alone, in numpy.
    """
    return outcome_of(lambda outcome: _check(case, outcome, passes_only))


def _check(case: Case, outcome: Outcome, passes_only: bool) -> None:
    model = with_open_batch(case.model)
    # float32, as each sample has scales of its own where scales follow what is seen
    made = Compilation(model, Options(dims={BATCH: "1..9"}, threads=2)).having(device=case.device)
    if made.opened is None or (passes_only and not made.opened.batched):
        return
    feed = _joined(case)
    sizes = (9,) if passes_only else (9, 1, 8)
    wanted = {n: references(_at(model, n), _part(feed, 0, n), kernels=True) for n in sizes}
    if made.opened.batched:
        _proven(model, feed, wanted[9], outcome)
    if passes_only or outcome.faults:
        return
    with poisoned(BYTES[0]):
        opened = load(made.artifact, threads=2)
        for n, byte in zip(wanted, (*BYTES, BYTES[0]), strict=False):
            with poisoned(byte):
                stir(opened, byte)
                compare(f"{n} samples", opened.run(_part(feed, 0, n)), wanted[n], outcome)


def with_open_batch(model: ModelProto) -> ModelProto:
    """The model with an open first dimension of all inputs; what it says of outputs is left out."""
    opened = ModelProto()
    opened.CopyFrom(model)
    held = {t.name for t in model.graph.initializer}
    for value in opened.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in held and dims:
            dims[0].dim_param = BATCH
    for value in opened.graph.output:
        value.type.tensor_type.ClearField("shape")
    del opened.graph.value_info[:]
    return opened


def _at(model: ModelProto, count: int) -> Graph:
    """The model's graph at so many samples."""
    held = {t.name for t in model.graph.initializer}
    shapes = {
        v.name: (count, *(d.dim_value for d in v.type.tensor_type.shape.dim[1:]))
        for v in model.graph.input
        if v.name not in held
    }
    return read(model, shapes)


def _joined(case: Case) -> Feed:
    """Nine samples, of all sets of inputs, again and again."""
    rows = {k: np.concatenate([f[k] for f in case.feeds]) for k in case.feeds[0]}
    return {k: v[np.arange(9) % len(v)] for k, v in rows.items()}


def _part(feed: Feed, first: int, count: int) -> Feed:
    return {k: np.ascontiguousarray(v[first : first + count]) for k, v in feed.items()}


def _proven(
    model: ModelProto, feed: Feed, wanted: Mapping[str, Reference], outcome: Outcome
) -> None:
    """Samples that are proven not to meet give the same alone."""
    one = _at(model, 1)
    alone = [references(one, _part(feed, i, 1), kernels=True) for i in range(9)]
    together = {k: np.concatenate([a[k].value for a in alone]) for k in wanted}
    compare("samples alone", together, wanted, outcome)
