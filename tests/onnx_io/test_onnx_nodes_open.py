"""ONNX's backend tests with every size of a tensor above 1 open, equal ones by one name: each is
right in numpy, with NaN behind what counts, or refused with an Error as listed in
golden/onnx_nodes_open_refused.txt (`--update-golden` writes it anew). A few are compiled, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TypeProto
from onnx.backend.test.case.test_case import TestCase
from onnx_cases import Value, feeds_of, loaded, outcome_of

import qcompiler
from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops import evaluate
from qcompiler.rewrite.padding.pad import padded
from qcompiler.runtime import open_sizes
from qcompiler.runtime.text import NOTE, Program
from tests.onnx_io.test_onnx_nodes import cases, check, listed
from tests.rewrite.test_padding import behind_nan

REFUSED = Path(__file__).parents[1] / "golden" / "onnx_nodes_open_refused.txt"
MORE = 3
"""The largest sizes are so much more than those of a case."""
PARTS = 8
SAMPLE, COMPILED = 90, 300
"""Every so manieth case runs in every `pytest`, and is compiled."""


@cache
def open_cases() -> list[TestCase]:
    """Those whose inputs are tensors, one of them of a size above 1."""
    return [c for c in cases() if _is_open(c)]


def _is_open(case: TestCase) -> bool:
    model, sets = loaded(case)
    values = feeds_of(model, sets[0][0])[1].values() if sets else ()
    return all(isinstance(v, np.ndarray) for v in values) and any(
        n > 1 for v in values for n in v.shape
    )


def opened(model: ModelProto, feeds: dict[str, Value], outputs: list[Value]) -> ModelProto:
    """The model with all sizes above 1 of its inputs open, and named so in what it says of its
    outputs.
    """
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    sizes = sizes_of(feeds)
    for value in made.graph.input:
        if value.name in feeds:
            _name(value.type, feeds[value.name].shape, sizes)
    for value, want in zip(made.graph.output, outputs, strict=True):
        if isinstance(want, np.ndarray):
            _name(value.type, want.shape, sizes)
    return made


def sizes_of(feeds: dict[str, Value]) -> dict[str, int]:
    """Open sizes by name."""
    return {f"s{n}": n for n in sorted({n for v in feeds.values() for n in v.shape if n > 1})}


def _name(type: TypeProto, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    while type.HasField("optional_type"):
        type = type.optional_type.elem_type
    dims = type.tensor_type.shape
    del dims.dim[:]
    for n in shape:
        if f"s{n}" in sizes:
            dims.dim.add(dim_param=f"s{n}")
        else:
            dims.dim.add(dim_value=n)


def in_numpy(model: ModelProto, inputs: list[Value], outputs: list[Value]) -> list[Value]:
    """Outputs of the padded graph, cut to the sizes that are wanted: of sizes from 1, or at least
    from those of the case.
    """
    model, feeds = feeds_of(model, inputs)
    sizes = sizes_of(feeds)
    whole = opened(model, feeds, outputs)
    try:
        found = _padded(whole, feeds, sizes, dict.fromkeys(sizes, 1))
    except Error:
        found = _padded(whole, feeds, sizes, sizes)
    made = [found[o.name] for o in model.graph.output]
    return [v[tuple(map(slice, w.shape))] for v, w in zip(made, outputs, strict=True)]


def _padded(
    model: ModelProto, feeds: dict[str, Value], sizes: dict[str, int], least: dict[str, int]
) -> dict[str, Value]:
    dims = {k: f"{least[k]}..{n + MORE}" for k, n in sizes.items()}
    graph = read_pinned(model, {}, dims, False, {k: Size.of(k) for k in sizes})
    most = [Symbol(k, least[k], n + MORE, n + MORE) for k, n in sizes.items()]
    made = padded(graph, most).graph
    assert {s for i in graph.inputs for s in i.type.symbols} == sizes.keys()

    def run(taken: Mapping[str, Value]) -> dict[str, Value]:
        return evaluate(made, behind_nan(made, taken, sizes))

    return Program(made.notes[NOTE]).run_with(feeds, run) if NOTE in made.notes else run(feeds)


def compiled(model: ModelProto, inputs: list[Value], outputs: list[Value]) -> list[Value]:
    """Outputs of the artifact, in which all sizes must be open."""
    model, feeds = feeds_of(model, inputs)
    sizes = sizes_of(feeds)
    whole = opened(model, feeds, outputs)

    def made(least: dict[str, int]) -> qcompiler.Artifact:
        dims = {k: f"{least[k]}..{n + MORE}" for k, n in sizes.items()}
        return qcompiler.compile(whole, dims=dims, threads=1)

    try:
        artifact = made(dict.fromkeys(sizes, 1))
    except Error:
        artifact = made(sizes)
    assert {s.name for s in artifact.manifest.symbols} == sizes.keys()
    found = qcompiler.load(artifact).run(feeds)
    return [found[o.name] for o in model.graph.output]


@pytest.mark.slow  # .ci/run includes them
@pytest.mark.parametrize("part", range(PARTS))
def test_open_cases_are_right_or_refused(part: int, request: pytest.FixtureRequest) -> None:
    update = request.config.getoption("--update-golden")
    check(open_cases()[part::PARTS], update=update, file=REFUSED, run=_numpy_outcome)


def test_a_sample_of_open_cases_is_right_or_refused() -> None:
    check(cases_from(SAMPLE), file=REFUSED, run=_numpy_outcome)


def test_a_sample_of_open_cases_is_right_as_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_sizes, "BEHIND", {"f": float("nan"), "i": 1})
    refused = listed(REFUSED)[1]
    mine = [c for c in cases_from(COMPILED) if c.name not in refused]
    found = {c.name: outcome_of(c, compiled) for c in mine}
    assert {n: f for n, f in found.items() if f[0] != "passed"} == {}


def cases_from(every: int) -> list[TestCase]:
    return [c for c in cases()[7::every] if _is_open(c)]


def _numpy_outcome(case: TestCase) -> tuple[str, str]:
    return outcome_of(case, in_numpy)
