"""A case with one size of its inputs open, and its artifact, with NaN wherever nothing counts,
against what the model means at each size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import ModelProto

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops import evaluate
from qcompiler.options import Options
from qcompiler.rewrite.padding.pad import Result, padded
from qcompiler.runtime import Model, load, open_sizes
from tests.rewrite.test_padding import behind_nan

from .checks import Outcome, compare, outcome_of
from .generate import Case
from .poison import BYTES, poisoned, stir
from .reference import references

OPEN = "open"
Feed = Mapping[str, Array]


def check_sizes(case: Case, *, passes_only: bool = False) -> Outcome:
    """Open each size of the inputs, one after the other; many are written into the model, and
    refused. `passes_only`: look at the padded graph alone, in numpy.
    """
    kept, behind = open_sizes.BEHIND, {"f": float("nan"), "i": 1}
    open_sizes.BEHIND = behind
    try:
        return outcome_of(lambda outcome: _check(case, outcome, passes_only))
    finally:
        open_sizes.BEHIND = kept


def _check(case: Case, outcome: Outcome, passes_only: bool) -> None:
    for size in sorted({n for n in _sizes(case.model) if n > 1}):
        model, most = with_open_size(case.model, size), size + 3
        try:
            made = _padded(model, most)
        except Error:
            continue
        artifact = None if passes_only else _artifact(case, model, most)
        for n in (1, 2, size, most):
            feed = _resized(case.feeds[0], model, n)
            try:
                graph = read_pinned(model, {}, {OPEN: n}, False, {})
                wanted = references(graph, feed, kernels=True)
            except Error:
                continue  # what the size is written into
            what = f"{OPEN} = {n} for {size}"
            if artifact is not None:
                for byte in BYTES[:2]:
                    with poisoned(byte):
                        stir(artifact, byte)
                        compare(what, artifact.run(feed), wanted, outcome)
                continue
            found = evaluate(made.graph, behind_nan(made.graph, feed, {OPEN: n}))
            cut = {k: found[k][tuple(map(slice, w.value.shape))] for k, w in wanted.items()}
            compare(what, cut, wanted, outcome)


def _artifact(case: Case, model: ModelProto, most: int) -> Model:
    options = Options(dims={OPEN: f"1..{most}"}, threads=2)
    made = Compilation(model, options).having(device=case.device)
    return load(made.artifact, threads=2)


def _padded(model: ModelProto, most: int) -> Result:
    graph = read_pinned(model, {}, {OPEN: f"1..{most}"}, False, {OPEN: Size.of(OPEN)})
    return padded(graph, [Symbol(OPEN, 1, most, most)])


def _sizes(model: ModelProto) -> Iterator[int]:
    held = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in held:
            yield from (d.dim_value for d in value.type.tensor_type.shape.dim)


def with_open_size(model: ModelProto, size: int) -> ModelProto:
    """The model with all dimensions of inputs that have this size open; what it says of outputs is
    left out.
    """
    opened = ModelProto()
    opened.CopyFrom(model)
    held = {t.name for t in model.graph.initializer}
    for value in opened.graph.input:
        for d in value.type.tensor_type.shape.dim if value.name not in held else ():
            if d.dim_value == size:
                d.dim_param = OPEN
    for value in opened.graph.output:
        value.type.tensor_type.ClearField("shape")
    del opened.graph.value_info[:]
    return opened


def _resized(feed: Feed, model: ModelProto, n: int) -> dict[str, Array]:
    """Inputs cut to the size, or repeated up to it."""
    made = {}
    for value in model.graph.input:
        if value.name not in feed:
            continue
        array = feed[value.name]
        for axis, d in enumerate(value.type.tensor_type.shape.dim):
            if d.dim_param:
                array = np.take(array, np.arange(n) % array.shape[axis], axis)
        made[value.name] = np.ascontiguousarray(array)
    return made
