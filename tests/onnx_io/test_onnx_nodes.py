"""ONNX's backend tests through the whole compiler, with every input known at run time only: each is
right, or refused with an Error. golden/onnx_nodes_refused.txt lists the refused ones by reason; a
case that is refused but not listed fails, and so does one that is listed but not refused
(`--update-golden` writes the list anew). A few cases run in every `pytest`, all of them in .ci/run.
"""

from __future__ import annotations

import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx_cases import as_array, node_cases

import qcompiler
from qcompiler.ir import Array
from qcompiler.onnx_io.tensors import DTYPES

PARTS = 32
OTHERS = ("simple", "pytorch-converted", "pytorch-operator")
REFUSED = Path(__file__).parents[1] / "golden" / "onnx_nodes_refused.txt"
ULPS = 3
"""Tolerance of 16-bit floats in units in the last place: some references round every step."""

SAMPLE = 60
"""Every so manieth case runs in every `pytest`."""
DRAWN = ("test_bernoulli",)
"""Cases of random numbers: ONNX says of their data that no implementation need give the same."""

Value = Any
"""An array; a list of arrays, of a sequence; None, of an optional without a value."""
Sets = list[tuple[list[Value], list[Value]]]


@cache
def cases() -> list[TestCase]:
    """All cases except traditional machine learning, whose operators are unsupported."""
    found = [c for of_op in node_cases().values() for c in of_op]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in OTHERS:
            found += load_model_tests(kind=kind)
    ours = [c for c in found if not c.name.startswith("test_ai_onnx_ml")]
    return sorted(ours, key=lambda c: c.name)


def loaded(case: TestCase) -> tuple[ModelProto, Sets]:
    """A case's model and data."""
    if case.model is not None:
        sets = case.data_sets or []
        return case.model, [(list(map(value, i)), list(map(value, o))) for i, o in sets]
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    return model, [
        (_tensors(data, "input"), _tensors(data, "output"))
        for data in sorted(folder.iterdir())
        if data.is_dir()
    ]


def value(given: Any) -> Value:
    """What a case holds of an input or output -> arrays."""
    if given is None or isinstance(given, list):
        return given if given is None else [as_array(v) for v in given]
    if isinstance(given, onnx.TensorProto) and given.data_type not in DTYPES:
        return numpy_helper.to_array(given)
    return as_array(given)


def _tensors(folder: Path, stem: str) -> list[Array]:
    count = len(list(folder.glob(f"{stem}_*.pb")))
    files = (folder / f"{stem}_{i}.pb" for i in range(count))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(f.read_bytes())) for f in files]


def results(model: ModelProto, inputs: list[Value]) -> list[Value]:
    """The outputs of a model compiled for these shapes."""
    given = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input]
    if len(inputs) < len(names):
        names = [n for n in names if n not in given]
    feeds = dict(zip(names, inputs, strict=True))
    if given & set(feeds):  # old models list weights with initializers as inputs
        model, feeds = _with_weights(model, feeds, given)
    shapes: dict[str, Any] = {}
    for i in [i for i in model.graph.input if i.name in feeds]:
        fed, kind = feeds[i.name], i.type.tensor_type
        if isinstance(fed, list):
            shapes[i.name] = [v.shape for v in fed]
        elif fed is None:
            shapes[i.name] = feeds.pop(i.name)
        elif any(not d.HasField("dim_value") for d in kind.shape.dim) or not kind.HasField("shape"):
            shapes[i.name] = tuple(fed.shape)
    artifact = qcompiler.compile(model, input_shapes=shapes)
    made = qcompiler.load(artifact).run(feeds)
    return [made[o.name] for o in model.graph.output]


def _with_weights(
    model: ModelProto, feeds: dict[str, Value], given: set[str]
) -> tuple[ModelProto, dict[str, Value]]:
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = [i for i in copy.graph.input if i.name not in given]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    return copy, {n: a for n, a in feeds.items() if n not in given}


def assert_right(got: Value, want: Value, case: TestCase) -> None:
    """Within the tolerance of the case, of its dtype, and of sums of its largest numbers."""
    if isinstance(want, list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_right(a, b, case)
        return
    if want.dtype.kind in "OU":
        np.testing.assert_array_equal(got, want)
        return
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if case.name.startswith(DRAWN):
        assert set(got.ravel().tolist()) <= {0, 1}
        return
    if "float" not in want.dtype.name:
        np.testing.assert_array_equal(got, want)
        return
    bits = {"float16": 10, "bfloat16": 7, "float64": 52}.get(want.dtype.name, 23)
    wide = want.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0)
    atol = max(case.atol, ULPS * 2.0**-bits * largest) if bits > 10 else case.atol
    rtol = max(case.rtol, ULPS * 2.0**-bits)
    np.testing.assert_allclose(got.astype(np.float64), wide, rtol, atol)


def outcome(case: TestCase) -> tuple[str, str]:
    """-> ("passed", ""), ("refused", why) or ("wrong", how): anything but an Error is wrong."""
    try:
        model, sets = loaded(case)
        for inputs, outputs in sets:
            for got, want in zip(results(model, inputs), outputs, strict=True):
                assert_right(got, want, case)
    except qcompiler.Error as e:
        return "refused", reason(e)
    except AssertionError as e:
        return "wrong", f"{case.name}: {e}"
    except Exception as e:
        return "wrong", f"{case.name}: {type(e).__name__}: {e}"
    return "passed", ""


def reason(error: qcompiler.Error) -> str:
    """An Error's text, without the case's names and numbers."""
    text = re.sub(r"'[^']*'|\b\w*test_\w*\b", "…", error.what)
    return re.sub(r"\?\d+|\d+", "n", " ".join(text.split()))[:160]


def listed() -> tuple[str, dict[str, str]]:
    """The onnx version the list was made with, and {case: reason}."""
    if not REFUSED.exists():
        return "", {}
    version, found, why = "", {}, ""
    for line in REFUSED.read_text().splitlines():
        if line.startswith("onnx "):
            version = line.removeprefix("onnx ")
        elif line.startswith("  "):
            found[line.strip()] = why
        else:
            why = line
    return version, found


@pytest.mark.slow  # minutes; .ci/run includes them
@pytest.mark.parametrize("part", range(PARTS))
def test_onnx_cases_are_right_or_refused(part: int, request: pytest.FixtureRequest) -> None:
    check(cases()[part::PARTS], update=request.config.getoption("--update-golden"))


def test_a_sample_of_onnx_cases_is_right_or_refused() -> None:
    check(cases()[7::SAMPLE])


def check(mine: list[TestCase], *, update: bool = False) -> None:
    """Each case is right, or refused as listed."""
    version, expected = listed()
    found = {c.name: outcome(c) for c in mine}
    refused = {n: why for n, (kind, why) in found.items() if kind == "refused"}
    if update:
        _record(refused, set(found))
    wrong = [text for kind, text in found.values() if kind == "wrong"]
    assert not wrong, "\n\n".join(wrong)
    if version == onnx.__version__ and not update:
        new = {n: why for n, why in refused.items() if n not in expected}
        assert not new, f"passed before, refused now: {new}"
        passed = [n for n, (kind, _) in found.items() if kind == "passed" and n in expected]
        assert not passed, f"passed now, to be taken off {REFUSED.name}: {passed}"


def _record(refused: dict[str, str], seen: set[str]) -> None:
    """Add one part's results to the list; one process at a time (`-n 0`)."""
    _, known = listed()
    known = {n: why for n, why in known.items() if n not in seen} | refused
    by_reason: dict[str, list[str]] = {}
    for name, why in sorted(known.items()):
        by_reason.setdefault(why, []).append(name)
    lines = [f"onnx {onnx.__version__}"]
    for why, names in sorted(by_reason.items()):
        lines += [why, *(f"  {n}" for n in names)]
    partial = REFUSED.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, REFUSED)
