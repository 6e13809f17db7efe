"""A case with one size of its inputs open, or two, and its artifact, with NaN wherever nothing
counts, against what the model means at each size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

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

OPEN, OTHER = "open", "other"
Feed = Mapping[str, Array]
Numbers = Mapping[str, int]
"""Open sizes -> what they are in a run, or in the model as it is made."""


def check_sizes(case: Case, *, passes_only: bool = False) -> Outcome:
    """Open each size of the inputs, one after the other; many are written into the model, and
    refused. `passes_only`: look at the padded graph alone, in numpy.
    """
    sizes = _sizes(case.model)
    return _checked(case, [{OPEN: n} for n in sizes], passes_only)


def check_two_sizes(case: Case, *, passes_only: bool = False) -> Outcome:
    """Open two sizes of the inputs together, which are equal in some runs."""
    pairs = combinations(_sizes(case.model), 2)
    return _checked(case, [{OPEN: n, OTHER: m} for n, m in pairs], passes_only)


def _checked(case: Case, opened: Sequence[Numbers], passes_only: bool) -> Outcome:
    kept, behind = open_sizes.BEHIND, {"f": float("nan"), "i": 1}
    open_sizes.BEHIND = behind

    def check(outcome: Outcome) -> None:
        for sizes in opened:
            _check(case, sizes, outcome, passes_only)

    try:
        return outcome_of(check)
    finally:
        open_sizes.BEHIND = kept


def _check(case: Case, sizes: Numbers, outcome: Outcome, passes_only: bool) -> None:
    model, most = with_open_sizes(case.model, sizes), {k: n + 3 for k, n in sizes.items()}
    try:
        made = _padded(model, most)
    except Error:
        return
    artifact = None if passes_only else _artifact(case, model, most)
    for numbers in runs(sizes):
        feed = _resized(case.feeds[0], model, numbers)
        try:
            graph = read_pinned(model, {}, numbers, False, {})
            wanted = references(graph, feed, kernels=True)
        except Error:
            continue  # what the sizes are written into
        what = f"{numbers} for {sizes}"
        if artifact is not None:
            for byte in BYTES[:2]:
                with poisoned(byte):
                    stir(artifact, byte)
                    compare(what, artifact.run(feed), wanted, outcome)
            continue
        found = evaluate(made.graph, behind_nan(made.graph, feed, numbers))
        cut = {k: found[k][tuple(map(slice, w.value.shape))] for k, w in wanted.items()}
        compare(what, cut, wanted, outcome)


def runs(sizes: Numbers) -> Iterator[Numbers]:
    """The sizes that are tried: the least, what the model was made with, the most; two of them also
    apart, and equal.
    """
    each = [(1, 2, n, n + 3) for n in sizes.values()]
    if len(each) == 1:
        chosen = [(n,) for n in each[0]]
    else:
        (a, b), equal = each, min(map(max, each))
        chosen = [*zip(a, b, strict=True), (1, b[3]), (a[3], 1), (equal, equal)]
    for numbers in dict.fromkeys(chosen):
        yield dict(zip(sizes, numbers, strict=True))


def _artifact(case: Case, model: ModelProto, most: Numbers) -> Model:
    options = Options(dims={k: f"1..{n}" for k, n in most.items()}, threads=2)
    made = Compilation(model, options).having(device=case.device)
    return load(made.artifact, threads=2)


def _padded(model: ModelProto, most: Numbers) -> Result:
    dims = {k: f"1..{n}" for k, n in most.items()}
    graph = read_pinned(model, {}, dims, False, {k: Size.of(k) for k in most})
    return padded(graph, [Symbol(k, 1, n, n) for k, n in most.items()])


def _sizes(model: ModelProto) -> list[int]:
    """The sizes of inputs above 1."""
    held = {t.name for t in model.graph.initializer}
    given = [v for v in model.graph.input if v.name not in held]
    found = {d.dim_value for v in given for d in v.type.tensor_type.shape.dim}
    return sorted(n for n in found if n > 1)


def with_open_sizes(model: ModelProto, sizes: Numbers) -> ModelProto:
    """The model with all dimensions of inputs that have these sizes open; what it says of outputs
    is left out.
    """
    opened = ModelProto()
    opened.CopyFrom(model)
    names = {n: name for name, n in sizes.items()}
    held = {t.name for t in model.graph.initializer}
    for value in opened.graph.input:
        for d in value.type.tensor_type.shape.dim if value.name not in held else ():
            if d.dim_value in names:
                d.dim_param = names[d.dim_value]
    for value in opened.graph.output:
        value.type.tensor_type.ClearField("shape")
    del opened.graph.value_info[:]
    return opened


def _resized(feed: Feed, model: ModelProto, numbers: Numbers) -> dict[str, Array]:
    """Inputs cut to the sizes, or repeated up to them."""
    made = {}
    for value in model.graph.input:
        if value.name not in feed:
            continue
        array = feed[value.name]
        for axis, d in enumerate(value.type.tensor_type.shape.dim):
            if d.dim_param:
                array = np.take(array, np.arange(numbers[d.dim_param]) % array.shape[axis], axis)
        made[value.name] = np.ascontiguousarray(array)
    return made
