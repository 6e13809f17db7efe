"""Axes, scales, sizes, steps and blocks that are inputs of models of open sizes, where the declared
shape has numbers: in numpy, with NaN behind what counts, as when they are constants of a model of
that size; other operands fail the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops import evaluate
from tests.rewrite.test_padding import Ranges, behind_nan, model_of, opened, random_feed

Sizes = Mapping[str, int]
Given = Callable[[Sizes], Array]
Case = tuple[str, int, list[dict[str, int]], dict[str, Given], dict[str, Array]]
"""A model, its opset, the sizes of runs, operands that are right for these, and some that are not.
"""


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def each(*values: int) -> list[dict[str, int]]:
    return [{"h": n} for n in values]


def resized(mode: str, coordinates: str, more: str = "") -> Case:
    """By scales, to 7 rows and 9 columns."""
    attrs = f'mode="{mode}", coordinate_transformation_mode="{coordinates}"{more}'
    text = f"""g (float[1,2,h,w] x, float[4] s) => (float[1,2,7,9] y) {{
        y = Resize<{attrs}>(x, , s) }}"""
    pairs = [{"h": h, "w": w} for h, w in ((1, 2), (2, 11), (7, 9), (11, 1))]

    def right(sizes: Sizes) -> Array:
        return np.array([1, 1, 7.3 / sizes["h"], 9.3 / sizes["w"]], np.float32)

    return text, 19, pairs, {"s": right}, {"s": np.array([1, 1, 1, 2], np.float32)}


def kept(policy: str, mode: str, coordinates: str, sizes: list[int]) -> Case:
    """By sizes of which one counts, to 7 by 7."""
    attrs = f'mode="{mode}", coordinate_transformation_mode="{coordinates}"'
    text = f"""g (float[1,2,h,h] x, int64[2] s) => (float[1,2,7,7] y) {{
        y = Resize<{attrs}, keep_aspect_ratio_policy="{policy}", axes=[2,3]>(x, , , s) }}"""
    return text, 19, each(1, 2, 7, 11, 12), {"s": lambda _: ints(*sizes)}, {"s": ints(9, 9)}


def transformed(axis: int, inputs: str, made: str, attrs: str = "") -> Case:
    text = f"""g ({inputs}, int64 k) => (float[{made}] y) {{ y = DFT{attrs}(x, , k) }}"""
    runs = [{"h": h, "w": w} for h, w in ((5, 2), (6, 3), (7, 2))]
    return text, 20, runs, {"k": lambda _: np.array(axis)}, {"k": np.array(7)}


def frames(sizes: Sizes) -> Array:
    """The step of 4 frames."""
    return np.array((sizes["h"] - 6) // 3)


CASES: dict[str, Case] = {
    **{
        f"Resize by scales, {mode}, {coordinates}{more}": resized(mode, coordinates, more)
        for mode, coordinates, more in [
            ("nearest", "half_pixel", ""),
            ("nearest", "asymmetric", ', nearest_mode="floor"'),
            ("nearest", "half_pixel_symmetric", ', nearest_mode="ceil"'),
            ("nearest", "pytorch_half_pixel", ', nearest_mode="round_prefer_ceil"'),
            ("linear", "half_pixel", ""),
            ("linear", "align_corners", ""),
            ("linear", "half_pixel_symmetric", ", exclude_outside=1"),
            ("cubic", "half_pixel", ""),
            ("cubic", "asymmetric", ", exclude_outside=1, cubic_coeff_a=-0.5"),
        ]
    },
    **{
        f"Resize, {policy}, {mode}, {coordinates}": kept(policy, mode, coordinates, sizes)
        for policy, sizes in (("not_larger", [8, 7]), ("not_smaller", [7, 6]))
        for mode, coordinates in [
            ("nearest", "half_pixel"),
            ("nearest", "asymmetric"),
            ("linear", "half_pixel_symmetric"),
            ("linear", "align_corners"),
            ("cubic", "pytorch_half_pixel"),
        ]
    },
    "Upsample": (
        "g (float[1,2,h,3] x, float[4] s) => (float[1,2,11,6] y) { y = Upsample(x, s) }",
        9,
        each(1, 2, 7, 11),
        {"s": lambda n: np.array([1, 1, 11.2 / n["h"], 2], np.float32)},
        {"s": np.array([1, 1, 1, 3], np.float32)},
    ),
    "Tile": (
        "g (float[h,3] x, int64[2] s) => (float[12,3] y) { y = Tile(x, s) }",
        13,
        each(1, 2, 3, 12),
        {"s": lambda n: ints(12 // n["h"], 1)},
        {"s": ints(5, 1)},
    ),
    "CenterCropPad": (
        "g (float[h,3] x, int64[2] s) => (float[6,4] y) { y = CenterCropPad(x, s) }",
        18,
        each(1, 2, 7, 12),
        {"s": lambda _: ints(6, 4)},
        {"s": ints(6, 3)},
    ),
    "nothing of a Slice": (
        "g (float[h,4] x, int64[1] s) => (float[h,0] y) { a = Constant<value_ints=[1]>()"
        " y = Slice(x, s, s, a) }",
        18,
        each(1, 2, 12),
        {"s": lambda _: ints(1000)},
        {},
    ),
    "DFT": transformed(2, "float[1,h,h,2] x", "1,h,h,2"),
    "DFT along the first": transformed(0, "float[h,w,1] x", "h,w,2"),
    "DFT, inverse": transformed(-2, "float[h,h,2] x", "h,h,2", "<inverse=1>"),
    "DFT, half": transformed(1, "float[w,7,h,1] x", "w,4,h,2", "<onesided=1>"),
    "STFT": (
        "g (float[2,h,1] x, int64 p, int64 n) => (float[2,4,4,2] y) { y = STFT(x, p, , n) }",
        17,
        each(9, 12, 23),
        {"p": frames, "n": lambda _: np.array(6)},
        {"p": np.array(1), "n": np.array(6)},
    ),
    "STFT of two dimensions": (
        "g (float[2,h] x, int64 p, int64 n) => (float[2,4,6,2] y) {"
        " y = STFT<onesided=0>(x, p, , n) }",
        17,
        each(9, 12, 23),
        {"p": frames, "n": lambda _: np.array(6)},
        {"p": np.array(1), "n": np.array(6)},
    ),
    "STFT with a window": (
        "g (float[1,h,1] x, int64 p, float[w] v) => (float[1,4,w,2] y) {"
        " y = STFT<onesided=0>(x, p, v) }",
        17,
        [{"h": h, "w": w} for h, w in ((9, 3), (16, 7), (23, 2))],
        {"p": lambda n: np.array((n["h"] - n["w"]) // 3)},
        {"p": np.array(50)},
    ),
    "Col2Im": (
        """g (float[2,12,l] x, float[h] z, int64[2] i, int64[2] b) => (float[2,2,h,6] y) {
        y = Col2Im<strides=[1,1], pads=[0,1,0,0], dilations=[1,2]>(x, i, b) }""",
        18,
        [{"h": h, "l": (h - 1) * 3} for h in (2, 3, 7)],
        {"i": lambda n: ints(n["h"], 6), "b": lambda _: ints(2, 3)},
        {"i": ints(7, 6), "b": ints(3, 2)},
    ),
    "Col2Im of open channels": (
        """g (float[n,c,l] x, int64[2] i, int64[2] b) => (float[n,1,5,4] y) {
        y = Col2Im<strides=[2,1]>(x, i, b) }""",
        18,
        [
            {"n": n, "c": h * w, "l": ((5 - h) // 2 + 1) * (5 - w), "h": h, "w": w}
            for n, h, w in ((1, 1, 1), (2, 5, 1), (3, 2, 4))
        ],
        {"i": lambda _: ints(5, 4), "b": lambda n: ints(n["h"], n["w"])},
        {"i": ints(5, 4), "b": ints(9, 9)},
    ),
}


def with_constants(model: ModelProto, given: Mapping[str, Array]) -> ModelProto:
    """The model whose operands are constants, and which says nothing of its outputs' shape."""
    made = ModelProto()
    made.CopyFrom(model)
    rest = [i for i in made.graph.input if i.name not in given]
    del made.graph.input[:]
    made.graph.input.extend(rest)
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in given.items())
    for output in made.graph.output:
        output.type.tensor_type.ClearField("shape")
    return made


def model_and_ranges(name: str) -> tuple[ModelProto, Ranges]:
    """The model of a case, and its open sizes."""
    text, opset, runs, *_ = CASES[name]
    model = model_of(text, opset)
    named = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim} - {""}
    return model, {k: (min(n[k] for n in runs), max(n[k] for n in runs) + 1) for k in named}


def check_runs(name: str, run: Callable[[dict[str, Array], Sizes], Array]) -> None:
    """All runs of a case, and one more of the first; then that others fail."""
    model, ranges = model_and_ranges(name)
    _, _, runs, right, wrong = CASES[name]
    for seed, all_sizes in enumerate([*runs, runs[0], runs[-1]]):
        given = {k: value(all_sizes) for k, value in right.items()}
        sizes = {k: all_sizes[k] for k in ranges}
        fixed = with_constants(model, given)
        feed = random_feed(fixed, sizes, seed)
        (wanted,) = evaluate(read_pinned(fixed, {}, sizes, False, {}), feed).values()
        found = run({**feed, **given}, sizes)[tuple(map(slice, wanted.shape))]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, 1e-4, 2e-5, err_msg=f"at {sizes}")
    if wrong:
        with pytest.raises(Error, match=r"_y \(\w+\): "):
            run({**feed, **wrong}, sizes)


@pytest.mark.parametrize("name", CASES)
def test_what_a_run_is_given_is_right_and_the_rest_fails(name: str) -> None:
    graph = opened(*model_and_ranges(name)).graph
    check_runs(name, lambda feed, sizes: evaluate(graph, behind_nan(graph, feed, sizes))["y"])
