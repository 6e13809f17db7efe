"""Axes, shapes and positions that a model takes as inputs: right where the declared shapes permit
them, an Error of the run where they do not; what a model selects by its data; lists; strings.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.helper import make_node, make_tensor_value_info

import qcompiler
from qcompiler.errors import Error
from qcompiler.ir import Array

Given = dict[str, Array]
_KINDS = {np.dtype(np.float32): 1, np.dtype(np.int64): 7, np.dtype(np.bool_): 9}


def compiled(op: str, given: Given, shape: Sequence[int] | None, **attrs: Any) -> qcompiler.Model:
    """An operator on inputs of these types, with an output of a declared shape."""
    node = make_node(op, list(given), ["y"], op.lower(), **attrs)
    kind = TensorProto.INT64 if op in ("NonZero", "NonMaxSuppression") else 1
    graph = helper.make_graph(
        [node],
        "g",
        [make_tensor_value_info(n, _KINDS[a.dtype], a.shape) for n, a in given.items()],
        [make_tensor_value_info("y", kind, shape)],
    )
    opset = helper.make_opsetid("", 21)
    return qcompiler.load(qcompiler.compile(helper.make_model(graph, opset_imports=[opset])))


def numbers(*values: int) -> Array:
    return np.array(values, np.int64)


X = np.random.default_rng(5).standard_normal((4, 3, 4)).astype(np.float32)


def test_one_model_reduces_along_whichever_axis_it_is_given() -> None:
    model = compiled("ReduceSum", {"x": X, "axes": numbers(0)}, (3, 4), keepdims=0)
    for axis in (0, -3):
        found = model.run({"x": X, "axes": numbers(axis)})["y"]
        np.testing.assert_allclose(found, X.sum(axis), rtol=1e-5)
    square = np.ascontiguousarray(X[:3].transpose(1, 0, 2))
    model = compiled("ReduceMax", {"x": square, "axes": numbers(0)}, (3, 4), keepdims=0)
    for axis in (0, 1):  # the shapes are equal, the results are not
        found = model.run({"x": square, "axes": numbers(axis)})["y"]
        np.testing.assert_array_equal(found, square.max(axis))


def test_axes_that_do_not_give_the_declared_shape_fail_the_run() -> None:
    model = compiled("ReduceSum", {"x": X, "axes": numbers(0)}, (3, 4), keepdims=0)
    for axis in (1, 7):
        with pytest.raises(Error, match=r"reducesum .*: its axes do not give the shape \[3, 4\]"):
            model.run({"x": X, "axes": numbers(axis)})
    np.testing.assert_allclose(model.run({"x": X, "axes": numbers(0)})["y"], X.sum(0), rtol=1e-5)


def open_model(op: str, x: str, shape: str, **attrs: int) -> qcompiler.Model:
    """An operator on a value and axes known at run time only, of sizes by name from 1 to 6."""
    given = "".join(f" {k}={v}" for k, v in attrs.items())
    text = f"""<ir_version: 10, opset_import: ["": 21]> g (float[{x}] x, int64[1] axes) =>
        (float[{shape}] y) {{ y = {op}{f"<{given}>" if given else ""}(x, axes) }}"""
    names = {n: "1..6" for n in re.findall("[a-z]+", x)}
    made = qcompiler.compile(onnx.parser.parse_model(text), dims=names, threads=1)
    assert {s.name for s in made.manifest.symbols} == names.keys()
    return qcompiler.load(made)


def _log_sum_exp(x: Array, axis: int, keepdims: bool) -> Array:
    return np.asarray(np.log(np.exp(x).sum(axis, keepdims=keepdims)))


REDUCTIONS = {"Sum": np.sum, "Mean": np.mean, "Max": np.max, "LogSumExp": _log_sum_exp}


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_axes_of_open_sizes_reduce_to_the_named_shape(kind: str) -> None:
    over = REDUCTIONS[kind]
    model = open_model(f"Reduce{kind}", "a,b,c", "a,1,c")
    for sizes in product((1, 3, 6), (2, 6), (1, 4)):
        x = np.random.default_rng(sizes).standard_normal(sizes).astype(np.float32)
        for axis in (1, -2):
            found = model.run({"x": x, "axes": numbers(axis)})["y"]
            np.testing.assert_allclose(found, over(x, axis=1, keepdims=True), 1e-5, 1e-5)
    with pytest.raises(Error, match=r"its axes do not give the shape \[a, 1, c\]"):
        model.run({"x": x, "axes": numbers(2)})


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_either_of_two_axes_of_one_open_size_may_be_reduced(kind: str) -> None:
    """The shapes are equal, the results are not."""
    model = open_model(f"Reduce{kind}", "a,a,b", "a,b", keepdims=0)
    for a, b in product((1, 3, 6), (1, 4)):
        x = np.random.default_rng((a, b)).standard_normal((a, a, b)).astype(np.float32)
        for axis in (0, 1):
            found = model.run({"x": x, "axes": numbers(axis)})["y"]
            wanted = REDUCTIONS[kind](x, axis=axis, keepdims=False)
            np.testing.assert_allclose(found, wanted, 1e-5, 1e-5)


def test_axes_of_open_sizes_squeeze_and_unsqueeze_to_the_named_shape() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    longer = open_model("Unsqueeze", "a,b", "a,1,b")
    shorter = open_model("Squeeze", "a,1,b,1", "a,1,b")
    np.testing.assert_array_equal(longer.run({"x": x, "axes": numbers(-2)})["y"], x[:, None])
    given = x[:, None, :, None]
    found = shorter.run({"x": given, "axes": numbers(3)})["y"]
    np.testing.assert_array_equal(found, x[:, None])
    for model, value in ((longer, x), (shorter, given)):
        with pytest.raises(Error, match=r"its axes do not give the shape \[a, 1, b\]"):
            model.run({"x": value, "axes": numbers(0)})


def test_a_shape_that_names_no_size_of_an_input_says_nothing_of_open_sizes() -> None:
    with pytest.raises(Error, match="cannot stay open"):
        open_model("ReduceSum", "a,b", "n,1")


def test_a_slice_of_a_declared_length_begins_and_steps_as_the_run_says() -> None:
    x = np.arange(12, dtype=np.float32)
    given = {"x": x, "starts": numbers(0), "ends": numbers(6), "axes": numbers(0)}
    model = compiled("Slice", {**given, "steps": numbers(2)}, (3,))
    for start, end, step in product(range(-14, 14, 3), range(-14, 14, 3), (-4, -2, -1, 1, 2, 4)):
        feeds = {
            **given,
            "starts": numbers(start),
            "ends": numbers(end),
            "steps": numbers(step),
        }
        begin = start + 12 if start < 0 else start
        stop = end + 12 if end < 0 else end
        if step > 0:
            want = x[min(max(begin, 0), 12) : min(max(stop, 0), 12) : step]
        else:
            first, last = min(max(begin, 0), 11), min(max(stop, -1), 11)
            want = x[[i for i in range(first, last, step)]]
        if len(want) == 3:
            np.testing.assert_array_equal(model.run(feeds)["y"], want)
        else:
            with pytest.raises(Error, match="a slice of 12 values does not have 3"):
                model.run(feeds)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pads_of_a_declared_total_lie_where_the_run_says(mode: str) -> None:
    x = X[0]
    given = {"x": x, "pads": numbers(1, 0, 1, 2)}
    model = compiled("Pad", given, (5, 6), mode=mode)
    for top, left in product(range(3), range(3)):
        pads = numbers(top, left, 2 - top, 2 - left)
        want = np.pad(x, [(top, 2 - top), (left, 2 - left)], mode)  # type: ignore[call-overload]
        np.testing.assert_array_equal(model.run({"x": x, "pads": pads})["y"], want)
    with pytest.raises(Error, match="the size of a padded dimension"):
        model.run({"x": x, "pads": numbers(1, 1, 1, 2)})


def test_scales_known_at_run_time_only_resize_as_constants_do() -> None:
    x = np.random.default_rng(2).standard_normal((1, 1, 5, 6)).astype(np.float32)
    scales = np.array([1, 1, 1.45, 0.6], np.float32)
    for mode, place in product(("linear", "cubic"), ("half_pixel", "align_corners", "asymmetric")):
        attrs = {"mode": mode, "coordinate_transformation_mode": place}
        given = {"x": x, "roi": np.zeros(0, np.float32), "scales": scales}
        model = compiled("Resize", given, (1, 1, 7, 3), **attrs)
        node = make_node("Resize", ["x", "roi", "scales"], ["y"], **attrs)
        graph = helper.make_graph(
            [node],
            "g",
            [make_tensor_value_info("x", 1, x.shape)],
            [make_tensor_value_info("y", 1, None)],
            [onnx.numpy_helper.from_array(given[n], n) for n in ("roi", "scales")],
        )
        fixed = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        want = qcompiler.load(qcompiler.compile(fixed)).run({"x": x})["y"]
        np.testing.assert_allclose(model.run(given)["y"], want, rtol=1e-4, atol=1e-5)


def test_a_model_selects_as_many_values_as_it_declares() -> None:
    x = np.array([[0, 2, 0], [3, 0, 4]], np.float32)
    model = compiled("NonZero", {"x": x}, (2, 3))
    np.testing.assert_array_equal(model.run({"x": x})["y"], np.nonzero(x))
    np.testing.assert_array_equal(model.run({"x": x[:, ::-1]})["y"], np.nonzero(x[:, ::-1]))
    for other in (x * 0, x + 1):
        with pytest.raises(Error, match="its data do not select 3 values"):
            model.run({"x": other})


def test_boxes_are_kept_as_a_plain_search_keeps_them() -> None:
    rng = np.random.default_rng(11)
    corner = rng.uniform(0, 4, (2, 9, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 3, (2, 9, 2))], 2).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 3, 9)).astype(np.float32)
    each, overlap, least = numbers(4), np.array([0.3], np.float32), np.array([0.2], np.float32)
    given = {"b": boxes, "s": scores, "n": each, "o": overlap, "l": least}
    want = [
        (b, c, i)
        for b, c in np.ndindex(2, 3)
        for i in _kept(boxes[b], scores[b, c], int(each[0]), float(overlap[0]), float(least[0]))
    ]
    model = compiled("NonMaxSuppression", given, (len(want), 3))
    np.testing.assert_array_equal(model.run(given)["y"], want)
    with pytest.raises(Error, match="do not select"):
        model.run({**given, "n": numbers(1)})


def _kept(boxes: Array, scores: Array, most: int, overlap: float, least: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        a = boxes[i]
        if scores[i] <= least or len(kept) == most:
            continue
        shares = []
        for b in boxes[kept]:
            width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
            both = max(width, 0) * max(height, 0)
            areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
            shares.append(both / (sum(areas) - both))
        if max(shares, default=0) <= overlap:
            kept.append(i)
    return kept


def test_code_for_c_refuses_runs_that_must_be_checked(tmp_path: Path) -> None:
    node = make_node("NonZero", ["x"], ["y"])
    sides = [make_tensor_value_info("x", 1, [3])], [make_tensor_value_info("y", 7, [1, 2])]
    model = helper.make_model(helper.make_graph([node], "g", *sides))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(Error, match="a run must check sizes"):
        qcompiler.export_c(tmp_path / "m.onnx", tmp_path / "m")


def test_what_data_select_comes_cut_to_its_size_if_no_number_is_declared() -> None:
    x = np.random.default_rng(3).standard_normal((5, 7)).astype(np.float32)
    model = compiled("NonZero", {"x": x}, ("r", "n"))
    for limit in (-9, 0, 9):
        seen = np.where(x > limit, x, 0).astype(np.float32)
        found = model.run({"x": seen})["y"]
        np.testing.assert_array_equal(found, np.nonzero(seen))


def test_boxes_that_are_kept_are_gathered_and_their_number_goes_with_them() -> None:
    rng = np.random.default_rng(4)
    corner = rng.uniform(0, 4, (1, 12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 3, (1, 12, 2))], 2).astype(np.float32)
    nodes = [
        make_node("NonMaxSuppression", ["boxes", "scores", "each", "overlap", "least"], ["kept"]),
        make_node("Gather", ["kept", "two"], ["column"], axis=1),
        make_node("Squeeze", ["column", "one"], ["index"]),
        make_node("Gather", ["boxes", "index"], ["picked"], axis=1),
        make_node("Mul", ["picked", "half"], ["scaled"]),
        make_node("Shape", ["scaled"], ["size"]),
        make_node("ReduceSum", ["picked", "axis"], ["sums"]),
    ]
    values = {
        "each": numbers(5),
        "overlap": np.array([0.4], np.float32),
        "least": np.array([0.3], np.float32),
        "two": numbers(2),
        "one": numbers(1),
        "axis": numbers(1),
        "half": np.array(0.5, np.float32),
    }

    def model_of(*outputs: tuple[str, int]) -> qcompiler.Model:
        graph = helper.make_graph(
            nodes,
            "g",
            [
                make_tensor_value_info(n, 1, s)
                for n, s in (("boxes", boxes.shape), ("scores", (1, 1, 12)))
            ],
            [make_tensor_value_info(n, kind, None) for n, kind in outputs],
            [onnx.numpy_helper.from_array(v, n) for n, v in values.items()],
        )
        opset = helper.make_opsetid("", 21)
        return qcompiler.load(qcompiler.compile(helper.make_model(graph, opset_imports=[opset])))

    model = model_of(("scaled", 1), ("size", 7), ("kept", 7), ("sums", 1))
    for top in (1.0, 0.31, 0.1):
        scores = rng.uniform(0, top, (1, 1, 12)).astype(np.float32)
        want = _kept(boxes[0], scores[0, 0], 5, 0.4, 0.3)
        made = model.run({"boxes": boxes, "scores": scores})
        np.testing.assert_array_equal(
            made["kept"], np.array([(0, 0, i) for i in want]).reshape(-1, 3)
        )
        np.testing.assert_array_equal(made["scaled"], boxes[:, want] * np.float32(0.5))
        assert made["size"].tolist() == [1, len(want), 4]
        np.testing.assert_allclose(made["sums"][:, 0], boxes[:, want].sum(1), rtol=1e-5)


def test_a_shape_that_only_the_result_tells_is_pinned_to_it() -> None:
    nodes = [
        make_node("Shape", ["x"], ["have"]),
        make_node("Max", ["have", "shape"], ["whole"]),
        make_node("Sub", ["whole", "have"], ["after"]),
        make_node("Concat", ["none", "after"], ["pads"], axis=0),
        make_node("Pad", ["x", "pads"], ["padded"]),
        make_node("Slice", ["padded", "none", "shape"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [make_tensor_value_info("x", 1, [3, 4]), make_tensor_value_info("shape", 7, [2])],
        [make_tensor_value_info("y", 1, [5, 2])],
        [onnx.numpy_helper.from_array(numbers(0, 0), "none")],
    )
    opset = helper.make_opsetid("", 21)
    model = qcompiler.load(qcompiler.compile(helper.make_model(graph, opset_imports=[opset])))
    x = X[0]
    found = model.run({"x": x, "shape": numbers(5, 2)})["y"]
    np.testing.assert_array_equal(found, np.pad(x, [(0, 2), (0, 0)])[:, :2])
    with pytest.raises(Error, match=r"input 'shape' is not \[5, 2\]"):
        model.run({"x": x, "shape": numbers(2, 5)})


def test_lists_of_tensors_go_in_and_come_out() -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, ["n"]))
    nodes = [
        make_node("SequenceInsert", ["given", "x", "at"], ["more"]),
        make_node("SequenceErase", ["more"], ["y"]),
        make_node("SequenceLength", ["y"], ["length"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_value_info("given", kind),
            make_tensor_value_info("x", 1, [3]),
            make_tensor_value_info("at", 7, []),
        ],
        [helper.make_value_info("y", kind), make_tensor_value_info("length", 7, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    with pytest.raises(Error, match="the length of a sequence must be known"):
        qcompiler.compile(model)
    made = qcompiler.load(qcompiler.compile(model, input_shapes={"given": [(3,), (3,)]}))
    rows = [np.full(3, i, np.float32) for i in range(3)]
    for at in (-2, 0, 1, 2):
        found = made.run({"given": rows[:2], "x": rows[2], "at": np.array(at)})
        want = rows[:2]
        want.insert(at, rows[2])
        assert [list(r) for r in found["y"]] == [list(r) for r in want[:-1]]
        assert found["length"] == 2
    with pytest.raises(Error, match="no such position in a sequence of 2"):
        made.run({"given": rows[:2], "x": rows[2], "at": np.array(5)})
    with pytest.raises(Error, match="3 tensors given, 2 wanted"):
        made.run({"given": rows, "x": rows[2], "at": np.array(0)})


def test_strings_are_handled_before_the_machine_code(tmp_path: Path) -> None:
    nodes = [
        make_node("StringSplit", ["text"], ["words", "counts"], delimiter=" "),
        make_node("Cast", ["counts"], ["real"], to=1),
        make_node("Mul", ["real", "x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [make_tensor_value_info("text", 8, [2]), make_tensor_value_info("x", 1, [2])],
        [make_tensor_value_info("words", 8, None), make_tensor_value_info("y", 1, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    artifact = qcompiler.compile(model)
    artifact.save(tmp_path / "m.qc")
    made = qcompiler.load(tmp_path / "m.qc")
    x = np.array([2, 3], np.float32)
    found = made.run({"text": np.array(["a b c", "d"], object), "x": x})
    assert found["words"].tolist() == [["a", "b", "c"], ["d", "", ""]]
    assert found["y"].tolist() == [6, 3]
    with pytest.raises(Error, match="float32 given, strings wanted"):
        made.run({"text": x, "x": x})
    shown = subprocess.run(
        [sys.executable, "-m", "qcompiler", "inspect", tmp_path / "m.qc"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"in Python\s+StringSplit\n", shown.stdout)
    assert re.search(r"inputs\s+text: string\[2\]; x: float32\[2\]\n", shown.stdout)
    with pytest.raises(Error, match="operators on strings run in Python only"):
        qcompiler.export_c(model, tmp_path / "c")
